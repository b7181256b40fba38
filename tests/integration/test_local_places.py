"""Whose data directory it is, whether it can be read here, and from which servers."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from pgkeep.backup import BackupRequest, run_backup
from pgkeep.backup.local import find_place
from pgkeep.errors import PgkeepError, ServerError, ServerSettingError
from support.incremental import expect_equal_copy, quiet_server
from support.jobs import backup, new_repository, server_place
from support.local import AtCopying
from support.servers import sql
from support.wal import promote, standby_of, system_identifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.backup.local import LocalPlace
    from pgkeep.postgres.server import Server, ThrowawayServer
    from support.servers import MakeServer

_NOBODY = 65534


def place_of(
    dsn: str, mode: Literal["auto", "stream", "local"] = "auto", data_directory: Path | None = None
) -> tuple[LocalPlace | None, str]:
    named = None if data_directory is None else str(data_directory)
    request = BackupRequest(cluster="test", dsn=dsn, mode=mode, data_directory=named)
    return find_place(request, system_identifier(dsn))


def expect_stream(reason: str, dsn: str, data_directory: Path | None = None) -> str:
    """``auto`` streams and says why; ``local`` fails for the same reason. Returns the hint."""
    place, why = place_of(dsn, "auto", data_directory)
    assert place is None
    assert why.startswith("pages come over the replication protocol: ")
    assert reason in why
    with pytest.raises(ServerError, match=reason) as raised:
        place_of(dsn, "local", data_directory)
    return raised.value.hint or ""


def test_the_servers_own_directory_is_chosen(server: ThrowawayServer) -> None:
    """Whether the server says where it is or the configuration does."""
    for named in (None, server.data_directory, server.data_directory / ".." / server.data_directory.name):
        place, why = place_of(server.dsn(), "auto", named)
        assert place is not None
        assert place.directory == os.fsencode(server.data_directory)
        assert why == f"pages come from {server.data_directory}, which is the server's own and can be read here"


def test_streaming_can_be_asked_for(server: ThrowawayServer) -> None:
    assert place_of(server.dsn(), "stream") == (None, "pages come over the replication protocol, as was asked for")


def test_a_directory_that_is_not_here(server: ThrowawayServer) -> None:
    hint = expect_stream("is not on this machine", server.dsn(), Path("/nowhere/at/all"))
    assert "data_directory" in hint


def test_a_directory_of_another_cluster(shared_server: Callable[[int], ThrowawayServer]) -> None:
    expect_stream("is of another cluster", shared_server(17).dsn(), shared_server(18).data_directory)


def test_a_copy_of_the_servers_directory(make_server: MakeServer, work_dir: Path) -> None:
    """It has the server's identity, and even its pid file; only its control file is not the server's any more."""
    server = make_server(17)
    copy = work_dir / "copy"
    shutil.copytree(server.data_directory, copy)
    sql(server.dsn(), "CHECKPOINT")
    expect_stream("their control files differ", server.dsn(), copy)


def test_a_copy_that_nothing_tells_from_the_servers_directory_is_found_out_before_it_is_read(
    make_server: MakeServer, work_dir: Path
) -> None:
    """The backup's own checkpoint is in one of the two only."""
    server = make_server(17)
    copy = work_dir / "copy"
    sql(server.dsn(), "CHECKPOINT")
    shutil.copytree(server.data_directory, copy)
    repository = new_repository(work_dir / "repository")
    assert place_of(server.dsn(), "auto", copy)[0] is not None
    with pytest.raises(ServerSettingError, match="their control files differ"):
        backup(server.dsn(), repository, mode="local", data_directory=str(copy))
    assert repository.catalog.names() == []


def test_a_standby_on_the_same_machine_is_not_its_primary(make_server: MakeServer, work_dir: Path) -> None:
    primary = make_server(17)
    with standby_of(primary, work_dir / "standby") as standby:
        expect_stream("control files differ", primary.dsn(), standby.data_directory)
        assert place_of(standby.dsn(), "auto", standby.data_directory)[0] is not None


def test_a_role_without_the_privileges_is_told_which(make_server: MakeServer, work_dir: Path) -> None:
    """With what the hints say it can take the backup."""
    server = make_server(17)
    sql(server.dsn(), "CREATE ROLE keeper LOGIN REPLICATION")
    dsn = server.dsn(user="keeper")
    hint = expect_stream("may not take a backup by SQL", dsn)
    sql(server.dsn(), hint.partition(": ")[2])
    hint = expect_stream("may not see where the server's data directory is", dsn)
    repository = new_repository(work_dir / "repository")
    assert backup(dsn, repository, mode="local", data_directory=str(server.data_directory)).mode == "local"
    sql(server.dsn(), hint.partition(";")[0])
    assert backup(dsn, repository, mode="auto").mode == "local"


