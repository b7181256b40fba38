"""A reader written from ``docs/reference/format.md`` alone: where it fails, the document or the format is wrong.

`Reader` uses nothing of pgkeep. Section numbers are the document's.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import hmac
import json
import os
import random
import struct
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import google_crc32c
import msgspec
import pytest
from argon2.low_level import Type, hash_secret_raw
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pgkeep.repository import KeyFile, Passphrase, Repository, Secret
from pgkeep.repository.contents import ContentWriter, Parameters
from pgkeep.repository.manifests import Manifest, WalRange
from pgkeep.repository.maps import (
    INLINE_BYTES,
    INLINE_EXTENTS,
    Directory,
    Extent,
    FileEntry,
    cut_listings,
    encode_entry,
    encode_extents,
)
from pgkeep.repository.packs import PackKind
from pgkeep.repository.posix import PosixStore

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def hkdf(key: bytes, salt: bytes, purpose: str) -> bytes:
    return HKDF(SHA256(), 32, salt, b"pgkeep/1 " + purpose.encode()).derive(key)


def canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def record(path: Path) -> dict[str, Any]:
    """Section 3."""
    line = path.read_bytes()
    fields: dict[str, Any] = json.loads(line)
    assert canonical(fields) + b"\n" == line
    check = fields.pop("check")
    assert hashlib.sha256(canonical(fields)).hexdigest() == check
    return fields


def plain_of(codec: int, stored: bytes) -> bytes:
    return zstd.decompress(stored) if codec else stored


class Reader:
    def __init__(self, root: Path, secret: str) -> None:
        self.root = root
        fields = record(root / "pgkeep.json")
        assert (fields["format"], fields["required_features"]) == (1, [])
        self.family = bytes.fromhex(fields["family"])
        self.suite = {"none": 0, "aes-256-gcm": 1}[fields["encryption"]]
        self.root_key = (
            self.unwrap(secret) if self.suite else hashlib.sha256(b"pgkeep/1 unencrypted " + self.family).digest()
        )
        seal = fields.pop("seal")
        assert hmac.digest(self.key(self.family, "root record"), canonical(fields), "sha256").hex() == seal
        self.places = dict(self.read_index())

    def unwrap(self, secret: str) -> bytes:
        """Section 3.2."""
        for path in (self.root / "keys").iterdir():
            slot = record(path)
            salt, nonce, wrapped = (bytes.fromhex(slot[name]) for name in ("salt", "nonce", "wrapped"))
            if slot["kind"] == "key" and secret.startswith("PGKEEP1-"):
                raw = base64.b32decode(secret[8:].replace("-", "") + "======")
                assert hashlib.sha256(raw[:32]).digest()[:4] == raw[32:]
                wrapping = hkdf(raw[:32], salt, "key slot")
            elif slot["kind"] == "passphrase":
                costs = {name: cost for name, cost in slot["kdf"].items() if name != "name"}
                assert costs == {"memory_cost": 65536, "parallelism": 4, "time_cost": 3}
                wrapping = hash_secret_raw(secret.encode(), salt, hash_len=32, type=Type.ID, version=0x13, **costs)
            else:
                continue
            try:
                associated = b"pgkeep/1 slot" + self.family + f"{path.stem} {slot['kind']}".encode()
                return AESGCM(wrapping).decrypt(nonce, wrapped, associated)
            except InvalidTag:
                continue
        raise AssertionError("no slot opens")

    def key(self, salt: bytes, purpose: str) -> bytes:
        return hkdf(self.root_key, salt, purpose)

    def open(self, key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
        """Section 2."""
        if self.suite:
            return AESGCM(key).decrypt(nonce, sealed, associated)
        plain, tag = sealed[:-16], sealed[-16:]
        assert tag == blake3(struct.pack("<Q", len(associated)) + associated + nonce + plain, key=key).digest()[:16]
        return plain

    def sealed_object(self, name: str, number: int, type_name: str) -> bytes:
        """Section 8."""
        data = (self.root / name).read_bytes()
        assert hashlib.sha256(data[:-32]).digest() == data[-32:]
        magic, type_, suite, mode, codec, _, salt = struct.unpack("<8sBBBBI32s", data[:48])
        assert (magic, type_, suite, mode) == (b"pgkeepO1", number, self.suite, 0)
        key = self.key(salt, f"object {type_name}")
        associated = b"pgkeep/1 object" + self.family + data[:48] + name.encode()
        position, chunks = 48, list[bytes]()
        while position < len(data) - 32:
            (size,) = struct.unpack("<I", data[position : position + 4])
            sealed = data[position + 4 : position + 4 + size]
            position += 4 + size
            nonce = struct.pack("<IQ", position == len(data) - 32, len(chunks))
            chunks.append(plain_of(codec, self.open(key, nonce, sealed, associated)))
        return b"".join(chunks)

    def read_index(self) -> list[tuple[bytes, tuple[str, int, int, int, int, int]]]:
        """Section 7."""
        found = []
        for path in (self.root / "index").iterdir():
            data = path.read_bytes()
            assert hashlib.sha256(data).hexdigest() == path.name
            assert blake3(data[:-32], key=self.key(self.family, "index")).digest() == data[-32:]
            magic, packs, count, family = struct.unpack("<8sII16s", data[:32])
            assert (magic, family, len(data)) == (b"pgkeepI1", self.family, 64 + 40 * packs + 52 * count)
            names = [(data[32 + 40 * n : 64 + 40 * n].hex(), data[64 + 40 * n]) for n in range(packs)]
            for n in range(count):
                start = 32 + 40 * packs + 32 * n
                place = 32 + 40 * packs + 32 * count + 20 * n
                number, offset, stored, plain, codec = struct.unpack("<5I", data[place : place + 20])
                found.append((data[start : start + 32], (*names[number], offset, stored, plain, codec)))
        return found

    def content(self, content_id: bytes) -> bytes:
        """Sections 4 and 6."""
        digest, kind, offset, stored, plain_size, codec = self.places[content_id]
        kind_name = {1: "data", 2: "meta"}[kind]
        pack = (self.root / "packs" / kind_name / digest[:2] / digest).read_bytes()
        assert hashlib.sha256(pack).hexdigest() == digest
        magic, pack_kind, suite, mode, reserved, salt = struct.unpack("<8sBBBB32s", pack[:44])
        assert (magic, pack_kind, suite, mode, reserved) == (b"pgkeepP1", kind, self.suite, 0, 0)
        key = self.key(salt, f"pack {kind_name}")
        self.check_table(pack, key, kind, (content_id, offset, stored, plain_size, codec))
        associated = b"pgkeep/1 pack" + self.family + content_id + struct.pack("<BIB", kind, plain_size, codec)
        sealed = pack[offset : offset + stored]
        plain = plain_of(codec, self.open(key, offset.to_bytes(12, "little"), sealed, associated))
        assert len(plain) == plain_size
        assert blake3(plain, key=self.key(self.family, "content-id")).digest() == content_id
        return plain

    def check_table(self, pack: bytes, key: bytes, kind: int, entry: tuple[bytes, int, int, int, int]) -> None:
        size, count, magic = struct.unpack("<II8s", pack[-16:])
        assert (magic, size) == (b"pgkeepPE", count * 48 + 16)
        start = len(pack) - 16 - size
        associated = b"pgkeep/1 pack" + self.family + bytes(32) + struct.pack("<BIB", kind, count * 48, 0)
        table = self.open(key, start.to_bytes(12, "little"), pack[start:-16], associated)
        assert entry in struct.iter_unpack("<32sIIII", table)

    def file(self, manifest: dict[str, Any], path: bytes) -> bytes:
        """Sections 5 and 11."""
        directory, _, name = path.rpartition(b"/")
        listings = next(listings for found, _, listings, *_ in manifest["directories"] if found == directory)
        entries = [entry for listing in listings for entry in msgspec.msgpack.decode(self.content(listing))]
        found, size, _, _, crc, inline, extents, map_id = next(
            (*e[:8], *[None] * (8 - len(e))) for e in entries if e[0] == name
        )
        assert found == name
        data = bytearray(size if inline is None else inline)
        page = manifest["block_size"]
        for first, pages, content_page, content_id in struct.iter_unpack(
            "<III32s", (extents if map_id is None else self.content(map_id)) or b""
        ):
            run = self.content(content_id)[content_page * page : (content_page + pages) * page]
            data[first * page : first * page + len(run)] = run[: size - first * page]
        assert len(data) == size
        assert crc in {None, google_crc32c.value(bytes(data))}
        return bytes(data)


def files() -> dict[bytes, bytes]:
    chance = random.Random(1)
    rows = b"".join(f"{n:08} {chance.random()}".encode().ljust(64) for n in range(4000))
    return {
        b"PG_VERSION": b"18\n",
        b"empty": b"",
        b"base/5/1259": chance.randbytes(48 << 10),
        b"base/5/16384": rows + bytes(100 << 10) + rows[::-1],
        b"base/5/16385": bytes(64 << 10),
        "base/5/가격".encode(): chance.randbytes(20_001),
        b"pg_tblspc/16999/PG_18/5/1": rows[:9000],
    }


def entry_of(writer: ContentWriter, parameters: Parameters, path: bytes, data: bytes) -> FileEntry:
    """As a backup stores a file: inline, or in cells whose map is in the entry or a content of its own."""
    crc = None if path.endswith(b"16384") else google_crc32c.value(data)
    facts = (os.path.basename(path), len(data), 0o600, 1_700_000_000, crc)
    if len(data) <= INLINE_BYTES:
        return FileEntry(*facts, inline=data)
    extents = []
    for start in range(0, len(data), parameters.cell_size):
        cell = data[start : start + parameters.cell_size]
        if any(cell):
            pages = -(-len(cell) // parameters.page_size)
            extents.append(Extent(start // parameters.page_size, pages, 0, writer.put(PackKind.DATA, cell).id))
    encoded = encode_extents(extents)
    if len(extents) <= INLINE_EXTENTS:
        return FileEntry(*facts, extents=encoded)
    return FileEntry(*facts, map_id=writer.put(PackKind.META, encoded).id)


def take_backup(repository: Repository, contents: dict[bytes, bytes], wal: bytes) -> Manifest:
    moment = datetime(2026, 11, 23, 3, 4, 5, tzinfo=UTC)
    segment = "000000010000000000000002"
    with repository.writer() as writer:
        directories = []
        for directory in sorted({os.path.dirname(path) for path in contents}):
            inside = {path: data for path, data in sorted(contents.items()) if os.path.dirname(path) == directory}
            entries = [encode_entry(entry_of(writer, repository.parameters, *file)) for file in inside.items()]
            listings = [writer.put(PackKind.META, listing).id for listing in cut_listings(entries)]
            directories.append(Directory(directory, 0o700, listings, len(entries), sum(map(len, inside.values()))))
        writer.flush()
        stored = repository.wal(7123).put(segment, wal)
        manifest = Manifest(
            id="20261123T030405Z-0a1b2c3d", cluster="auth", label="", mode="stream", system_identifier=7123,
            server_version=180001, from_standby=False, started=moment, finished=moment, timeline=1, start_lsn=1 << 25,
            stop_lsn=(1 << 25) + 296, block_size=8192, page_size=8192, segment_blocks=131072, data_checksums=True,
            backup_label=b"START WAL LOCATION: 0/2000028\n", tablespace_map=b"", tablespaces=[], directories=directories,
            wal=WalRange(1, 1 << 25, (1 << 25) + 296, len(wal), [segment], stored), logical_size=sum(map(len, contents.values())),
            stored_size=writer.new_bytes, new_size=writer.new_bytes, files=len(contents),
        )  # fmt: skip
        repository.catalog.commit(manifest)
    return manifest


@pytest.mark.parametrize("how", ["a key file", "a passphrase", "no encryption"])
def test_a_stranger_reads_a_backup_with_the_document_alone(store: PosixStore, how: str) -> None:
    key = KeyFile(bytes(range(32)))
    secrets: dict[str, Secret | None] = {"a key file": key, "a passphrase": Passphrase("žluťoučký kůň")}
    secret = secrets.get(how)
    repository = Repository.create(store, secret, Parameters(cell_size=32 << 10, pack_size=128 << 10))
    wal = random.Random(2).randbytes(1 << 20) + bytes(1 << 20)
    taken = take_backup(repository, files(), wal)

    text = key.text() if isinstance(secret, KeyFile) else secret.passphrase if isinstance(secret, Passphrase) else ""
    reader = Reader(store.root, text)
    name = max(path.relative_to(store.root).as_posix() for path in store.root.glob("clusters/*/backups/*"))
    manifest = msgspec.msgpack.decode(reader.sealed_object(name, 1, "manifest"))

    assert manifest["id"] == taken.id
    assert manifest["started"] == taken.started
    assert {path: reader.file(manifest, path) for path in files()} == files()
    segment = manifest["wal"]["segments"][0]
    assert reader.sealed_object(f"clusters/7123/wal/{segment[:8]}/{segment[8:16]}/{segment}", 2, "wal") == wal


def test_every_object_of_a_repository_has_a_place_in_the_document(store: PosixStore) -> None:
    repository = Repository.create(store, KeyFile(bytes(32)))
    with repository.lease("a test"):
        take_backup(repository, files(), b"wal")
        document = (Path(__file__).parents[3] / "docs" / "reference" / "format.md").read_text("utf-8")
        documented = {line.split("`")[1].split("/")[0] for line in document.splitlines() if line.startswith("| `")}
        assert {info.name.split("/")[0] for info in store.list("")} <= documented
        for name in ("pgkeep.json", "leases", "keys"):
            stored = record(next(path for path in (store.root / name, *store.root.glob(f"{name}/*")) if path.is_file()))
            assert [field for field in stored if f"`{field}`" not in document] == [], name


def test_every_word_that_the_rescue_program_seals_with_stands_in_the_document() -> None:
    """Purposes of keys, associated data and fields of records: the two agree, or one of them is wrong."""
    project = Path(__file__).parents[3]
    document = (project / "docs" / "reference" / "format.md").read_text("utf-8")
    words: set[str] = set()
    for node in ast.walk(ast.parse((project / "tools" / "pgkeep_rescue.py").read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes) and node.value.startswith(b"pgkeep"):
            words.add(node.value.decode().rstrip())
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in {
            "derive",
            "key",
        }:
            words |= {str(word.value) for word in node.args if isinstance(word, ast.Constant) and word.value != 0}
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            words |= {node.slice.value} if isinstance(node.slice.value, str) else set()
    assert {"root grant", "slot pair", "root generation", "pgkeep/1 slot", "message"} <= words
    assert [word for word in sorted(words) if word not in document] == []
