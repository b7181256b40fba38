"""Any drill record that a repository may hold, for properties: odd texts, absent parts, numbers at their ends."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import get_args

from hypothesis import strategies as st

from pgkeep.drill.record import (
    Check,
    CheckKind,
    ComparedTable,
    Comparison,
    Difference,
    DrillRecord,
    DrillTarget,
    Outcome,
    Phase,
    PhaseName,
    Reached,
    Rpo,
    Rto,
    Step,
)

__all__ = ["any_record"]

# what breaks HTML, XML, Markdown and terminals, and what XML cannot hold at all
_ODD = ["<b>&amp;\"'</b>", "]]>", "</title><script>alert(1)</script>", "| a | b |", "`x` **y** _z_ [l](u)", "\x1b[31m", "\x00",
        "\ufffe", "줄\n바꿈", "# 1. - > ~~~", "```", "{count} {}", "%s", "a" * 300]  # fmt: skip

_texts = st.one_of(st.sampled_from(_ODD), st.text(max_size=40))
_seconds = st.one_of(st.sampled_from([0.0, 1e-9, 59.96, 3600.0, 1e9]), st.floats(min_value=0, max_value=1e7))
_some_seconds = st.none() | _seconds
_moments = st.datetimes(datetime(2000, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC))
_some_moments = st.none() | _moments
_bytes = st.integers(min_value=0, max_value=1 << 62)
_counts = st.integers(min_value=0, max_value=1 << 40)
_shares = st.floats(min_value=0, max_value=1)
_outcomes = st.sampled_from(get_args(Outcome))

_targets = st.builds(
    DrillTarget,
    how=st.sampled_from(["latest", "given", "random", "compared"]),
    asked=_texts,
    kind=st.sampled_from(["immediate", "latest", "time", "lsn", "xid", "name"]),
    value=_texts,
    exclusive=st.booleans(),
    timeline=st.none() | st.integers(min_value=1, max_value=1 << 32),
    time=_some_moments,
    lsn=_texts,
)
_reached = st.builds(Reached, lsn=_texts, time=_some_moments, timeline=_counts, crossed=st.lists(_counts, max_size=4))
_phases = st.builds(Phase, name=st.sampled_from(get_args(PhaseName)), seconds=_seconds, bytes=_bytes)
_checks = st.builds(
    Check,
    name=_texts,
    kind=st.sampled_from(get_args(CheckKind)),
    outcome=_outcomes,
    detail=_texts,
    remedy=st.none() | _texts,
    seconds=_seconds,
    sampled=_shares,
    counted=_counts,
    unit=_texts,
)
_differences = st.builds(Difference, key=_texts, live=st.none() | _texts, restored=st.none() | _texts)
_tables = st.builds(
    ComparedTable,
    name=_texts,
    rows=_counts,
    equal=st.booleans(),
    live_rows=st.none() | _counts,
    sampled=_shares,
    detail=_texts,
    differences=st.lists(_differences, max_size=4),
)
_comparisons = st.builds(
    Comparison,
    mode=st.sampled_from(["exact", "tolerance"]),
    lsn=_texts,
    equal=st.booleans(),
    tables=st.lists(_tables, max_size=4),
    detail=_texts,
    seconds=_seconds,
)
_steps = st.builds(Step, text=_texts, command=_texts, outcome=_outcomes, seconds=_seconds)


def any_record() -> st.SearchStrategy[DrillRecord]:
    """Records of any content; their times need not make sense."""
    return st.builds(
        DrillRecord,
        id=st.from_regex(r"[0-9]{8}T[0-9]{6}\.[0-9]{3}Z-[0-9a-f]{8}", fullmatch=True),
        cluster=_texts,
        system_identifier=st.integers(min_value=0, max_value=(1 << 64) - 1),
        repository=_texts,
        started=_moments,
        ended=_moments,
        state=st.sampled_from(["passed", "failed"]),
        asked_by=_texts,
        reason=_texts,
        scenario=st.none() | _texts,
        seed=st.none() | _counts,
        backup=_texts,
        backup_kind=st.sampled_from(["full", "incremental", "", "of tomorrow"]),
        backup_started=_some_moments,
        target=st.none() | _targets,
        reached=st.none() | _reached,
        server_version=_texts,
        server_from=_texts,
        host=_texts,
        logical_bytes=_bytes,
        fetched_bytes=_bytes,
        wal_bytes=_bytes,
        wal_waited=_seconds,
        phases=st.lists(_phases, max_size=5),
        checks=st.lists(_checks, max_size=5),
        comparison=st.none() | _comparisons,
        rpo=st.none() | st.builds(Rpo, seconds=_seconds, objective=_some_seconds, newest=_some_moments),
        rto=st.none()
        | st.builds(
            Rto,
            measured=_seconds,
            predicted=_some_seconds,
            low=_some_seconds,
            high=_some_seconds,
            objective=_some_seconds,
        ),
        steps=st.lists(_steps, max_size=3),
        cause=st.none() | _texts,
        remedy=st.none() | _texts,
        exit_code=st.integers(min_value=0, max_value=255),
        notes=st.lists(_texts, max_size=3),
    )
