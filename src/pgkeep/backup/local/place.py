"""Whether a server's data directory can be read here, and is the one of the server that the DSN leads to."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from pgkeep.backup.local.walk import DataDirectory, unreadable
from pgkeep.errors import PgkeepError, ServerError, ServerSettingError
from pgkeep.postgres.connection import connect_sql, quote_role
from pgkeep.postgres.control_file import CONTROL_FILE, ClusterState, ControlFile, parse_control_file
from pgkeep.postgres.low_level_backup import Sql, may_back_up

if TYPE_CHECKING:
    from pgkeep.backup.request import BackupRequest

__all__ = ["LocalPlace", "check_place", "find_place", "read_control", "read_control_bytes"]

_PORT_LINE, _START_LINE = 3, 2
"""Of postmaster.pid, counted from 0 (src/include/utils/pidfile.h)."""

_START_SLACK = 60
"""Seconds between the two moments that a server takes for its start: the pid file's and pg_postmaster_start_time()."""

_TRIES = 20
_PAUSE = 0.05
"""Seconds; the control file is written anew now and then, while it is read here."""

_IDENTITY = """
    SELECT current_setting('port')::int, extract(epoch FROM pg_postmaster_start_time())::bigint,
           (pg_control_system()).system_identifier,
           CASE WHEN pg_has_role(current_user, 'pg_read_all_settings', 'USAGE') THEN current_setting('data_directory') END
"""

_CONTROL = """
    SELECT s.system_identifier, extract(epoch FROM s.pg_control_last_modified)::bigint, c.checkpoint_lsn::text,
           c.redo_lsn::text, c.timeline_id, r.min_recovery_end_lsn::text, pg_is_in_recovery()
      FROM pg_control_system() s, pg_control_checkpoint() c, pg_control_recovery() r
"""


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A data directory on this machine that is the server's own."""

    directory: bytes
    version: int

    @property
    def shown(self) -> str:
        """The directory's path for people."""
        return self.directory.decode("utf-8", "backslashreplace")


def find_place(request: BackupRequest, system_identifier: int) -> tuple[LocalPlace | None, str]:
    """The data directory to read, or None where pages are to come over the replication protocol; and why, in a sentence.

    With ``mode`` ``local`` it must be here: raises ServerSettingError where it is not, and ServerError.
    """
    if request.mode == "stream":
        return None, "pages come over the replication protocol, as was asked for"
    try:
        place = _find(request, system_identifier)
    except ServerError as error:
        if request.mode == "local":
            raise
        return None, f"pages come over the replication protocol: {error}"
    why = "as was asked for" if request.mode == "local" else "which is the server's own and can be read here"
    return place, f"pages come from {place.shown}, {why}"


def check_place(sql: Sql, place: LocalPlace) -> ControlFile:
    """Make sure that the server behind a session has this data directory: both say the same of its control file.

    Once before a backup begins, and, since a copy of a data directory would say the same, once after its checkpoint. Raises
    ServerSettingError.
    """
    for _ in range(_TRIES):
        asked = _asked(sql)
        control = read_control(place.directory)
        read = (
            control.system_identifier,
            int(control.time.timestamp()),
            str(control.checkpoint),
            str(control.redo),
            control.timeline,
            str(control.min_recovery_point),
            control.state is not ClusterState.IN_PRODUCTION,
        )
        if read == asked:
            return control
        time.sleep(_PAUSE)
    raise ServerSettingError(
        f"{place.shown} is not the data directory of the server that the DSN leads to: their control files differ",
        hint="is it a copy, or a standby's? take the backup over the network (--mode stream), or mend data_directory",
    )


def read_control(directory: bytes) -> ControlFile:
    """The control file; read again while the server is writing it. Raises ServerSettingError, DamageError."""
    return parse_control_file(read_control_bytes(directory))