@contextlib.contextmanager
def without_access(file: Path) -> Iterator[None]:
    """As a passer-by sees it; an account that is not root can only shut itself out."""
    if os.geteuid() == 0:
        os.seteuid(_NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
        return
    mode = file.stat().st_mode
    file.chmod(0)
    try:
        yield
    finally:
        file.chmod(mode)


def test_a_directory_that_may_not_be_read(make_server: MakeServer) -> None:
    server = make_server(17, loopback=True)
    dsn = server.dsn(host="127.0.0.1", port=str(server.port))
    with without_access(server.data_directory / "global/pg_control"):
        hint = expect_stream("cannot be read: Permission denied", dsn)
    assert "as the account that owns the data directory" in hint


def test_a_tablespace_that_cannot_be_reached_here(make_server: MakeServer, work_dir: Path) -> None:
    server = make_server(17)
    elsewhere = server_place(work_dir / "elsewhere")
    sql(server.dsn(), f"CREATE TABLESPACE apart LOCATION '{elsewhere}'")
    elsewhere.rename(work_dir / "away")
    try:
        expect_stream(f"{elsewhere} cannot be read", server.dsn())
    finally:
        (work_dir / "away").rename(elsewhere)


def until_replayed(standby: Server, primary: Server) -> None:
    ((wanted,),) = sql(primary.dsn(), "SELECT pg_current_wal_lsn()")
    deadline = time.monotonic() + 30
    while sql(standby.dsn(), f"SELECT pg_last_wal_replay_lsn() >= '{wanted}'") == [(False,)]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_backups_beside_a_standby_and_of_its_later_timeline(
    make_server: MakeServer, postgres_major: int, work_dir: Path
) -> None:
    """Full; changed, while nothing happens and after a checkpoint; changed since before the promotion: each restores alone."""
    primary = quiet_server(make_server, postgres_major)
    sql(primary.dsn(), "CREATE TABLE t AS SELECT i AS id, repeat('x', 900) AS w FROM generate_series(1, 9000) AS i")
    settings: dict[str, str | int | bool] = {"autovacuum": False}
    if postgres_major >= 17:
        settings["summarize_wal"] = True
    repository = new_repository(work_dir / "repository")

    def local(server: Server) -> tuple[str, bool, list[str]]:
        manifest = backup(server.dsn(), repository, mode="local", deep_check=0)
        assert manifest.damaged_pages == manifest.unexplained_pages == []
        return manifest.kind, manifest.from_standby, manifest.notes

    with standby_of(primary, work_dir / "standby", settings) as standby:
        assert local(standby)[:2] == ("full", True)
        sql(primary.dsn(), "UPDATE t SET w = 'y' || w WHERE id % 300 = 0")
        until_replayed(standby, primary)
        kind, _, notes = local(standby)
        assert kind == "full"
        assert any("no restart point since" in note for note in notes)

        sql(primary.dsn(), "CHECKPOINT")
        sql(primary.dsn(), "UPDATE t SET w = 'z' || w WHERE id % 200 = 0")
        until_replayed(standby, primary)
        kind, from_standby, notes = local(standby)
        assert (kind, from_standby) == ("incremental", True), notes
        expect_equal_copy(primary, repository, work_dir / "first")

        promote(standby)
        sql(standby.dsn(), "DELETE FROM t WHERE id % 7 = 0")
        kind, from_standby, notes = local(standby)
        assert (kind, from_standby) == ("incremental", False), notes
        expect_equal_copy(standby, repository, work_dir / "second")


def test_a_standby_that_is_promoted_meanwhile_ends_the_backup(make_server: MakeServer, work_dir: Path) -> None:
    """Its pages would be of two timelines."""
    primary = make_server(17)
    repository = new_repository(work_dir / "repository")
    with standby_of(primary, work_dir / "standby") as standby:
        request = BackupRequest(cluster="test", dsn=standby.dsn(), mode="local")
        with pytest.raises(PgkeepError, match=r"promoted|ended timeline") as raised:
            run_backup(request, repository, AtCopying(lambda: promote(standby)))
    assert isinstance(raised.value, ServerError)
    assert repository.catalog.names() == []
