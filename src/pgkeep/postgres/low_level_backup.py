"""A backup by SQL, for a copy that someone else makes (PostgreSQL docs, 25.3.4 "Making a Base Backup Using the Low Level API").

Between `LowLevelBackup.start` and `LowLevelBackup.stop` the files may be copied in any order while the server writes them. Both run
in one session, and the server forgets the backup when that ends.
"""

from __future__ import annotations

import select
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors, pq

from pgkeep.errors import ServerError, ServerSettingError
from pgkeep.postgres.backup_label import parse_backup_label
from pgkeep.postgres.connection import connect_sql, quote_role
from pgkeep.postgres.lsn import LSN

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LowLevelBackup", "StoppedBackup", "may_back_up"]

Sql = psycopg.Connection[tuple[Any, ...]]

_MAY_BACK_UP = """
    SELECT has_function_privilege('pg_backup_start(text, boolean)', 'EXECUTE')
       AND has_function_privilege('pg_backup_stop(boolean)', 'EXECUTE')
"""

# In the encoding of the database, whatever that is: a tablespace's path may hold any byte.
_STOP = "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(wait_for_archive => false)"


@dataclass(frozen=True, slots=True)
class StoppedBackup:
    """What the copy needs to be a backup: two small files, byte for byte, and how far its WAL must reach."""

    stop_lsn: LSN
    backup_label: bytes
    tablespace_map: bytes


def may_back_up(sql: Sql) -> bool:
    """Whether the role of a connection may take a backup by SQL."""
    return sql.execute(_MAY_BACK_UP).fetchone() == (True,)


class LowLevelBackup:
    """A backup of a primary or a standby; use as a context manager. Leaving it before `stop` ends the backup on the server.

    ``sql`` is its session, open for questions in between.
    """

    def __init__(self, dsn: str) -> None:
        """Connect. Raises ServerError, ServerSettingError."""
        self.sql: Sql = connect_sql(dsn)
        self._timeline = 0

    def __enter__(self) -> LowLevelBackup:
        return self

    def __exit__(self, *_: object) -> None:
        self.sql.close()

    def start(self, label: str, *, fast: bool) -> tuple[LSN, int]:
        """Begin; returns the LSN and the timeline where recovery of the copy will begin.

        A primary writes a checkpoint, at once with ``fast``, else spread over time. A standby cannot: the backup begins where
        its last restart point does. Raises ServerSettingError where the role may not, ServerError.
        """
        with self.explained("begin"):
            row = self.sql.execute("SELECT pg_backup_start(%s, %s)::text", (label, fast)).fetchone()
            assert row is not None
            timeline = self.sql.execute("SELECT timeline_id FROM pg_control_checkpoint()").fetchone()
            assert timeline is not None
        self._timeline = int(timeline[0])
        return LSN.parse(row[0]), self._timeline

    def check(self) -> None:
        """Raise ServerError where the session has been lost; costs next to nothing."""
        if not self.sql.closed:
            poll = select.poll()
            poll.register(self.sql.fileno(), select.POLLIN)
            if not poll.poll(0):
                return
        # what a server says to an idle session is mostly that it ends it
        with self.explained("go on with"):
            self.sql.execute("SELECT")

    def stop(self) -> StoppedBackup:
        """End the backup once everything is copied. Raises ServerError where the copy is worth nothing."""
        with self.explained("end"):
            self.sql.execute("SET client_encoding = 'SQL_ASCII'")
            row = self.sql.execute(_STOP).fetchone()
            assert row is not None
        stop_lsn, label, tablespace_map = (value.encode() if isinstance(value, str) else bytes(value) for value in row)
        timeline = parse_backup_label(label).start_timeline
        if timeline != self._timeline:
            raise ServerError(
                f"the backup began on timeline {timeline} while the server went on to timeline {self._timeline}",
                hint="run the backup again",
            )
        return StoppedBackup(LSN.parse(stop_lsn.decode()), label, tablespace_map)

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """What goes wrong with a question that is asked in the session, in our words and the server's.

        ``what`` completes "the server could not … the backup". Raises ServerError, ServerSettingError.
        """
        try:
            yield
        except errors.InsufficientPrivilege:
            role = quote_role(self.sql.info.user)
            raise ServerSettingError(
                f"role {self.sql.info.user!r} may not take a backup by SQL",
                hint="in the database of the DSN: GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean),"
                f" pg_backup_stop(boolean) TO {role};",
            ) from None
        except errors.ObjectNotInPrerequisiteState as error:
            raise ServerError(
                f"the server could not {what} the backup: {_words(error)}",
                hint=error.diag.message_hint
                or "connect to the server itself, not to a pooler that shares its sessions, and run the backup again",
            ) from None
        except psycopg.Error as error:
            if self.sql.info.status == pq.ConnStatus.OK and not self.sql.broken:
                raise ServerError(f"the server could not {what} the backup: {_words(error)}") from None
            raise ServerError(
                f"the session that holds the backup was lost, and the backup with it: {_words(error)}",
                hint="see the server's log for the reason, then run the same command again: nothing is stored twice",
            ) from None


def _words(error: psycopg.Error) -> str:
    return " ".join((error.diag.message_primary or str(error)).split()) or "the connection was closed"
