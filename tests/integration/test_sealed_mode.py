"""Sealed mode against an intruder: he has the database host's key, its configuration and the repository, and wants history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pgkeep.cli.main import execute
from pgkeep.errors import DamageError, KeyFailure
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.repository.sealed import ObjectType, read_sealed
from pgkeep.setup_cluster import carry_out, plan_setup
from support.jobs import backup, restore, running_copy, server_place
from support.servers import TEST_SETTINGS, dump_all, sql
from support.wal import change_setting, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries

SECRET = "the secret of all secrets"
CANNOT = "this key adds to the repository and does not read data or WAL back"


class Host:
    """A database host: its server, its configuration and key, the repository; and the recovery key, which it does not have."""

    def __init__(self, server: ThrowawayServer) -> None:
        self.server = server
        self.directory = server.directory / "pgkeep"
        self.directory.mkdir(mode=0o755)
        self.address = f"file://{self.directory}/repository"
        self.recovery_key = server.directory / "elsewhere.key"

    def run(self, capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, dict[str, Any]]:
        """Exit code and JSON document of a command with the host's configuration."""
        capsys.readouterr()
        code = execute(["--config", str(self.directory / "pgkeep.toml"), *map(str, words), "--json"])
        return code, json.loads(capsys.readouterr().out)

    def opened(self, *, reads: bool) -> Repository:
        """The repository, by the recovery key or by the host's own."""
        key = self.recovery_key if reads else self.directory / "pgkeep.key"
        return Repository.open(open_store(self.address), KeyFile.read(key))


