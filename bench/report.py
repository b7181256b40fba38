"""Results as JSON, for programs, and as a Markdown table, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.measure import Measurement
from pgkeep.units import format_size, utc_now

RESULTS = Path(__file__).with_name("results")
BASELINE = "pgkeep"
MEMORY_LIMIT = 300_000_000
COLUMNS = ("contender", "seconds", "min–max", "a second", "CPU seconds", "peak memory", "pgkeep's speed")
STORED_COLUMNS = ("stored", "pgkeep stores")
CONDITIONS = (
    "Everybody takes turns, on the same server and the same cores, with the same page cache (all files read once before) and nothing "
    "left to write (`sync` before). Everybody's result is durable when the clock stops: tar, which does not fsync, is given a `sync` of "
    "the file system. CPU is the program's and the server's. Memory is the resident memory of the program's own processes."
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One contender's runs of one piece of work; ``stored`` are the bytes that it left in its repository, where it left any."""

    name: str
    facts: str
    runs: Sequence[Measurement]
    stored: int | None = None

    @property
    def walls(self) -> list[float]:
        return [run.wall for run in self.runs]


@dataclass(frozen=True, slots=True)
class Row:
    """One piece of work, done by everybody, over ``size`` bytes of data; ``remarks`` say more about what came of it."""

    work: str
    size: int
    entries: Sequence[Entry]
    remarks: Sequence[str] = ()
    more: Mapping[str, object] = field(default_factory=dict)


def ratio_to_baseline(entry: Entry, baseline: Entry | None) -> str:
    """How many times the baseline's speed is the entry's, ``1.52 x``; ``within noise`` where the ranges of times overlap."""
    if baseline is None or baseline is entry:
        return ""
    ratio = median(entry.walls) / median(baseline.walls)
    overlap = min(entry.walls) <= max(baseline.walls) and min(baseline.walls) <= max(entry.walls)
    return f"{ratio:.2f} x" + (" (within noise)" if overlap else "")


def table(row: Row) -> str:
    """One row's Markdown table."""
    baseline = next((entry for entry in row.entries if entry.name == BASELINE), None)
    has_stored = any(entry.stored is not None for entry in row.entries)
    columns = COLUMNS + (STORED_COLUMNS if has_stored else ())
    lines: list[tuple[str, ...]] = [columns, ("---",) + ("---:",) * (len(columns) - 1)]
    for entry in row.entries:
        wall = median(entry.walls)
        cells = (
            entry.name,
            f"{wall:.2f}",
            f"{min(entry.walls):.2f}–{max(entry.walls):.2f}",
            format_size(row.size / wall),
            f"{median(run.cpu for run in entry.runs):.1f}",
            format_size(max(run.memory for run in entry.runs)),
            ratio_to_baseline(entry, baseline),
        )
        lines.append(cells + (_stored_cells(entry, baseline) if has_stored else ()))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def markdown(title: str, conditions: str, rows: Sequence[Row], machine: dict[str, object], notes: Sequence[str]) -> str:
    """The whole report; ``conditions`` say what was done, beside what always holds."""
    parts = [f"# {title}", f"{conditions} {CONDITIONS}", f"{machine_line(machine)} {utc_now():%Y-%m-%d}."]
    for row in rows:
        runs = ", ".join(sorted({f"{len(entry.runs)} runs" for entry in row.entries}))
        parts += [f"## {row.work}, {format_size(row.size)}, medians of {runs}", table(row), *row.remarks]
    facts = {entry.name: entry.facts for row in rows for entry in row.entries}
    parts.append("\n".join(f"* {name}: {text}" for name, text in facts.items()))
    parts += [f"Left out: {note}" for note in notes]
    return "\n\n".join(parts) + "\n"


def write(name: str, text: str, rows: Sequence[Row], machine: dict[str, object], notes: Sequence[str]) -> None:
    """Write ``results/NAME.md`` and ``results/NAME.json``."""
    document = {"machine": machine, "rows": [_row_json(row) for row in rows], "left_out": list(notes)}
    write_results(name, text, document)


def write_results(name: str, text: str, document: object) -> None:
    """Write ``results/NAME.md`` and ``results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _stored_cells(entry: Entry, baseline: Entry | None) -> tuple[str, ...]:
    if entry.stored is None:
        return "", ""
    ratio = ""
    if baseline is not None and baseline is not entry and baseline.stored is not None:
        ratio = f"{baseline.stored / entry.stored:.2f} x"
    return format_size(entry.stored), ratio


def machine_line(machine: dict[str, object]) -> str:
    flags = machine["processor_flags"]
    words = ", ".join(str(flag) for flag in flags) if isinstance(flags, list) else ""
    memory = format_size(float(str(machine["memory_bytes"])))
    return (
        f"Machine: {machine['cores']} cores ({machine['processor']}; {words}), {memory} memory, Linux {machine['kernel']}, "
        f"Python {machine['python']}, PostgreSQL {machine['postgresql']}, data set of seed {machine['seed']}; load average when it "
        f"began {machine['load']}."
    )


def _row_json(row: Row) -> dict[str, object]:
    return {
        "work": row.work,
        "data_bytes": row.size,
        **row.more,
        "contenders": [
            {
                "name": entry.name,
                "facts": entry.facts,
                "stored_bytes": entry.stored,
                "wall_seconds": [round(run.wall, 3) for run in entry.runs],
                "cpu_seconds": [round(run.cpu, 2) for run in entry.runs],
                "peak_memory_bytes": [run.memory for run in entry.runs],
            }
            for entry in row.entries
        ],
    }
