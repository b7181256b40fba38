"""Drill records as a real drill would leave them, and strange ones, for the reports' tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from pgkeep.drill.record import (
    Check,
    ComparedTable,
    Comparison,
    Difference,
    DrillRecord,
    DrillTarget,
    Phase,
    Reached,
    Rpo,
    Rto,
    Step,
)

__all__ = [
    "ZONE",
    "broken_record",
    "crowded_record",
    "earlier_records",
    "failed_record",
    "full_record",
    "passed_record",
]

ZONE = "Asia/Seoul"

_MOMENT = datetime(2026, 11, 23, 3, 4, 5, 678000, tzinfo=UTC)
_TARGET = datetime(2026, 11, 22, 18, 15, 0, 250000, tzinfo=UTC)


def passed_record() -> DrillRecord:
    """A monthly drill of a cluster of 180 GiB that came back."""
    return DrillRecord(
        id="20261123T030405.678Z-1f2e3d4c",
        cluster="auth",
        system_identifier=7_591_823_001_234_567_891,
        repository="s3://company-backups/auth",
        started=_MOMENT,
        ended=_MOMENT + timedelta(seconds=1104.2),
        state="passed",
        asked_by="operator@drill-host",
        reason="the monthly drill",
        seed=4_711,
        backup="20261122T150000.120Z-0a1b2c3d",
        backup_kind="incremental",
        backup_started=datetime(2026, 11, 22, 15, 0, 0, tzinfo=UTC),
        target=DrillTarget(
            how="random",
            asked="random",
            kind="time",
            value="2026-11-22 18:15:00.25+00",
            time=_TARGET,
            lsn="5/6B000110",
            timeline=3,
        ),
        reached=Reached(lsn="5/6B000110", time=_TARGET - timedelta(milliseconds=13), timeline=3, crossed=[2, 3]),
        server_major=17,
        server_version="17.10",
        server_from="/usr/lib/postgresql/17/bin",
        host="drill-host.example",
        logical_bytes=180 << 30,
        fetched_bytes=52 << 30,
        wal_bytes=9 << 30,
        wal_waited=7.5,
        jobs=8,
        phases=[
            Phase(name="plan", seconds=1.4),
            Phase(name="write", seconds=412.0, bytes=180 << 30),
            Phase(name="start", seconds=2.1),
            Phase(name="replay", seconds=131.5, bytes=9 << 30),
            Phase(name="promote", seconds=0.8),
            Phase(name="first query", seconds=0.05),
            Phase(name="checks", seconds=438.0),
            Phase(name="compare", seconds=96.0),
            Phase(name="clean up", seconds=22.4),
        ],
        checks=[
            Check(name="reached", kind="reached", outcome="passed", detail="LSN 5/6B000110 on timeline 3", seconds=0.1),
            Check(
                name="server checksums",
                kind="server checksums",
                outcome="passed",
                detail="23,592,960 pages are whole",
                seconds=121.0,
                counted=23_592_960,
                unit="pages",
            ),
            Check(
                name="amcheck",
                kind="amcheck",
                outcome="passed",
                detail="61 of 204 relations, 5 min of time",
                seconds=244.0,
                sampled=0.3,
                counted=61,
                unit="relations",
            ),
            Check(name="visibility map", kind="visibility map", outcome="passed", detail="42 tables", seconds=9.0),
            Check(name="tables", kind="tables", outcome="passed", detail="42 tables, 311,204,118 rows", seconds=61.0),
            Check(name="extensions", kind="extensions", outcome="passed", detail="4 extensions load", seconds=0.4),
            Check(name="sequences", kind="sequences", outcome="passed", detail="17 sequences", seconds=0.3),
            Check(
                name="every session has its account",
                kind="assertion",
                outcome="passed",
                detail="0, as expected",
                seconds=1.9,
            ),
            Check(
                name="revoked tokens",
                kind="assertion",
                outcome="skipped",
                detail="the table token_blacklist is not in the backup",
                remedy="take the assertion out of [[cluster.drill.assert]]",
                seconds=0.0,
            ),
        ],
        comparison=Comparison(
            mode="exact",
            lsn="5/6B000110",
            equal=True,
            tables=[
                ComparedTable(name=f"public.t{n}", rows=7_409_621, equal=True, sampled=0.1 if n < 3 else 1.0)
                for n in range(42)
            ],
            seconds=96.0,
        ),
        rpo=Rpo(seconds=4.2, objective=300.0, newest=_MOMENT - timedelta(seconds=4.2)),
        rto=Rto(measured=547.9, predicted=520.0, low=450.0, high=610.0, objective=900.0),
        notes=["tablespace fast was mapped below the drill's directory"],
    )


def failed_record() -> DrillRecord:
    """A drill that found a row changed and an assertion broken, late and over its objective."""
    differing = ComparedTable(
        name="public.accounts",
        rows=1_204_118,
        live_rows=1_204_119,
        equal=False,
        differences=[
            Difference(key="id=88213", live="(88213, 'kim@example', 't')", restored="(88213, 'kim@example', 'f')"),
            Difference(key="id=1204119", live="(1204119, '<b>lee&co</b>', 't')", restored=None),
        ],
    )
    passed = passed_record()
    assert passed.comparison is not None
    return msgspec.structs.replace(
        passed,
        state="failed",
        cause="the restored cluster differs from the live one in table public.accounts: 2 rows",
        remedy="see who writes to public.accounts without WAL, then run pgkeep compare --table public.accounts",
        exit_code=8,
        scenario="table dropped",
        checks=[
            *passed.checks[:-2],
            Check(
                name="every session has its account",
                kind="assertion",
                outcome="failed",
                detail="the query returned 3, expected 0",
                remedy="look at the sessions without an account: SELECT … FROM sessions LEFT JOIN accounts …",
                seconds=2.2,
            ),
            Check(
                name="comparison",
                kind="comparison",
                outcome="failed",
                detail="2 rows of public.accounts differ",
                remedy="run pgkeep compare --table public.accounts",
                seconds=96.0,
            ),
        ],
        comparison=msgspec.structs.replace(
            passed.comparison, equal=False, tables=[differing, *passed.comparison.tables[1:]]
        ),
        rto=Rto(measured=1032.5, predicted=640.0, low=540.0, high=760.0, objective=900.0),
        steps=[
            Step(text="Find the moment before the table was dropped", command="pgkeep list --window", seconds=3.4),
            Step(text="Restore beside", command="pgkeep restore --to '2026-11-22 18:15:00+00' --start", seconds=547.9),
            Step(text="Compare with the live cluster", command="pgkeep compare", outcome="failed", seconds=96.0),
        ],
    )


def earlier_records(record: DrillRecord, count: int = 9) -> list[DrillRecord]:
    """Drills before it, a month apart: one failed, one over its objective."""
    records = []
    for back in range(count, 0, -1):
        started = record.started - timedelta(days=30 * back)
        changes: dict[str, object] = {
            "id": f"{started:%Y%m%dT%H%M%S}.678Z-0000000{back}",
            "started": started,
            "target": DrillTarget(
                how="random", asked="random", kind="time", value="", time=started - timedelta(hours=7 * back + 1.3)
            ),
            "ended": started + timedelta(seconds=900),
            "state": "passed",
            "cause": None,
            "rto": Rto(measured=420.0 + 37 * (count - back), objective=900.0),
            "rpo": Rpo(seconds=2.0 + back % 4, objective=300.0),
        }
        if back == 4:
            changes |= {"state": "failed", "rto": None, "cause": "WAL segment 00000003000000050000006A is missing"}
        if back == 2:
            changes["rto"] = Rto(measured=947.0, objective=900.0)
        records.append(msgspec.structs.replace(record, **changes))
    return records


def full_record() -> DrillRecord:
    """As much as a report shows before it cuts its lists short: many assertions, and a runbook."""
    passed = passed_record()
    return msgspec.structs.replace(
        passed,
        scenario="server lost",
        checks=[
            Check(
                name=f"assertion {n} of the auth service: no orphans",
                kind="assertion",
                outcome="passed",
                detail="0 rows, as expected",
                seconds=0.7,
            )
            for n in range(30)
        ],
        steps=[
            Step(text=f"Step {n} of the runbook: what the operator does", command="pgkeep list --window", seconds=3.4)
            for n in range(7)
        ],
        notes=[],
    )


def broken_record() -> DrillRecord:
    """As many failures as a report shows before it cuts its lists short."""
    failed = failed_record()
    assert failed.comparison is not None
    differing = failed.comparison.tables[0]
    return msgspec.structs.replace(
        failed,
        checks=[
            Check(name=f"a{n}", kind="assertion", outcome="failed", detail="x " * 60, remedy="y " * 60, seconds=1.0)
            for n in range(5)
        ]
        + failed.checks[:5],
        comparison=msgspec.structs.replace(failed.comparison, tables=[differing] * 2),
        steps=[],
        notes=["a note of a line or so, as drills leave them " * 2] * 2,
    )


def crowded_record() -> DrillRecord:
    """Far more of everything, and longer, than a page holds."""
    failed = failed_record()
    assert failed.comparison is not None
    long = "a sentence without an end that goes on and on and names everything there is, " * 20
    differences = [Difference(key=f"id={n}", live="x" * 500, restored="y" * 500) for n in range(50)]
    tables = [
        ComparedTable(name=f"public.{'t' * 60}_{n}", rows=n, equal=False, differences=differences) for n in range(300)
    ]
    return msgspec.structs.replace(
        failed,
        cluster="c" * 63,
        cause=long,
        remedy=long,
        reason=long,
        asked_by=long,
        checks=[
            Check(
                name=f"assertion {n} {long}",
                kind="assertion",
                outcome="failed" if n % 2 else "passed",
                detail=long,
                remedy=long,
            )
            for n in range(200)
        ],
        comparison=msgspec.structs.replace(failed.comparison, tables=tables, detail=long),
        steps=[Step(text=long, command=long) for _ in range(40)],
        notes=[long] * 40,
    )
