"""How much of each list a report shows, so that it stays within two A4 pages; the record has all."""

from __future__ import annotations

import msgspec

from pgkeep.drill.record import DrillRecord

__all__ = ["Limits", "limits_for"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """``failed`` checks are shown whole, ``others`` in a line; ``sentence`` is the longest in characters; ``drills`` has this one."""

    failed: int
    others: int
    tables: int
    examples: int
    steps: int
    notes: int
    drills: int
    sentence: int


_ROOMY = Limits(failed=6, others=16, tables=3, examples=3, steps=8, notes=4, drills=10, sentence=170)
_TIGHT = Limits(failed=3, others=0, tables=2, examples=1, steps=3, notes=1, drills=4, sentence=96)

_LINES = 30
"""What of these lists fits beside the rest."""


def limits_for(record: DrillRecord) -> Limits:
    """The roomy ones, unless everything comes together: counted in lines of a page, at about 100 characters each."""
    failed = [check for check in record.checks if check.outcome == "failed"][: _ROOMY.failed]
    differing = 0 if record.comparison is None else sum(not table.equal for table in record.comparison.tables)
    lines = sum(1 + (len(check.detail) + len(check.remedy or "")) // 100 for check in failed)
    lines += min(len(record.checks) - len(failed), _ROOMY.others)
    lines += 4 * min(differing, _ROOMY.tables)
    lines += sum(2 + (len(step.text) + len(step.command)) // 100 for step in record.steps[: _ROOMY.steps])
    lines += sum(1 + len(note) // 100 for note in record.notes[: _ROOMY.notes])
    lines += sum(len(text or "") // 100 for text in (record.cause, record.remedy, record.reason))
    return _ROOMY if lines <= _LINES else _TIGHT
