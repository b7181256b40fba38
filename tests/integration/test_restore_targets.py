"""Where a restore may write and what it makes of it: other accounts' rights, mount points, leftovers, settings of the copy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pgkeep.errors import TargetError
from pgkeep.postgres.account import give_to, run_as, server_account
from pgkeep.postgres.server import Server, ThrowawayServer
from pgkeep.repository import Repository, open_store
from pgkeep.restore import RestoreRequest, export_tar, make_plan
from pgkeep.restore import job as restore_job
from support.jobs import backup, new_repository, restore, running_copy, server_place
from support.servers import TEST_SETTINGS, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries


@pytest.fixture(scope="module")
def tablespace(work_root: Path) -> Path:
    """A place of the operator's own for a tablespace."""
    return server_place(work_root / "fast disk")


@pytest.fixture(scope="module")
def service(
    binaries_of: Callable[[int], ServerBinaries], work_root: Path, tablespace: Path
) -> Iterator[ThrowawayServer]:
    """A server that archives, and has a table in a tablespace."""
    with ThrowawayServer(binaries_of(17), parent=work_root) as server:
        server.initdb()
        server.configure("archive_mode = on\narchive_command = 'test -n %f'")
        server.start(TEST_SETTINGS)
        sql(server.dsn(), f"CREATE TABLESPACE apart LOCATION '{tablespace}'")
        sql(server.dsn(), "CREATE TABLE elsewhere TABLESPACE apart AS SELECT generate_series(1, 1000) AS id")
        yield server


@pytest.fixture(scope="module")
def readable(service: ThrowawayServer, work_root: Path) -> Path:
    """A repository with a backup that is not encrypted, as the server's account owns it."""
    place = work_root / "readable"
    backup(service.dsn(), new_repository(place, encrypted=False))
    for directory, _, names in os.walk(place):
        give_to(server_account(), Path(directory), *(Path(directory, name) for name in names))
    return place


@pytest.fixture
def repository(readable: Path) -> Repository:
    """The same, opened."""
    return Repository.open(open_store(str(readable)), None)


def pgkeep(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """The real program, as an ordinary user: exit code and JSON."""
    answer = run_as(server_account(), [sys.executable, "-m", "pgkeep", *arguments, "--json"], timeout=120)
    return answer.returncode, json.loads(answer.stdout)


def test_an_ordinary_user_restores_into_an_empty_directory_of_his_own(
    readable: Path, work_dir: Path, tablespace: Path, service: ThrowawayServer
) -> None:
    """As on Debian, where the directory above belongs to root."""
    above = server_place(work_dir / "above")
    server_place(above / "target")
    above.chmod(0o555)
    try:
        code, answer = pgkeep(
            "restore",
            "--repository",
            f"file://{readable}",
            "--target-dir",
            above / "target",
            "--tablespace",
            f"{tablespace}={server_place(work_dir / 'ts')}",
        )
    finally:
        above.chmod(0o755)

    assert code == 0, answer
    run_program(service, "pg_verifybackup", "--exit-on-error", above / "target")


@pytest.mark.parametrize(("command", "expected"), [("restore", 12), ("export", 12), ("verify", 9)])
def test_a_directory_without_the_right_to_write_is_named(
    readable: Path, work_dir: Path, tablespace: Path, command: str, expected: int
) -> None:
    """One clear error with its hint; nothing is changed."""
    closed = server_place(work_dir / "closed")
    store = readable if command != "verify" else closed / "repository"
    if command == "verify":
        subprocess.run(["cp", "-a", readable, store], check=True)
    closed.chmod(0o555 if command != "verify" else 0o000)
    repository = ("--repository", f"file://{store}")
    arguments: dict[str, tuple[str | Path, ...]] = {
        "restore": ("--target-dir", closed / "copy", "--tablespace", f"{tablespace}={work_dir / 'ts'}"),
        "export": ("latest", closed / "copy"),
        "verify": ("--scrub",),
    }

    code, answer = pgkeep(command, *arguments[command], *repository)

    closed.chmod(0o755)
    assert code == answer["error"]["code"] == expected, answer
    assert str(closed) in answer["error"]["message"]
    assert answer["error"]["hint"]
    assert not (closed / "copy").exists()


def test_a_repository_that_can_only_be_read_is_good_for_all_that_reads(
    readable: Path, work_dir: Path, tablespace: Path
) -> None:
    """A mirror, or a medium that was locked: nothing but the memory of a verification is lost, and a note says so."""
    mirror = work_dir / "mirror"
    subprocess.run(["cp", "-a", readable, mirror], check=True)
    subprocess.run(["chmod", "-R", "a-w", mirror], check=True)
    place = ("--repository", f"file://{mirror}")
    own = server_place(work_dir / "own")

    answers = [
        pgkeep("list", *place),
        pgkeep("verify", *place),
        pgkeep("restore", *place, "--target-dir", own / "copy", "--tablespace", f"{tablespace}={own / 'ts'}"),
        pgkeep("export", "latest", own / "exported", *place),
    ]

    subprocess.run(["chmod", "-R", "u+w", mirror], check=True)
    assert [code for code, _ in answers] == [0, 0, 0, 0], answers
    assert answers[1][1]["ok"]


@pytest.mark.parametrize("where", ["repository", ".", "repository/below", "link"])
def test_a_restore_does_not_take_the_repository_for_its_target(
    readable: Path, work_dir: Path, tablespace: Path, where: str
) -> None:
    """It would be moved aside: neither the repository, nor what holds it, nor what lies in it."""
    subprocess.run(["cp", "-a", readable, work_dir / "repository"], check=True)
    (work_dir / "link").symlink_to(work_dir / "repository")
    repository = Repository.open(open_store(str(work_dir / "repository")), None)

    with pytest.raises(TargetError, match="within each other"):
        restore(repository, work_dir / where, tablespaces={str(tablespace): "/tmp/apart"})
    with pytest.raises(TargetError, match="within each other"):
        export_tar(repository, repository.catalog.find("latest"), work_dir / where)

    assert sorted(path.name for path in work_dir.iterdir()) == ["link", "repository"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--target-dir", ""), 2),
        (("--target-dir", "/tmp/pgkeep-none", "--set", "port=abc", "--start"), 2),
        (("--target-dir", "/tmp/pgkeep-none", "--set", "port=99999", "--start"), 2),
        (("--target-dir", "/tmp/" + "n" * 300), 12),
        (("--target-dir", "/proc/copy"), 12),
    ],
    ids=["no name", "no port", "no such port", "a name too long", "a place that takes nothing"],
)
def test_what_cannot_be_is_refused_before_anything_is_touched(
    readable: Path, tablespace: Path, work_dir: Path, arguments: tuple[str, ...], expected: int
) -> None:
    """One clear error and its hint."""
    places = ("--repository", f"file://{readable}", "--tablespace", f"{tablespace}={work_dir / 'ts'}")

    code, answer = pgkeep("restore", *places, *arguments)

    assert code == answer["error"]["code"] == expected, answer
    assert answer["error"]["hint"]
    assert list(work_dir.iterdir()) == []


