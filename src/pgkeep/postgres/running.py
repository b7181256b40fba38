"""Which server runs on a data directory, who owns it, and whether it is the one that a connection leads to.

Processes are found by their working directory: a postmaster's and its children's is the data directory
(src/backend/utils/init/miscinit.c, ChangeToDataDir). Device and inode are compared, so that a server in a container on this
machine is seen too.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pgkeep.errors import ConfigError, DamageError, ServerError, TargetError
from pgkeep.postgres.account import ServerAccount
from pgkeep.postgres.connection import connect_sql
from pgkeep.postgres.control_file import CONTROL_FILE, ControlFile, parse_control_file

__all__ = [
    "ServerPlace",
    "ServerStatus",
    "identify_server",
    "locate_server",
    "owner_of",
    "postmasters",
    "read_control_file",
    "server_status",
]

_START_LINE, _PORT_LINE, _SOCKET_LINE, _STATUS_LINE = 2, 3, 4, 7
_NAMES = frozenset({"postgres", "postmaster"})
_SLACK = 60
"""Seconds between the two moments that a server takes for its start: pid file and pg_postmaster_start_time()."""

_QUESTION = """
    SELECT (pg_control_system()).system_identifier, extract(epoch FROM pg_postmaster_start_time())::bigint,
           current_setting('port')::int,
           CASE WHEN pg_has_role(current_user, 'pg_read_all_settings', 'USAGE') THEN current_setting('data_directory') END
"""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The server on a data directory. ``pid`` is the postmaster's, None where none runs; then all else is None too.

    ``state`` is the word in its pid file: ``starting``, ``ready``, ``standby``, ``stopping``. ``started`` is in Unix time.
    """

    pid: int | None = None
    state: str | None = None
    started: int | None = None
    port: int | None = None
    socket_directory: str | None = None


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """A data directory on this machine, without links, and what the server behind a connection said of itself.

    ``answer`` are its system identifier, the moment of its start in Unix time, and its port; None where it did not answer,
    which ``notes`` tells then.
    """

    data_directory: Path
    answer: tuple[int, int, int] | None
    notes: list[str]


def postmasters(data_directory: Path) -> list[int]:
    """Processes of a server that work in this directory and whose parent does not; children of one that died count too."""
    try:
        place = os.stat(data_directory)
    except OSError:
        return []
    there: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            where = os.stat(f"/proc/{entry.name}/cwd")
            if (where.st_dev, where.st_ino) != (place.st_dev, place.st_ino):
                continue
            name, _, fields = Path(f"/proc/{entry.name}/stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, parent = fields.split()[:2]
        if name in _NAMES and state != "Z":
            there[int(entry.name)] = int(parent)
    return sorted(pid for pid, parent in there.items() if parent not in there)


def server_status(data_directory: Path) -> ServerStatus:
    """What runs there (src/include/utils/pidfile.h has the pid file's lines)."""
    found = postmasters(data_directory)
    if not found:
        return ServerStatus()
    try:
        lines = [line.strip() for line in (data_directory / "postmaster.pid").read_text().splitlines()]
    except OSError:
        return ServerStatus(found[0], "starting")
    # in a container it knows itself by another number
    pid = next((pid for pid in found if lines and lines[0] == str(pid)), found[0])
    if len(lines) <= _STATUS_LINE:
        return ServerStatus(pid, "starting")
    return ServerStatus(
        pid,
        lines[_STATUS_LINE],
        int(lines[_START_LINE]),
        int(lines[_PORT_LINE]),
        lines[_SOCKET_LINE] or None,
    )


def owner_of(directory: Path) -> ServerAccount | None:
    """The account that a directory belongs to; None where there is no directory, or its owner has no name here."""
    try:
        entry = pwd.getpwuid(directory.stat().st_uid)
    except (OSError, KeyError):
        return None
    return ServerAccount(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))


def read_control_file(data_directory: Path) -> ControlFile | None:
    """The control file; None where there is none, or it is damaged or being written."""
    try:
        return parse_control_file((data_directory / CONTROL_FILE).read_bytes())
    except (OSError, DamageError):
        return None


def locate_server(dsn: str, configured: Path | None) -> ServerPlace:
    """Where the data directory of the server is that ``dsn`` leads to: ``configured``, or as the server itself says.

    Raises ConfigError where nobody says it.
    """
    notes: list[str] = []
    row = _ask(dsn, notes)
    directory = configured or (Path(row[3]) if row and row[3] else None)
    if directory is None:
        raise ConfigError(
            f"nobody says where the server's data directory is: {'its role may not ask' if row else notes[0]}",
            hint='name it in the configuration: server = { data_directory = "/var/lib/postgresql/data" }',
        )
    return ServerPlace(directory.resolve(), row and row[:3], notes)


def identify_server(place: ServerPlace, system_identifier: int) -> tuple[ControlFile | None, list[str]]:
    """Make sure that a data directory is of this cluster, and that the server which answered is the one that runs on it.

    It need not run, nor be whole: returns its control file where that can be read, and notes for the operator. Raises TargetError
    where it is of another cluster, used by several servers, or where the server that answered is elsewhere.
    """
    directory = place.data_directory
    control, notes = _identity(directory, system_identifier)
    found = postmasters(directory)
    if len(found) > 1:
        raise TargetError(
            f"several servers use {directory}: processes {', '.join(map(str, found))}",
            hint="find out what they are, and stop those that should not be there: ps -fp " + ",".join(map(str, found)),
        )
    if place.answer is not None:
        identifier, started, port = place.answer
        status = server_status(directory)
        if (
            identifier != system_identifier
            or status.port != port
            or status.started is None
            or abs(status.started - started) > _SLACK
        ):
            raise TargetError(
                f"the DSN leads to a server that is not the one on {directory} of this machine"
                + ("" if identifier == system_identifier else f": its system identifier is {identifier}"),
                hint="run this on the server's own machine, or mend dsn and server.data_directory",
            )
    return control, notes


def _ask(dsn: str, notes: list[str]) -> tuple[int, int, int, str | None] | None:
    """System identifier, start, port and data directory of the server behind the DSN; None where it does not answer."""
    try:
        with connect_sql(dsn) as connection:
            row = connection.execute(_QUESTION).fetchone()
            assert row is not None
            return int(row[0]), int(row[1]), int(row[2]), row[3]
    except (ServerError, psycopg.Error) as error:
        notes.append(f"the server does not answer ({str(error).splitlines()[0]})")
        return None


def _identity(directory: Path, system_identifier: int) -> tuple[ControlFile | None, list[str]]:
    if not directory.exists() or not any(directory.iterdir()):
        return None, [f"there is nothing in {directory}"]
    if not (directory / "PG_VERSION").exists() and not (directory / "global").exists():
        raise TargetError(
            f"{directory} is not a data directory", hint="mend server.data_directory in the configuration"
        )
    control = read_control_file(directory)
    if control is None:
        unknown = f"{directory / CONTROL_FILE} is missing or damaged: nobody can say for sure which cluster this was"
        return None, [unknown]
    if control.system_identifier != system_identifier:
        raise TargetError(
            f"{directory} is of another cluster: its system identifier is {control.system_identifier}, "
            f"the backup's is {system_identifier}",
            hint="mend server.data_directory, or name the right cluster with --cluster",
        )
    return control, []
