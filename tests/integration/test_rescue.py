"""The stand-alone reader: one file and three packages restore what pgkeep has stored, and PostgreSQL's programs judge it."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.postgres.account import give_to, server_account
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.repository import KeyFile, Passphrase, Repository, open_store
from pgkeep.repository.keys.aws_kms import AwsKmsKey
from pgkeep.repository.keys.openpgp import OpenPgpRecipient
from pgkeep.repository.manifests import Manifest
from pgkeep.repository.tree import BackupTree
from pgkeep.repository.wal_objects import piece_name
from pgkeep.restore.backup_manifest import backup_manifest
from support.gpg_home import key_ring
from support.jobs import KEY, SMALL, backup, running_copy, server_place
from support.servers import TEST_SETTINGS, dump_all, run_program, sql
from support.simulated_kms import simulated_kms

if TYPE_CHECKING:
    from pgkeep.postgres.binaries import ServerBinaries
    from support.seaweed import S3Bucket

RESCUE = Path(__file__).parents[2] / "tools" / "pgkeep_rescue.py"
HOST, SHEET = KeyFile(b"\1" * 32), KeyFile(b"\2" * 32)
PACKAGES = ("zstandard", "blake3", "cryptography", "cffi", "_cffi_backend*")
"""Those that the document names, and what they are made of."""


START = "import runpy, sys; sys.path.append(sys.argv[1]); del sys.argv[:2]; runpy.run_path(sys.argv[0], run_name='__main__')"


class Rescue:
    """Runs the one file with an interpreter that has the three packages and nothing else."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        site = Path(sys.modules["cryptography"].__path__[0]).parent
        packages = directory / "packages"
        packages.mkdir(parents=True)
        for pattern in PACKAGES:
            for found in site.glob(pattern):
                (packages / found.name).symlink_to(found)
        shutil.copy(RESCUE, directory)
        # -S leaves site-packages out, so that nothing of pgkeep can be imported
        self.interpreter = [sys.executable, "-I", "-S", "-c"]
        self.packages = str(packages)

    def run(self, *words: str | Path, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Its exit code and what it said."""
        return subprocess.run(
            [*self.interpreter, START, self.packages, str(self.directory / RESCUE.name), *map(str, words)],
            input=given,
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            check=False,
        )

    def succeed(self, *words: str | Path, **environment: str) -> str:
        done = self.run(*words, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def key_file(self, key: KeyFile) -> Path:
        """A file with the key."""
        place = self.directory / f"{key.text()[8:12]}.key"
        place.write_text(key.text().lower().replace("-", " "))
        return place


@pytest.fixture(scope="module")
def rescue(work_root: Path) -> Iterator[Rescue]:
    place = work_root / "rescue"
    yield Rescue(place)
    shutil.rmtree(place)


class Kept:
    """A server with a tablespace and changes, and its backups in repositories of several kinds."""

    def __init__(self, server: ThrowawayServer) -> None:
        self.server = server
        self.tablespace = server_place(server.directory / "테이블 스페이스")
        sql(server.dsn(), f"CREATE TABLESPACE apart LOCATION '{self.tablespace}'")
        sql(server.dsn(), "CREATE TABLE t AS SELECT i, i::text || ' 가격' AS word FROM generate_series(1, 30000) i")
        sql(server.dsn(), "CREATE TABLE elsewhere TABLESPACE apart AS SELECT * FROM t")

    def repository(self, name: str, secret: KeyFile | None, **options: object) -> Repository:
        place = self.server.directory / name
        return Repository.create(open_store(str(place)), secret, SMALL, **options)  # type: ignore[arg-type]

    def change(self, number: int) -> None:
        """A few pages here and there."""
        sql(self.server.dsn(), f"UPDATE t SET word = word || ' {number}' WHERE i % 1000 = {number}")
        sql(self.server.dsn(), f"UPDATE elsewhere SET word = word || ' {number}' WHERE i = {number}")

    def judge(self, rescue: Rescue, place: Path, repository: Repository, manifest: Manifest, *key: str | Path) -> Path:
        """Restore with the one file, and have pg_verifybackup compare all of it; the data directory."""
        target = server_place(place) / "data"
        moved = f"{self.tablespace}={place / 'apart'}"
        account = server_account()
        owner = () if account is None else ("--owner", account.name)
        where = repository.store.url.removeprefix("file://")
        rescue.succeed("restore", where, manifest.id, target, "--tablespace", moved, *owner, *key)
        with (target / "backup_manifest").open("wb") as file:
            file.writelines(backup_manifest(BackupTree(manifest, repository.reader())))
        give_to(server_account(), target / "backup_manifest")
        # settings that make a copy harmless are added to the one, and links that are made stand for the other
        ignored = ("--ignore", "postgresql.auto.conf", "--ignore", "tablespace_map")
        run_program(self.server, "pg_verifybackup", "--exit-on-error", *ignored, target)
        return target


@pytest.fixture(scope="module")
def kept(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[Kept]:
    with ThrowawayServer(binaries_of(18), parent=work_root) as server:
        server.initdb()
        server.start({**TEST_SETTINGS, "summarize_wal": True})
        yield Kept(server)


def test_nothing_of_pgkeep_is_there_to_help(rescue: Rescue) -> None:
    source = RESCUE.read_text()
    assert len(source.splitlines()) < 500
    done = subprocess.run(
        [*rescue.interpreter, "import sys; sys.path.append(sys.argv[1]); import blake3, pgkeep", rescue.packages],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "No module named 'pgkeep'" in done.stderr


def test_an_incremental_backup_under_a_later_root_key_starts_and_has_all_rows(
    kept: Kept, rescue: Rescue, work_dir: Path, binaries_of: Callable[[int], ServerBinaries]
) -> None:
    repository = kept.repository("encrypted", KEY)
    backup(kept.server.dsn(), repository)
    kept.change(1)
    repository.slots.new_root()
    repository.slots.add(SHEET)
    repository.slots.new_root()
    manifest = backup(kept.server.dsn(), repository)
    assert manifest.kind == "incremental"

    listed = rescue.succeed("list", repository.store.url.removeprefix("file://"), "--key-file", rescue.key_file(KEY))
    target = kept.judge(rescue, work_dir / "place", repository, manifest, "--key-file", rescue.key_file(SHEET))

    assert manifest.id in listed
    with running_copy(target, binaries_of(18)) as copy:
        assert dump_all(copy) == dump_all(kept.server).replace(str(kept.tablespace), str(work_dir / "place" / "apart"))


def test_a_repository_without_encryption_needs_no_key(kept: Kept, rescue: Rescue, work_dir: Path) -> None:
    repository = kept.repository("plain", None)
    manifest = backup(kept.server.dsn(), repository)

    kept.judge(rescue, work_dir / "place", repository, manifest)


def test_sealed_mode_opens_with_the_key_that_reads_and_with_no_other(
    kept: Kept, rescue: Rescue, work_dir: Path
) -> None:
    host = kept.repository("sealed", HOST, reader=SHEET)
    backup(kept.server.dsn(), host)
    kept.change(2)
    manifest = backup(kept.server.dsn(), host)
    reader = Repository.open(host.store, SHEET)

    kept.judge(rescue, work_dir / "place", reader, manifest, "--key-file", rescue.key_file(SHEET))

    where = host.store.url.removeprefix("file://")
    moved = ("--tablespace", f"{kept.tablespace}={work_dir}/apart")
    refused = rescue.run("restore", where, "latest", work_dir / "no", *moved, "--key-file", rescue.key_file(HOST))
    assert refused.returncode == 1
    assert refused.stderr == (
        "error: this key adds to the repository and does not read data or WAL back: give one that reads\n"
    )


def test_every_kind_of_slot_opens_with_what_its_owner_has(kept: Kept, rescue: Rescue, work_dir: Path) -> None:
    """A passphrase, a key ring of gpg, and what AWS KMS (simulated here) has decrypted."""
    repository = kept.repository("slots", KEY)
    where = work_dir / "slots"
    manifest = backup(kept.server.dsn(), repository)
    with key_ring() as home, simulated_kms() as kms, pytest.MonkeyPatch.context() as patch:
        for name, value in {**kms.environment, "GNUPGHOME": str(home.directory)}.items():
            patch.setenv(name, value)
        kms.new_key("alias/backups")
        repository.slots.add(Passphrase("žluťoučký kůň"))
        repository.slots.add(OpenPgpRecipient(home.new_key("Ann <ann@example.com>")))
        slot = repository.slots.add(AwsKmsKey("alias/backups"))
        # a mirror: objects, and nothing that a file system adds
        for info in repository.store.list(""):
            (where / info.name).parent.mkdir(parents=True, exist_ok=True)
            (where / info.name).write_bytes(repository.store.get(info.name))
        (work_dir / "passphrase").write_text("žluťoučký kůň\n")
        request = {"CiphertextBlob": slot.fields["blob"], "EncryptionContext": {"pgkeep": repository.keys.family.hex()}}
        (work_dir / "plain").write_text(kms.answer("Decrypt", request)["Plaintext"] + "\n")
        options: Sequence[tuple[str | Path, ...]] = (
            ("--passphrase-file", work_dir / "passphrase"),
            ("--gpg",),
            ("--kms-plaintext", work_dir / "plain"),
            ("--key-file", rescue.key_file(KEY)),
        )
        for option in options:
            assert manifest.id in rescue.succeed("list", where, *option)
        (work_dir / "wrong").write_text(base64.b64encode(bytes(32)).decode())
        wrong = rescue.run("list", where, "--kms-plaintext", work_dir / "wrong")
    assert (wrong.returncode, wrong.stderr) == (1, "error: no key slot of kind aws-kms opens with it\n")


def test_all_wal_comes_out_of_a_mirrored_bucket_and_leads_to_a_later_moment(
    kept: Kept, rescue: Rescue, work_dir: Path, s3_bucket: S3Bucket, binaries_of: Callable[[int], ServerBinaries]
) -> None:
    repository = Repository.create(open_store(s3_bucket.url), KEY, SMALL)
    kept.change(3)
    manifest = backup(kept.server.dsn(), repository)
    kept.change(4)
    sql(kept.server.dsn(), "SELECT pg_switch_wal()")
    ((current,),) = sql(kept.server.dsn(), "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
    held = kept.server.data_directory / "pg_wal"
    names = sorted(path.name for path in held.iterdir() if manifest.wal.segments[-1] < path.name < current)
    archive = repository.wal(manifest.system_identifier)
    for name in names[:-1]:
        archive.put(name, (held / name).read_bytes())
    last = (held / names[-1]).read_bytes()
    for start, end in ((0, 5000), (0, 100_000), (90_000, len(last))):
        archive.put(piece_name(names[-1], start, end), last[start:end])
    mirror = work_dir / "mirror"
    for info in repository.store.list(""):
        (mirror / info.name).parent.mkdir(parents=True, exist_ok=True)
        (mirror / info.name).write_bytes(repository.store.get(info.name))
    copied = Repository.open(open_store(str(mirror)), KEY)
    key = ("--key-file", rescue.key_file(KEY))

    target = kept.judge(rescue, work_dir / "place", copied, manifest, *key)
    rescue.succeed("wal", mirror, work_dir / "wal", *key)

    taken = work_dir / "wal" / str(manifest.system_identifier)
    assert (taken / names[-1]).read_bytes() == last
    (target / "recovery.signal").touch()
    with (target / "postgresql.auto.conf").open("a") as file:
        file.write(f"restore_command = 'cp {taken}/%f %p'\nrecovery_target_action = 'promote'\n")
    give_to(server_account(), target / "recovery.signal", work_dir / "wal", taken, *taken.iterdir())
    with running_copy(target, binaries_of(18)) as copy:
        assert sql(copy.dsn(), "SELECT count(*) FROM t WHERE word LIKE '% 4'") == [(30,)]


def test_a_damaged_object_is_named_and_the_control_file_is_not_there(
    kept: Kept, rescue: Rescue, work_dir: Path
) -> None:
    repository = kept.repository("damaged", KEY)
    manifest = backup(kept.server.dsn(), repository)
    root = Path(repository.store.url.removeprefix("file://"))
    pack = max(root.glob("packs/data/*/*"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)

    moved = ("--tablespace", f"{kept.tablespace}={work_dir}/apart")
    done = rescue.run("restore", root, manifest.id, work_dir / "x", *moved, "--key-file", rescue.key_file(KEY))

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {pack.relative_to(root)} is damaged: its bytes are not what was sealed here")
    assert not (work_dir / "x" / "global" / "pg_control").exists()


def test_what_is_no_repository_is_one_clear_sentence(rescue: Rescue) -> None:
    done = rescue.run("list", "/nowhere")
    assert (done.returncode, done.stderr) == (1, "error: /nowhere/pgkeep.json is missing\n")