def test_room_is_measured_where_the_bytes_will_lie(readable: Path, work_dir: Path, tablespace: Path) -> None:
    """An empty mount point has another file system than the directory above it."""
    disk = work_dir / "disk"
    disk.mkdir()
    # a mount of our own that goes away with the process; an ordinary user may have one in a user namespace
    namespace = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    mount = f'mount -t tmpfs -o size=200m tmpfs {disk} && exec "$0" "$@"'
    program = [sys.executable, "-m", "pgkeep", "restore", "--repository", f"file://{readable}", "--plan", "--json"]
    places = ["--target-dir", str(disk), "--tablespace", f"{tablespace}={work_dir / 'ts'}"]

    answer = subprocess.run([*namespace, "sh", "-c", mount, *program, *places], capture_output=True, check=False)

    assert answer.returncode == 0, answer
    room = {place["place"]: place["free_bytes"] for place in json.loads(answer.stdout)["plan"]["room"]}
    assert list(room) == [str(disk), str(work_dir / "ts")]
    assert room[str(disk)] <= 200 << 20


def test_a_restore_that_broke_off_is_cleared_by_the_next_with_its_tablespaces(
    repository: Repository,
    work_dir: Path,
    service: ThrowawayServer,
    tablespace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing of it is taken for somebody's data and moved aside, and nothing of it can be started."""
    target, mapped = work_dir / "copy", {str(tablespace): str(work_dir / "ts")}

    def full(_places: list[bytes]) -> None:
        raise TargetError("the disk broke", hint="for this test")

    with monkeypatch.context() as patch:
        patch.setattr(restore_job, "sync_file_systems", full)
        with pytest.raises(TargetError, match="the disk broke"):
            restore(repository, target, tablespaces=mapped)
    assert not (target / "global" / "pg_control").exists()
    assert any((work_dir / "ts").iterdir())

    outcome = restore(repository, target, tablespaces=mapped)

    assert outcome.plan.moved_aside == []
    assert sorted(path.name for path in work_dir.iterdir()) == ["copy", "ts"]
    run_program(service, "pg_verifybackup", "--exit-on-error", target)
    with running_copy(target, service.binaries) as copy:
        assert sql(copy.dsn(), "SELECT count(*) FROM elsewhere") == [(1000,)]


def test_a_started_copy_reports_what_it_reached_and_archives_nothing(
    repository: Repository, work_dir: Path, service: ThrowawayServer, tablespace: Path
) -> None:
    """Its LSN is at or after the backup's stop, on a timeline of its own; no setting of the recovery is left."""
    target = work_dir / "copy"

    outcome = restore(repository, target, tablespaces={str(tablespace): str(work_dir / "ts")}, start=True)

    copy = Server(target, service.binaries)
    try:
        assert outcome.recovery is not None
        assert outcome.dsn is not None
        manifest = outcome.plan.manifest
        assert (outcome.recovery.lsn >= manifest.stop_lsn, outcome.recovery.timeline) == (True, 2)
        assert sql(outcome.dsn, "SHOW archive_mode") == [("off",)]
        assert sql(outcome.dsn, "SELECT pg_is_in_recovery()") == [(False,)]
        left = sql(outcome.dsn, "SELECT name FROM pg_file_settings WHERE name ~ '^(recovery|restore|primary)_'")
        assert left == []
        assert not (target / "recovery.signal").exists()
        with pytest.raises(TargetError, match="a PostgreSQL server runs on"):
            make_plan(RestoreRequest(target=str(target), tablespaces={str(tablespace): "/tmp/ts"}), repository)
    finally:
        copy.stop()


def test_archiving_stays_on_where_that_is_asked_for(
    repository: Repository, work_dir: Path, service: ThrowawayServer, tablespace: Path
) -> None:
    """When the copy takes its origin's place."""
    place = {str(tablespace): str(work_dir / "ts")}

    outcome = restore(repository, work_dir / "copy", tablespaces=place, keep_archiving=True)

    assert not any("archiving" in note for note in outcome.notes)
    with running_copy(work_dir / "copy", service.binaries) as copy:
        assert sql(copy.dsn(), "SHOW archive_mode") == [("on",)]
        assert sql(copy.dsn(), "SHOW archive_command") == [("test -n %f",)]
