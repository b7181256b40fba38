#!/usr/bin/env python3
"""Restore a backup from a pgkeep repository with this one file: written from docs/reference/format.md, without pgkeep.

It needs Python 3.11 and three packages: pip install zstandard blake3 cryptography. The repository is a directory, or a copy of a
bucket in one (aws s3 sync s3://bucket/prefix DIR). Nothing is written there.

    pgkeep_rescue.py list REPOSITORY --key-file pgkeep.key
    pgkeep_rescue.py restore REPOSITORY latest /srv/restored --key-file pgkeep.key --owner postgres
    pgkeep_rescue.py wal REPOSITORY /srv/wal --gpg

Without a key option it asks for the recovery key or passphrase. For a key of AWS KMS, have that decrypt the "blob" of keys/SLOT.json
(the document, 3.2), and give the answer's Plaintext in a file as --kms-plaintext. Every byte is checked; a damaged object is named, and
the control file is written last, so that what is not complete does not start. A restored server recovers by the WAL that came with
the backup. For a later moment take all WAL out with ``wal``, make an empty file recovery.signal in the data directory, and set
restore_command = 'cp /srv/wal/SYSTEM_IDENTIFIER/%f %p' and a recovery target. Numbers in comments are sections of the document.
"""

from __future__ import annotations

import argparse
import base64
import functools
import getpass
import hashlib
import hmac
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

KINDS, MOST = {1: "data", 2: "meta"}, 64 << 20
SAFE = ("archive_command", "archive_library", "synchronous_standby_names", "primary_conninfo", "primary_slot_name")
NOT_RESTORED = {b"backup_label", b"tablespace_map", b"backup_manifest", b"standby.signal", b"recovery.signal"}


class Refused(Exception):
    """What is not done, and why; names the damaged object where one is."""


def damaged(name: str, what: str) -> Refused:
    return Refused(f"{name} is damaged: {what}")


def derive(key: bytes, salt: bytes, purpose: str) -> bytes:
    return hmac.digest(hmac.digest(salt, key, "sha256"), b"pgkeep/1 " + purpose.encode() + b"\x01", "sha256")


