"""Whether the server that an operator's way of starting brought up is the one that was recovered."""

from __future__ import annotations

from pathlib import Path

from psycopg.conninfo import make_conninfo

from pgkeep.errors import PgkeepError, RecoveryError
from pgkeep.postgres.connection import connect_sql
from pgkeep.postgres.control_file import ClusterState
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.running import read_control_file
from pgkeep.restore.journal import Journal

__all__ = ["assert_recovered"]

_QUESTION = """
    SELECT pg_is_in_recovery(), (pg_control_system()).system_identifier,
           CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn()::text END,
           current_setting('default_transaction_read_only')
"""


def assert_recovered(journal: Journal, dsn: str) -> list[str]:
    """The server runs on the recovered data, on its timeline, and takes writes; returns notes. Raises RecoveryError.

    A DSN that does not lead to it is noted only: roles and ``pg_hba.conf`` may have been other ones at the recovered moment.
    """
    data_directory = Path(journal.data_directory)
    control = read_control_file(data_directory)
    if control is None or control.system_identifier != journal.system_identifier:
        raise RecoveryError(f"the server on {data_directory} is not the cluster that was recovered")
    if control.state is not ClusterState.IN_PRODUCTION or control.timeline < journal.timeline:
        raise RecoveryError(
            f"the server on {data_directory} is {control.state} on timeline {control.timeline}, "
            f"and timeline {journal.timeline} was recovered"
        )
    try:
        with connect_sql(make_conninfo(dsn, connect_timeout=10)) as connection:
            row = connection.execute(_QUESTION).fetchone()
    except PgkeepError as error:
        return [
            f"the server runs, but the DSN does not lead to it: {error}; roles and pg_hba.conf are those of the backup"
        ]
    assert row is not None
    in_recovery, identifier, lsn, read_only = row
    if in_recovery or int(identifier) != journal.system_identifier or LSN.parse(lsn) < LSN.parse(journal.lsn):
        raise RecoveryError(
            f"the DSN leads to another server than the recovered one: in recovery {in_recovery}, system identifier "
            f"{identifier}, at {lsn}",
            hint="mend dsn in the configuration",
        )
    if read_only == "on":
        return ["default_transaction_read_only is on: the server refuses writes of those who do not ask for them"]
    return []