def read_control_bytes(directory: bytes) -> bytes:
    """The control file's bytes, whose checksum fits. Raises ServerSettingError, DamageError."""
    place = os.path.join(directory, CONTROL_FILE.encode())
    failure: PgkeepError | None = None
    for _ in range(_TRIES):
        try:
            with open(place, "rb") as file:
                data = file.read()
            parse_control_file(data)
        except OSError as error:
            raise unreadable(place, error) from None
        except PgkeepError as error:
            failure = error
            time.sleep(_PAUSE)
        else:
            return data
    assert failure is not None
    raise failure


def _find(request: BackupRequest, system_identifier: int) -> LocalPlace:
    with connect_sql(request.dsn) as sql:
        try:
            return _find_by(sql, request, system_identifier)
        except psycopg.Error as error:
            reason = " ".join(str(error).split())
            raise ServerError(f"the server did not say where its data directory is: {reason}") from None


def _find_by(sql: Sql, request: BackupRequest, system_identifier: int) -> LocalPlace:
    row = sql.execute(_IDENTITY).fetchone()
    assert row is not None
    port, started, identifier, shown = row
    if int(identifier) % (1 << 64) != system_identifier:
        raise ServerError(
            "the DSN leads to two different clusters", hint="name one server in it, or standbys of one cluster"
        )
    role = quote_role(sql.info.user)
    if not may_back_up(sql):
        raise ServerSettingError(
            f"role {sql.info.user!r} may not take a backup by SQL",
            hint="in the database of the DSN: GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean),"
            f" pg_backup_stop(boolean) TO {role};",
        )
    directory = request.data_directory or shown
    if directory is None:
        raise ServerSettingError(
            f"role {sql.info.user!r} may not see where the server's data directory is",
            hint=f"GRANT pg_read_all_settings TO {role}; or name it in the configuration: data_directory",
        )
    place = LocalPlace(os.path.realpath(os.fsencode(directory)), sql.info.server_version)
    _check_readable(place, system_identifier)
    _check_process(place, port, int(started))
    DataDirectory(place.directory, place.version // 10000, check_place(sql, place))
    return place


def _check_readable(place: LocalPlace, system_identifier: int) -> None:
    try:
        os.listdir(place.directory)
    except (FileNotFoundError, NotADirectoryError):
        raise ServerSettingError(
            f"the server's data directory {place.shown} is not on this machine",
            hint="run pgkeep on the server's machine, name the place where it is mounted with data_directory,"
            " or take the backup over the network: --mode stream",
        ) from None
    except OSError as error:
        raise unreadable(place.directory, error) from None
    control = read_control(place.directory)
    if control.system_identifier != system_identifier:
        raise ServerSettingError(
            f"{place.shown} is of another cluster: its system identifier is {control.system_identifier},"
            f" the server's is {system_identifier}",
            hint="mend data_directory, or take the backup over the network: --mode stream",
        )


def _check_process(place: LocalPlace, port: int, started: int) -> None:
    """The pid file tells which server runs there; its process may be another container's, which has other numbers."""
    name = os.path.join(place.directory, b"postmaster.pid")
    try:
        with open(name, "rb") as file:
            lines = file.read().split(b"\n")
        there: tuple[Any, ...] = int(lines[_PORT_LINE]), int(lines[_START_LINE])
    except FileNotFoundError:
        there = ()
    except OSError as error:
        raise unreadable(name, error) from None
    except (ValueError, IndexError):
        there = ()
    if not there or there[0] != port or abs(there[1] - started) > _START_SLACK:
        raise ServerSettingError(
            f"no server runs on {place.shown}, or another one than the DSN leads to",
            hint="mend data_directory, or take the backup over the network: --mode stream",
        )


def _asked(sql: Sql) -> tuple[object, ...]:
    row = sql.execute(_CONTROL).fetchone()
    assert row is not None
    identifier, modified, *rest = row
    return int(identifier) % (1 << 64), int(modified), *rest
