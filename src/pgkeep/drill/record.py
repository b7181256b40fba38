"""What a drill leaves behind: one record, sealed in the repository, and the same again as JSON.

Times are aware, in UTC; durations are seconds, sizes bytes, LSNs text as PostgreSQL writes it. A later version may add fields;
one that changes the meaning of a field has another `VERSION`.
"""

from __future__ import annotations

import re
import secrets
from datetime import datetime
from typing import Literal

import msgspec

from pgkeep.errors import DamageError

__all__ = [
    "VERSION",
    "Check",
    "CheckKind",
    "ComparedTable",
    "Comparison",
    "Difference",
    "DrillRecord",
    "DrillTarget",
    "Outcome",
    "Phase",
    "PhaseName",
    "Reached",
    "Rpo",
    "Rto",
    "Step",
    "decode_record",
    "encode_record",
    "new_drill_id",
    "record_json",
]

VERSION = 1

Outcome = Literal["passed", "failed", "skipped"]

PhaseName = Literal[
    "plan", "fetch", "write", "start", "replay", "promote", "first query", "checks", "compare", "clean up"
]
"""``fetch`` and ``write`` are one where the two run side by side: then ``write`` holds both, and its bytes are those written."""

CheckKind = Literal[
    "reached",
    "server checksums",
    "amcheck",
    "visibility map",
    "tables",
    "assertion",
    "extensions",
    "sequences",
    "comparison",
]


class DrillTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Where recovery was to stop.

    ``how`` is how it was chosen. ``asked`` is what was asked for, in its own words; ``kind`` and ``value`` what the server was told
    (``value`` is a time in UTC, an LSN, a transaction id or a name); ``time`` the moment that this is, in UTC, where it is known.
    """

    how: Literal["latest", "given", "random", "compared"]
    asked: str
    kind: Literal["immediate", "latest", "time", "lsn", "xid", "name"]
    value: str = ""
    exclusive: bool = False
    timeline: int | None = None
    time: datetime | None = None
    lsn: str = ""


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """Where recovery ended: ``timeline`` is the one that the last replayed byte is of, ``time`` that of the last transaction."""

    lsn: str
    time: datetime | None
    timeline: int
    crossed: list[int] = []
    """The timelines that replay went along, the oldest first."""


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the way back; ``bytes`` are those that it handled, 0 where it handles none."""

    name: PhaseName
    seconds: float
    bytes: int = 0


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found. ``sampled`` is the share that was looked at, from 0 to 1; ``counted`` how many things, named by ``unit``."""

    name: str
    kind: CheckKind
    outcome: Outcome
    detail: str
    remedy: str | None = None
    seconds: float = 0.0
    sampled: float = 1.0
    counted: int = 0
    unit: str = ""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A row that differs: its key, and what each side has, in words; None where it has no such row."""

    key: str
    live: str | None
    restored: str | None


class ComparedTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table on both sides. ``rows`` are the restored ones, ``live_rows`` those of the source; ``sampled`` the share compared."""

    name: str
    rows: int
    equal: bool
    live_rows: int | None = None
    sampled: float = 1.0
    detail: str = ""
    differences: list[Difference] = []


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The restored cluster held against the live one: exactly, at one LSN, or with the tolerance that ``detail`` states."""

    mode: Literal["exact", "tolerance"]
    lsn: str
    equal: bool
    tables: list[ComparedTable]
    detail: str = ""
    seconds: float = 0.0


class Rpo(msgspec.Struct, frozen=True, kw_only=True):
    """What would have been lost when the drill began: ``seconds`` from ``newest``, the newest recoverable moment, to then."""

    seconds: float
    objective: float | None = None
    newest: datetime | None = None


class Rto(msgspec.Struct, frozen=True, kw_only=True):
    """How long it took until the first query was answered, and what had been predicted before it began."""

    measured: float
    predicted: float | None = None
    low: float | None = None
    high: float | None = None
    objective: float | None = None


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a scenario's runbook, as it was done: in words, the command that does it by hand, and how it went."""

    text: str
    command: str = ""
    outcome: Outcome = "passed"
    seconds: float = 0.0


class DrillRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One drill, from the question to the answer.

    ``cause`` and ``remedy`` are a sentence each where ``state`` is "failed". ``reached``, ``rto`` and the like are None where the drill
    did not come so far. ``fetched_bytes`` came out of the repository, ``wal_bytes`` were replayed, ``wal_waited`` are the seconds in which
    replay waited for WAL: the measurements that a prediction is fitted on.
    """

    id: str
    cluster: str
    system_identifier: int
    repository: str
    started: datetime
    ended: datetime
    state: Literal["passed", "failed"]
    asked_by: str
    reason: str = ""
    scenario: str | None = None
    plan: str | None = None
    """The plan of the configuration that it was done for."""
    seed: int | None = None
    backup: str = ""
    backup_kind: str = ""
    backup_started: datetime | None = None
    target: DrillTarget | None = None
    reached: Reached | None = None
    server_major: int = 0
    server_version: str = ""
    server_from: str = ""
    """Where the server's programs came from: a directory, or a container's image."""
    host: str = ""
    logical_bytes: int = 0
    fetched_bytes: int = 0
    wal_bytes: int = 0
    wal_waited: float = 0.0
    jobs: int = 0
    phases: list[Phase] = []
    checks: list[Check] = []
    comparison: Comparison | None = None
    rpo: Rpo | None = None
    rto: Rto | None = None
    steps: list[Step] = []
    cause: str | None = None
    remedy: str | None = None
    exit_code: int = 0
    """That of the error that ended it; 0 where it passed."""
    notes: list[str] = []
    version: int = VERSION

    @property
    def passed(self) -> bool:
        """Whether it proved what it set out to."""
        return self.state == "passed"

    def seconds_of(self, name: PhaseName) -> float | None:
        """How long a phase took; None where there was none of that name."""
        return next((phase.seconds for phase in self.phases if phase.name == name), None)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(DrillRecord)
_ID = re.compile(r"[0-9]{8}T[0-9]{6}\.[0-9]{3}Z-[0-9a-f]{8}")


def new_drill_id(moment: datetime) -> str:
    """An id that sorts by time, of the same form as a backup's: ``20261123T030405.678Z-1f2e3d4c``."""
    return f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03}Z-{secrets.token_hex(4)}"


def encode_record(record: DrillRecord) -> bytes:
    """The plain text of the sealed object: MessagePack, a map with the field names."""
    return _encoder.encode(record)


def decode_record(plain: bytes, name: str) -> DrillRecord:
    """A record from the plain text of the object ``name``. Raises DamageError."""
    try:
        record = _decoder.decode(plain)
        if _ID.fullmatch(record.id) is None:
            raise msgspec.ValidationError("it has no id")
    except msgspec.MsgspecError as error:
        raise DamageError(f"{name} cannot be read: {error}", object_name=name) from None
    return record


def record_json(record: DrillRecord) -> dict[str, object]:
    """The record as plain JSON values; the system identifier is text, since it does not fit a double."""
    document = msgspec.to_builtins(record)
    assert isinstance(document, dict)
    return {**document, "system_identifier": str(record.system_identifier)}