@pytest.fixture(scope="module")
def host(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[Host]:
    """With a full backup and an incremental one of two days, both taken with the host's key."""
    with ThrowawayServer(binaries_of(18), parent=work_root) as server:
        server.initdb()
        server.start(TEST_SETTINGS)
        change_setting(server.dsn(), "summarize_wal", "on")
        until(lambda: sql(server.dsn(), "SHOW summarize_wal") == [("on",)], "the setting")
        host = Host(server)
        config = host.directory / "pgkeep.toml"
        plan = plan_setup(server.dsn(), config_path=config, name="auth", urls=[host.address], sealed=True)
        host.recovery_key.write_text(carry_out(plan, None).recovery_keys["auth"])
        yesterday = f"CREATE TABLE accounts AS SELECT i, '{SECRET} ' || i AS word FROM generate_series(1, 20000) i"
        sql(server.dsn(), yesterday)
        sql(server.dsn(), f"ALTER SYSTEM SET primary_conninfo = 'password={SECRET.replace(' ', '_')}'")
        backup(server.dsn(), host.opened(reads=False), cluster="auth")
        sql(server.dsn(), "UPDATE accounts SET word = 'new ' || i WHERE i % 500 = 0")
        backup(server.dsn(), host.opened(reads=False), cluster="auth")
        yield host


READS = {
    "restore": ("restore", "--target-dir", "TARGET"),
    "restore a backup as it is": ("restore", "latest", "--target-dir", "TARGET"),
    "plan a restore": ("restore", "--target-dir", "TARGET", "--plan"),
    "verify": ("verify", "--content"),
    "export": ("export", "latest", "TARGET"),
}


@pytest.mark.parametrize("words", READS.values(), ids=READS)
def test_the_hosts_key_reads_nothing_back(
    host: Host, words: tuple[str, ...], work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """He is told so, by the same words everywhere, before anything is made."""
    target = work_dir / "target"
    code, document = host.run(capsys, *(str(target) if word == "TARGET" else word for word in words))

    assert (code, document["error"]["message"]) == (7, CANNOT)
    assert "--key-file" in document["error"]["hint"]
    assert not target.exists()


@pytest.mark.parametrize("words", READS.values(), ids=READS)
def test_the_recovery_key_reads_everything_back(
    host: Host, words: tuple[str, ...], work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tuple(str(work_dir / "target") if word == "TARGET" else word for word in words)

    assert host.run(capsys, *words, "--key-file", host.recovery_key)[0] == 0


def test_wal_is_fetched_with_the_recovery_key_alone(
    host: Host, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And for the server, that WAL cannot be read is never that there is none."""
    segment = host.opened(reads=False).catalog.find("latest", "auth").wal.segments[0]
    place = work_dir / segment

    refused = execute(["--config", str(host.directory / "pgkeep.toml"), "wal", "fetch", segment, str(place)])
    said = capsys.readouterr().err
    key = ("--key-file", str(host.recovery_key))
    fetched = execute(["--config", str(host.directory / "pgkeep.toml"), "wal", "fetch", segment, str(place), *key])

    assert refused > 125
    assert CANNOT in said
    assert fetched == 0
    assert place.stat().st_size == 16 << 20


def test_what_the_recovery_key_restores_is_the_cluster(
    host: Host, binaries_of: Callable[[int], ServerBinaries]
) -> None:
    target = server_place(host.server.directory / "restored")
    restore(host.opened(reads=True), target / "data")

    with running_copy(target / "data", binaries_of(18)) as copy:
        assert dump_all(copy) == dump_all(host.server)


def test_backups_with_the_hosts_key_are_incremental(host: Host) -> None:
    """Only what changed since the first is stored by the second."""
    first, second, *_ = host.opened(reads=False).catalog.read_all("auth")

    assert (first.kind, second.kind) == ("full", "incremental")
    assert second.new_size < first.new_size / 3
    assert [manifest.unexplained_pages for manifest in (first, second)] == [[], []]


def test_nothing_that_the_hosts_key_opens_has_a_word_of_the_data(host: Host) -> None:
    """Manifests, listings, maps and all other metadata; small files are data too, and passwords in settings are small files."""
    mine = host.opened(reads=False)
    opened = b""
    for info in mine.store.list("packs/"):
        for entry in [entry for name, entries in _tables(mine) if name == info.name for entry in entries]:
            try:
                opened += b"".join(plain for _, plain in mine.reader().read(info.name, [entry]))
            except KeyFailure:
                assert info.name.startswith("packs/data/")
    for info in mine.store.list("clusters/"):
        for kind in ObjectType:
            try:
                opened += read_sealed(mine.store, mine.keys, info.name, kind)
            except KeyFailure:
                assert "/wal/" in info.name
            except DamageError:
                continue
    read = b"".join(
        plain
        for name, entries in _tables(host.opened(reads=True))
        for _, plain in host.opened(reads=True).reader().read(name, entries)
    )

    for word in (SECRET.encode(), SECRET.replace(" ", "_").encode()):
        assert word in read
        assert word not in opened
    assert b"pg_control" in opened, "names of files are metadata"


def _tables(repository: Repository) -> list[tuple[str, list[Any]]]:
    from pgkeep.repository.packs import read_pack_table

    return [
        (info.name, read_pack_table(repository.store, repository.keys, info.name))
        for info in repository.store.list("packs/")
    ]


def test_files_that_are_read_whole_are_compared_by_cells_and_restore_right(
    host: Host, binaries_of: Callable[[int], ServerBinaries], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no WAL summaries tell what changed, a cell with a changed page is stored whole: its old pages cannot be looked at."""
    dsn = host.server.dsn()
    change_setting(dsn, "summarize_wal", "off")
    until(lambda: sql(dsn, "SHOW summarize_wal") == [("off",)], "the setting")
    sql(dsn, "UPDATE accounts SET word = 'newer ' || i WHERE i % 700 = 0")
    taken = backup(dsn, host.opened(reads=False), cluster="auth")
    full = backup(dsn, Repository.create(open_store(f"{host.directory}/other"), KeyFile.new()), cluster="auth")

    assert (taken.kind, taken.parent != "") == ("full", True)
    assert taken.new_size < full.new_size / 2
    assert host.run(capsys, "verify", taken.id, "--content", "--key-file", host.recovery_key)[0] == 0
    target = server_place(host.server.directory / "whole")
    restore(host.opened(reads=True), target / "data", backup=taken.id)
    with running_copy(target / "data", binaries_of(18)) as copy:
        assert dump_all(copy) == dump_all(host.server)


def test_the_hosts_own_commands_work_with_its_key(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert host.run(capsys, "list")[0] == 0
    assert host.run(capsys, "show", "latest")[0] == 0
    assert host.run(capsys, "check")[0] == 0
    assert host.run(capsys, "verify", "--scrub")[0] == 0
    code, document = host.run(capsys, "wal", "status")
    assert [found["error"] for found in document["repositories"]] == [None], code


def test_the_hosts_key_lets_nobody_read(host: Host, work_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """He adds no key of his own, makes no sheet, and takes no slot away from others but by deleting objects of the store."""
    for words in (("key", "add", f"file:{work_dir}/his.key"), ("key", "export", f"{work_dir}/sheet.html")):
        code, document = host.run(capsys, *words)
        assert (code, document["error"]["message"]) == (
            7,
            "this key adds to the repository only, and cannot let others read it",
        )
    assert list(work_dir.iterdir()) == []
    code, document = host.run(capsys, "key", "verify", f"file:{host.directory}/pgkeep.key")
    assert code == 7
    assert "adds to the repository and does not read" in document["error"]["message"]


def test_the_recovery_key_is_proved_on_manifest_data_and_wal(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = host.run(capsys, "key", "verify", host.recovery_key)

    kinds = {name.split("/")[2 if name.startswith("clusters/") else 1] for name in document["decrypted"]}
    assert (code, kinds) == (0, {"backups", "data", "wal"})
