"""What a walsender refuses, told apart by SQLSTATE, so that a receiver knows what to do about it."""

from __future__ import annotations

from psycopg import pq

from pgkeep.errors import ServerError, ServerSettingError

__all__ = [
    "ChecksumFailure",
    "PrerequisiteMissing",
    "ReplicationFailure",
    "SlotIsBusy",
    "SlotMissing",
    "WalRemoved",
    "server_error",
]

_CHECKSUM_FAILURE = "XX001"
"""ERRCODE_DATA_CORRUPTED: what basebackup.c raises after the last byte where a page's checksum was wrong."""

_INSUFFICIENT_PRIVILEGE = "42501"


class ChecksumFailure(ServerError):
    """All data was sent, but the server found pages whose checksum is wrong."""


class ReplicationFailure(ServerError):
    """The server answered a replication command with an error: ``sqlstate`` is PostgreSQL's code for it, ``reason`` its own words."""

    sqlstate = ""
    reason = ""


class SlotIsBusy(ReplicationFailure):
    """Another connection streams from the slot (ERRCODE_OBJECT_IN_USE)."""


class SlotMissing(ReplicationFailure):
    """There is no slot of this name (ERRCODE_UNDEFINED_OBJECT)."""


class PrerequisiteMissing(ReplicationFailure):
    """ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE: a slot that was given up (from version 18 on), WAL summaries that are missing."""


class WalRemoved(ReplicationFailure):
    """The server has this WAL no more (ERRCODE_UNDEFINED_FILE, walsender.c)."""


_BY_STATE: dict[str, type[ReplicationFailure]] = {
    "55006": SlotIsBusy,
    "42704": SlotMissing,
    "55000": PrerequisiteMissing,
    "58P01": WalRemoved,
}


def server_error(result: pq.abc.PGresult) -> ServerError:
    """The error of a result whose status is an error."""
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    message = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode("utf-8", "replace")
    hint = (result.error_field(pq.DiagnosticField.MESSAGE_HINT) or b"").decode("utf-8", "replace") or None
    if state == _CHECKSUM_FAILURE:
        return ChecksumFailure(f"the server reports: {message}")
    if state == _INSUFFICIENT_PRIVILEGE:
        return ServerSettingError(f"the server refuses: {message}", hint=hint or "ALTER ROLE … WITH REPLICATION;")
    kind = _BY_STATE.get(state, ReplicationFailure)
    error = kind(f"the server reports: {message} (SQLSTATE {state})", hint=hint)
    error.sqlstate, error.reason = state, message
    return error