def open_sealed(suite: int, key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
    """The plain bytes; ValueError where anything differs."""
    if suite == 1:
        try:
            return AESGCM(key).decrypt(nonce, sealed, associated)
        except InvalidTag:
            raise ValueError("its bytes are not what was sealed here") from None
    plain, tag = sealed[:-16], sealed[-16:]
    wanted = blake3(struct.pack("<Q", len(associated)) + associated + nonce + plain, key=key).digest()[:16]
    if not hmac.compare_digest(wanted, tag):
        raise ValueError("its bytes are not what was written here")
    return plain


def decompressed(codec: int, data: bytes, most: int) -> bytes:
    """The bytes that a codec stands for, never more than were announced."""
    if codec == 0:
        return data
    plain = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read(most + 1)
    if codec != 1 or len(plain) > most:
        raise ValueError("it is compressed in an unknown way")
    return plain


def canonical(fields: dict[str, Any], *left_out: str) -> bytes:
    """3: JSON with one way to write it."""
    kept = {name: value for name, value in fields.items() if name not in left_out}
    return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()


def seal_of(key: bytes, fields: dict[str, Any], before: str = "") -> str:
    return hmac.digest(key, before.encode() + canonical(fields, "seal", "check"), "sha256").hex()


def unpack(data: bytes) -> Any:
    """MessagePack, as far as manifests and listings need it; timestamps are None."""
    take = io.BytesIO(data).read

    def number(code: str) -> Any:
        return struct.unpack(">" + code, take(struct.calcsize(code)))[0]

    def value() -> Any:
        first = number("B")
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 0x100
        if first < 0x90 or first >= 0xDE:
            return {value(): value() for _ in range(first & 15 if first < 0x90 else number("HI"[first - 0xDE]))}
        if first < 0xA0 or first >= 0xDC:
            return [value() for _ in range(first & 15 if first < 0xA0 else number("HI"[first - 0xDC]))]
        if first < 0xC0:
            return take(first & 0x1F).decode()
        if first < 0xC4:
            return {0xC2: False, 0xC3: True}.get(first)
        if first < 0xC7:
            return take(number("BHI"[first - 0xC4]))
        if first < 0xCA or 0xD4 <= first < 0xD9:
            take(1 + (number("BHI"[first - 0xC7]) if first < 0xCA else 1 << (first - 0xD4)))
            return None
        if first < 0xD4:
            return number("fdBHIQbhiq"[first - 0xCA])
        return take(number("BHI"[first - 0xD9])).decode()

    return value()


class Repository:
    """A repository in a directory, opened."""

    def __init__(self, root: Path, secret: Callable[[], tuple[str, bytes]]) -> None:
        self.root = root
        fields = self.record("pgkeep.json")
        if fields.get("format") != 1 or set(fields.get("required_features", ["?"])) - {"sealed"}:
            raise Refused(f"this reader does not know format {fields.get('format')}, {fields.get('required_features')}")
        self.family = bytes.fromhex(fields["family"])
        self.suite = {"none": 0, "aes-256-gcm": 1}[fields["encryption"]]
        # each generation: root key, private key of sealed mode or nothing
        self.roots: list[tuple[bytes, bytes]] = [(hashlib.sha256(b"pgkeep/1 unencrypted " + self.family).digest(), b"")]
        if self.suite:
            self.unlock(*secret())
        if seal_of(self.key(0, self.family, "root record"), fields) != fields.get("seal"):
            raise damaged("pgkeep.json", "it was not written with this repository's key")
        self.damaged_packs: list[str] = []
        self.places: dict[bytes, tuple[str, int, int, int, int]] = {}

    def names(self, prefix: str) -> list[str]:
        """Objects below a prefix, sorted."""
        found = (path for path in (self.root / prefix).rglob("*") if path.is_file() and not path.name.startswith("."))
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        try:
            with (self.root / name).open("rb") as file:
                file.seek(start)
                return file.read(-1 if size is None else size)
        except FileNotFoundError:
            raise Refused(f"{self.root / name} is missing") from None

    def record(self, name: str) -> dict[str, Any]:
        line = self.get(name)
        try:
            fields: dict[str, Any] = json.loads(line)
            check = hashlib.sha256(canonical(fields, "check")).hexdigest()
            if canonical(fields) + b"\n" == line and check == fields["check"]:
                return fields
        except (ValueError, KeyError, AttributeError):
            pass
        raise damaged(name, "it is not the record that was written")

    def key(self, mode: int, salt: bytes, purpose: str) -> bytes:
        """2: the key of a pack or object, by its key mode."""
        if mode & 0x7F >= len(self.roots):
            raise ValueError(f"it names root key {mode & 0x7F}, which this key does not give")
        root, private = self.roots[mode & 0x7F]
        if not mode & 0x80:
            return derive(root, salt, purpose)
        if not private:
            raise Refused("this key adds to the repository and does not read data or WAL back: give one that reads")
        pair = X25519PrivateKey.from_private_bytes(private)
        shared = pair.exchange(X25519PublicKey.from_public_bytes(salt))
        return derive(shared + root, salt + pair.public_key().public_bytes_raw(), f"boxed {purpose}")

    def unlock(self, kind: str, secret: bytes) -> None:
        """3.2: the root keys, by the first slot that the secret opens."""
        trouble = Refused(f"no key slot of kind {kind} opens with it")
        for name in [name for name in self.names("keys/") if re.fullmatch(r"keys/[0-9a-f]{8}\.json", name)]:
            try:
                fields = self.record(name)
                if fields["kind"] != kind:
                    continue
                salt, nonce, wrapped = (bytes.fromhex(fields[field]) for field in ("salt", "nonce", "wrapped"))
                wrapping = wrapping_key(kind, secret, salt, fields)
                slot, sealing = name[5:13], fields.get("sealing")
                bound = f"{slot} {kind} {sealing or ''}".rstrip().encode()
                plain = open_sealed(1, wrapping, nonce, wrapped, b"pgkeep/1 slot" + self.family + bound)
            except (Refused, ValueError) as error:
                trouble = error if isinstance(error, Refused) else trouble
                continue
            keys = [plain[at : at + 32 * (1 + bool(sealing))] for at in range(0, len(plain), 32 * (1 + bool(sealing)))]
            pair = X25519PrivateKey.from_private_bytes(derive(wrapping, salt, "slot pair"))
            while (key := self.granted(keys, slot, pair)) is not None:
                keys.append(key)
            self.roots = [(key[:32], key[32:] if sealing == "private" else b"") for key in keys]
            return
        raise trouble

    def granted(self, keys: list[bytes], slot: str, pair: X25519PrivateKey) -> bytes | None:
        """3.3: the root key after these, as it was given to a slot."""
        for name in (f"keys/root-{len(keys)}.json", f"keys/root-{len(keys)}-{slot}.json"):
            fields = self.record(name) if (self.root / name).is_file() else {}
            sealed = bytes.fromhex(fields.get("slots", {}).get(slot, ""))
            if sealed:
                shared = pair.exchange(X25519PublicKey.from_public_bytes(sealed[:32]))
                key = derive(shared, sealed[:32] + pair.public_key().public_bytes_raw(), "root grant")
                bound = b"pgkeep/1 root" + self.family + f"{len(keys)} {slot}".encode()
                plain = open_sealed(1, key, bytes(12), sealed[32:], bound)
                seal = derive(keys[-1][:32] + plain[:32], self.family, "root generation")
                if seal_of(seal, fields, f"{name} ") != fields.get("seal"):
                    raise damaged(name, "it was not written with this repository's keys")
                return plain
        return None

    def sealed_object(self, name: str, number: int, kind: str) -> bytes:
        """8: the plain text."""
        data = self.get(name)
        try:
            if len(data) < 80 or hashlib.sha256(data[:-32]).digest() != data[-32:]:
                raise ValueError("its bytes do not match its check")
            magic, type_, suite, mode, codec, most, salt = struct.unpack_from("<8sBBBBI32s", data)
            if (magic, type_, suite) != (b"pgkeepO1", number, self.suite) or most > MOST:
                raise ValueError(f"it is no {kind} of this repository")
            key = self.key(mode, salt, f"object {kind}")
            associated = b"pgkeep/1 object" + self.family + data[:48] + name.encode()
            at, end, chunks = 48, len(data) - (64 if mode & 0x80 else 32), list[bytes]()
            while at < end or not chunks:
                (size,) = struct.unpack_from("<I", data, at)
                start, at = at + 4, at + 4 + size
                nonce = struct.pack("<IQ", at == end, len(chunks))
                plain = open_sealed(self.suite, key, nonce, data[start:at], associated)
                chunks.append(decompressed(codec, plain, most))
        except ValueError as error:
            raise damaged(name, str(error)) from None
        return b"".join(chunks)

    @functools.lru_cache(maxsize=1024)  # noqa: B019 - the repository lives as long as the program
    def pack(self, name: str) -> tuple[int, int, bytes]:
        """6: kind, key mode and salt."""
        header = self.get(name, 0, 44).ljust(44, b"\0")
        magic, kind, suite, mode, zero, salt = struct.unpack("<8sBBBB32s", header)
        if (magic, suite, zero, KINDS.get(kind)) != (b"pgkeepP1", self.suite, 0, name.split("/")[1]):
            raise ValueError("it has no header of a pack")
        return kind, mode, salt

    def from_pack(self, name: str, what: bytes, offset: int, stored: int, size: int, codec: int) -> bytes:
        """6: a content of a pack, or its table, whose id is zeros."""
        kind, mode, salt = self.pack(name)
        is_table = not any(what)
        purpose = f"pack {KINDS[kind]}{' table' if is_table and mode & 0x80 else ''}"
        key = self.key(mode & 0x7F if is_table else mode, salt, purpose)
        bound = b"pgkeep/1 pack" + self.family + what + struct.pack("<BIB", kind, size, codec)
        sealed = self.get(name, offset, stored)
        return decompressed(codec, open_sealed(self.suite, key, offset.to_bytes(12, "little"), sealed, bound), size)

    def read_tables(self) -> None:
        """6: what each pack says of itself; the index (7) is a cache of this, and not needed."""
        for name in self.names("packs/"):
            total = (self.root / name).stat().st_size
            try:
                tail = self.get(name, max(total - 16, 0)).ljust(16, b"\0")
                size, count, magic = struct.unpack("<II8s", tail)
                if magic != b"pgkeepPE" or size != 48 * count + 16 or total < 60 + size:
                    raise ValueError("it is cut off")
                table = self.from_pack(name, bytes(32), total - 16 - size, size, 48 * count, 0)
            except ValueError as error:
                self.damaged_packs.append(f"{name} ({error})")  # another backup's, perhaps
                continue
            self.places |= {what: (name, *place) for what, *place in struct.iter_unpack("<32sIIII", table)}

    @functools.lru_cache(maxsize=8)  # noqa: B019 - see above
    def content(self, what: bytes) -> bytes:
        """4 and 6: a content by its id."""
        if not self.places:
            self.read_tables()
        place = self.places.get(what)
        if place is None:
            broken = f"; damaged: {', '.join(self.damaged_packs)}" if self.damaged_packs else ""
            raise Refused(f"no pack holds the content {what.hex()}{broken}")
        name, offset, stored, size, codec = place
        try:
            plain = self.from_pack(name, what, offset, stored, min(size, MOST), codec)
            if len(plain) != size or blake3(plain, key=self.key(0, self.family, "content-id")).digest() != what:
                raise ValueError("a content is not what its id names")
        except ValueError as error:
            raise damaged(name, f"{error} (at byte {offset})") from None
        return plain

    def backups(self) -> list[str]:
        """8.1: the manifests' names, oldest first."""
        return sorted((n for n in self.names("clusters/") if n.split("/")[2] == "backups"), key=os.path.basename)

    def manifest(self, name: str) -> Any:
        return unpack(self.sealed_object(name, 1, "manifest"))

    def wal(self, system_identifier: int, name: str) -> bytes:
        """8.2: a segment, piece or history file."""
        log = "" if name.endswith(".history") else f"{name[8:16]}/"
        return self.sealed_object(f"clusters/{system_identifier}/wal/{name[:8]}/{log}{name}", 2, "wal")


def wrapping_key(kind: str, secret: bytes, salt: bytes, fields: dict[str, Any]) -> bytes:
    """3.2: the key of a slot."""
    if kind == "passphrase":
        return Argon2id(salt=salt, length=32, iterations=3, lanes=4, memory_cost=65536).derive(secret)
    if kind == "openpgp":
        message = base64.b64decode(fields["message"])
        done = subprocess.run(["gpg", "--quiet", "--decrypt"], input=message, capture_output=True, check=False)
        if done.returncode:
            raise Refused(f"gpg does not decrypt for {fields['recipient']}: {done.stderr.decode(errors='replace')}")
        secret = done.stdout
    return derive(secret, salt, "key slot")


def secret_of(options: argparse.Namespace) -> tuple[str, bytes]:
    """3.2: the kind of slot that is tried, and what opens it."""
    if options.gpg:
        return "openpgp", b""
    if options.kms_plaintext:
        return "aws-kms", base64.b64decode(options.kms_plaintext.read_text("utf-8").strip(), validate=True)
    file = options.key_file or options.passphrase_file
    secret = (file.read_text("utf-8") if file else getpass.getpass("Recovery key or passphrase: ")).rstrip("\r\n")
    text = re.sub(r"[\s-]", "", secret).upper()
    if not text.startswith("PGKEEP1"):
        return "passphrase", secret.encode()
    raw = base64.b32decode(text[7:] + "=" * (-len(text[7:]) % 8))
    if len(raw) != 36 or hashlib.sha256(raw[:32]).digest()[:4] != raw[32:]:
        raise Refused("this is no pgkeep key: a letter is wrong or missing")
    return "key", raw[:32]


class Restore:
    """A backup on its way into a directory."""

    def __init__(self, repository: Repository, manifest: dict[str, Any], options: argparse.Namespace) -> None:
        self.repository, self.manifest, self.owner = repository, manifest, options.owner
        self.places = {b"": os.fsencode(options.directory.absolute())}
        moved = dict(text.rpartition("=")[::2] for text in options.tablespace)
        for tablespace in manifest["tablespaces"]:
            old = os.fsdecode(tablespace["location"])
            new = moved.pop(old, moved.pop(str(tablespace["oid"]), old))
            self.places[b"pg_tblspc/%d" % tablespace["oid"]] = os.fsencode(Path(new).absolute())
        if moved:
            raise Refused(f"the backup has no tablespace {next(iter(moved))}")

    def run(self) -> None:
        """All of it, the control file last."""
        for root, place in self.places.items():
            if os.path.isdir(place) and os.listdir(place):
                raise Refused(f"{os.fsdecode(place)} is not empty" + (" (--tablespace OLD=NEW)" if root else ""))
            os.makedirs(place, mode=0o700, exist_ok=True)
            self.give(place, 0o700)
        last = None
        for path, mode, listings, *_ in self.manifest["directories"]:
            os.makedirs(self.place(path), exist_ok=True)
            self.give(self.place(path), mode)
            for entry in self.entries(listings):
                file = path + b"/" + entry[0] if path else entry[0]
                if file == b"global/pg_control":
                    last = (file, entry)
                elif file not in NOT_RESTORED:
                    self.write(self.place(file), entry[2], self.pieces(entry), entry[1])
        for root in self.places.keys() - {b""}:
            os.symlink(self.places[root], os.path.join(self.places[b""], root))
        wal = self.manifest["wal"]
        for name in wal["segments"]:
            plain = self.repository.wal(self.manifest["system_identifier"], name)
            size = len(plain) if name.endswith(".history") else wal["segment_size"]
            self.write(self.place(b"pg_wal/" + re.sub(r"\..*-.*", "", name).encode()), 0o600, iter([(0, plain)]), size)
        label = self.manifest["backup_label"]
        self.write(self.place(b"backup_label"), 0o600, iter([(0, label)]), len(label))
        with open(self.place(b"postgresql.auto.conf"), "a", encoding="utf-8") as file:
            file.writelines(["\narchive_mode = off\n", *(f"{name} = ''\n" for name in SAFE)])
        self.give(self.place(b"postgresql.auto.conf"), 0o600)
        os.sync()
        if last is not None:
            self.write(self.place(last[0]), last[1][2], self.pieces(last[1]), last[1][1])
            os.sync()

    def entries(self, listings: list[bytes]) -> Iterator[list[Any]]:
        for listing in listings:
            for entry in unpack(self.repository.content(listing)):
                if b"/" in entry[0] or entry[0] in {b"", b".", b".."}:
                    raise Refused(f"{entry[0]!r} is not the name of a file")
                yield [*entry, *[None] * (8 - len(entry))]

    def pieces(self, entry: list[Any]) -> Iterator[tuple[int, bytes]]:
        """5: a file's bytes, each run with its place."""
        size, inline, page_map, map_id = entry[1], *entry[5:8]
        if inline is not None:
            yield 0, inline
            return
        page = self.manifest["page_size"]
        encoded = page_map if map_id is None else self.repository.content(map_id)
        for first, pages, content_page, content_id in struct.iter_unpack("<III32s", encoded or b""):
            run = self.repository.content(content_id)[content_page * page : (content_page + pages) * page]
            wanted = min(pages * page, size - first * page)
            if len(run) < wanted:
                raise Refused(f"the content {content_id.hex()} is shorter than the map of {entry[0]!r} says")
            yield first * page, run[:wanted]

    def place(self, path: bytes) -> bytes:
        if b".." in path.split(b"/"):
            raise Refused(f"{path!r} leads out of the data directory")
        root = b"/".join(path.split(b"/")[:2])
        root = root if root in self.places else b""
        return os.path.join(self.places[root], path[len(root) :].lstrip(b"/"))

    def write(self, place: bytes, mode: int, pieces: Iterator[tuple[int, bytes]], size: int) -> None:
        with open(place, "xb") as file:
            for start, piece in pieces:
                file.seek(start)
                file.write(piece)
            file.truncate(size)
        self.give(place, mode)

    def give(self, place: bytes, mode: int) -> None:
        os.chmod(place, mode & 0o7777)
        if self.owner is not None:
            shutil.chown(place, self.owner)


def take_wal(repository: Repository, directory: Path) -> int:
    """8.2: write all WAL as files that a restore_command can copy; pieces of a segment are joined. Their number."""
    newest = {name.split("/")[1]: name for name in repository.backups()}
    sizes = {cluster: repository.manifest(name)["wal"]["segment_size"] for cluster, name in newest.items()}
    files: dict[tuple[str, str], list[str]] = {}
    for parts in (name.split("/") for name in repository.names("clusters/")):
        if parts[2] == "wal" and not parts[-1].endswith(".backup"):
            file = parts[-1] if parts[-1].endswith(".history") else parts[-1][:24]
            files.setdefault((parts[1], file), []).append(parts[-1])
    for (cluster, file), pieces in files.items():
        plain = b""
        for piece in [file] if file in pieces else sorted(pieces):
            start, end = (int(at, 16) for at in piece[25:].split("-")) if "-" in piece else (0, 1)
            # what another server has archived as .partial sorts last, and counts where there is nothing else
            if start <= len(plain) < end:
                plain = plain[:start] + repository.wal(int(cluster), piece)
        (directory / cluster).mkdir(parents=True, exist_ok=True)
        wanted = 0 if file.endswith(".history") else sizes.get(cluster, 16 << 20)
        (directory / cluster / file).write_bytes(plain.ljust(wanted, b"\0"))
    return len(files)


def described(repository: Repository, name: str) -> str:
    try:
        found = repository.manifest(name)
    except Refused as error:
        return str(error)
    version, size = found["server_version"] // 10000, found["logical_size"]
    return f"{found['id']}  {found['cluster']}  PostgreSQL {version}  {size:,} bytes"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("list", "restore", "wal"):
        command = commands.add_parser(name)
        command.add_argument("repository", type=Path)
        if name == "restore":
            command.add_argument("backup", help="an id, the beginning of one, or latest")
            command.add_argument("--tablespace", action="append", default=[], metavar="OLD=NEW")
            command.add_argument("--owner", help="the account that PostgreSQL runs as")
        if name != "list":
            command.add_argument("directory", type=Path, help="empty, or not there yet")
        command.add_argument("--key-file", type=Path, help="a key file, or a file with the recovery key")
        command.add_argument("--passphrase-file", type=Path)
        command.add_argument("--gpg", action="store_true", help="the gpg program opens it, with this user's key rings")
        command.add_argument("--kms-plaintext", type=Path, metavar="FILE", help="what AWS KMS decrypted, in Base64")
    options = parser.parse_args()
    try:
        repository = Repository(options.repository, functools.partial(secret_of, options))
        if options.command == "list":
            sys.stdout.writelines(f"{described(repository, name)}\n" for name in repository.backups())
        elif options.command == "wal":
            sys.stdout.write(f"{take_wal(repository, options.directory)} files of WAL are in {options.directory}\n")
        else:
            names, wanted = repository.backups(), options.backup
            names = names[-1:] if wanted == "latest" else [n for n in names if n.split("/")[-1].startswith(wanted)]
            if len(names) != 1:
                raise Refused(f"{len(names)} backups are called {wanted}; see: list")
            Restore(repository, repository.manifest(names[0]), options).run()
            sys.stdout.write(f"backup {names[0].split('/')[-1]} is in {options.directory}: start the server there\n")
    except (Refused, OSError, ValueError, LookupError, zstandard.ZstdError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
