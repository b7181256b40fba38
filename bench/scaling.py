"""What pgkeep costs against cores, against the rate of change, and against a backup's age.

python -m bench.scaling --size 2GiB        # -> results/scaling.md, results/scaling.json, plots cores, change and age
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from bench import machine
from bench.changes import PageChanger
from bench.contenders.pgkeep import Pgkeep
from bench.dataset import data_set, data_size, work_directory
from bench.full import warm
from bench.measure import Measurement
from bench.plot import Line, Panel, write_plot
from bench.report import machine_line, write_results
from pgkeep.postgres.server import Server
from pgkeep.units import format_size, parse_size, utc_now

MAJOR = 17
RATES = (0.001, 0.01, 0.05, 0.20)
AGES = (0, 5, 10, 20, 30)


@dataclass(frozen=True, slots=True)
class Point:
    """Medians of the runs at one place of an axis: seconds, CPU seconds, bytes. ``at`` is cores, share, or backups since the full one."""

    what: str
    at: float
    data: int
    seconds: Sequence[float]
    cpu: float
    stored: int = 0
    changed_compressed: int = 0

    @property
    def wall(self) -> float:
        return median(self.seconds)


class BoundPgkeep(Pgkeep):
    """pgkeep with so many threads on as many cores."""

    cores = 1

    def backup(self) -> Measurement:
        self._bind()
        return super().backup()

    def restore_backup(self, backup: str, target: Path) -> Measurement:
        self._bind()
        options = ["restore", backup, f"--target-dir={target}", f"--jobs={self.cores}"]
        return self.measure([*self._command, *options])

    def _bind(self) -> None:
        self.prefix = ["taskset", "--cpu-list", f"0-{self.cores - 1}"]
        self.options = [f"--jobs={self.cores}"]


def main() -> None:
    options = _parser().parse_args()
    with data_set(options.data_set, options.size, options.seed, MAJOR) as server, work_directory(server) as directory:
        facts: dict[str, object] = {
            **machine.facts(),
            "postgresql": server.binaries.version_text,
            "seed": options.seed,
        }
        points = [
            *_against_cores(server, directory, options.runs),
            *_against_rate(server, directory, options.runs, options.seed),
            *_against_age(server, directory, options.runs, options.seed),
        ]
    text = report(points, facts, options.runs)
    print(f"\n{text}")
    if options.save:
        write_results("scaling", text, {"machine": facts, "points": [asdict(point) for point in points]})
        plot(points)


def _against_cores(server: Server, directory: Path, runs: int) -> Iterator[Point]:
    size = data_size(server)
    pgkeep = BoundPgkeep(server, directory)
    for cores in range(1, machine.CORES + 1):
        pgkeep.cores = cores
        backups, restores = [], []
        for number in range(runs + 1):
            with _prepared(pgkeep):
                warm(server.data_directory)
                backup = pgkeep.backup()
                restore = _restore(pgkeep, "latest")
            print(f"{cores} cores, round {number}: {backup.wall:.2f} s, {restore.wall:.2f} s", flush=True)
            if number:
                backups.append(backup)
                restores.append(restore)
        yield _point("full backup", cores, size, backups)
        yield _point("restore", cores, size, restores)


def _against_rate(server: Server, directory: Path, runs: int, seed: int) -> Iterator[Point]:
    changer = PageChanger(server, seed)
    pgkeep = Pgkeep(server, directory)
    with _prepared(pgkeep):
        for rate in RATES:
            pgkeep.backup()
            taken, stored, compressed, shares = [], [], [], []
            for number in range(runs + 1):
                changed = changer.change(rate)
                warm(server.data_directory)
                before = pgkeep.backup_bytes()
                backup = pgkeep.backup_changes()
                added = pgkeep.backup_bytes() - before
                print(f"{changed.share:.2%} changed: {backup.wall:.2f} s, {format_size(added)}", flush=True)
                if number:
                    taken.append(backup)
                    stored.append(added)
                    compressed.append(changed.compressed)
                    shares.append(changed.share)
            # what a first backup of a rate learns about the pages a row takes makes the others closer to it
            point = _point("incremental", median(shares), data_size(server), taken)
            yield Point(
                **{**asdict(point), "stored": round(median(stored)), "changed_compressed": round(median(compressed))}
            )


def _against_age(server: Server, directory: Path, runs: int, seed: int) -> Iterator[Point]:
    changer = PageChanger(server, seed + 1)
    pgkeep = Pgkeep(server, directory)
    with _prepared(pgkeep):
        pgkeep.backup()
        names = {0: pgkeep.newest()}
        sizes = {0: data_size(server)}
        for number in range(1, max(AGES) + 1):
            changer.change(0.01)
            backup = pgkeep.backup_changes()
            print(f"incremental {number}: {backup.wall:.2f} s", flush=True)
            if number in AGES:
                names[number], sizes[number] = pgkeep.newest(), data_size(server)
        warm(pgkeep.repository)
        restores: dict[int, list[Measurement]] = {age: [] for age in AGES}
        for number in range(runs + 1):
            for age in AGES:
                restore = _restore(pgkeep, names[age])
                print(f"restore {number} of backup {age}: {restore.wall:.2f} s", flush=True)
                if number:
                    restores[age].append(restore)
        for age in AGES:
            yield _point("restore by age", age, sizes[age], restores[age])


class _prepared:  # noqa: N801 - reads as a noun, like contextlib.suppress
    """A repository for the time of a block."""

    def __init__(self, pgkeep: Pgkeep) -> None:
        self._pgkeep = pgkeep

    def __enter__(self) -> None:
        self._pgkeep.prepare()

    def __exit__(self, *_: object) -> None:
        self._pgkeep.clean()


def _restore(pgkeep: Pgkeep, backup: str) -> Measurement:
    target = pgkeep.directory.with_name("restored")
    try:
        return pgkeep.restore_backup(backup, target)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _point(what: str, at: float, size: int, runs: Sequence[Measurement]) -> Point:
    return Point(what, at, size, [round(run.wall, 3) for run in runs], round(median(run.cpu for run in runs), 2))


def report(points: Sequence[Point], facts: dict[str, object], runs: int) -> str:
    """A table for each axis."""
    parts = [
        "# pgkeep against cores, change and age",
        f"Medians of {runs} runs after one to warm up, in mode local, with the page cache warm. {machine_line(facts)} {utc_now():%Y-%m-%d}.",
    ]
    tables = {
        "Cores (taskset, --jobs)": ("full backup", "restore"),
        "Share of pages that changed": ("incremental",),
        "Age: 1 % incrementals since the full backup": ("restore by age",),
    }
    for title, kinds in tables.items():
        lines: list[tuple[str, ...]] = [
            ("work", "at", "seconds", "min–max", "a second", "CPU seconds", "stored", "changed pages, compressed"),
            ("---", *("---:",) * 7),
        ]
        lines += [_cells(point) for point in points if point.what in kinds]
        parts += [f"## {title}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(parts) + "\n"


def plot(points: Sequence[Point]) -> None:
    """Throughput against cores; seconds and stored bytes against the rate; restore time against age."""

    def line(what: str, name: str, value: str) -> Line:
        found = [point for point in points if point.what == what]
        values = {
            "rate": [point.data / point.wall / 2**20 for point in found],
            "wall": [point.wall for point in found],
            "wall a GiB": [point.wall / point.data * 2**30 for point in found],
            "cpu a GiB": [point.cpu / point.data * 2**30 for point in found],
            "stored": [point.stored / 2**20 for point in found],
            "compressed": [point.changed_compressed / 2**20 for point in found],
        }
        scale = 100 if what == "incremental" else 1
        return Line(name, [(point.at * scale, y) for point, y in zip(found, values[value], strict=True)])

    most = round(max(point.at for point in points if point.what == "full backup"))
    cores = [(float(number), str(number)) for number in range(1, most + 1)]
    work = [line("full backup", "full backup", "rate"), line("restore", "restore", "rate")]
    write_plot("cores", [Panel("Throughput against cores", "cores", "MiB a second", work, x_names=cores)])
    rates = [(rate * 100, f"{rate * 100:g}") for rate in RATES]
    seconds = Panel(
        "An incremental's time",
        "% of pages changed",
        "seconds",
        [line("incremental", "backup", "wall")],
        log_x=True,
        x_names=rates,
    )
    stored = [line("incremental", "stored", "stored"), line("incremental", "changed pages, compressed", "compressed")]
    bytes_ = Panel("An incremental's bytes", "% of pages changed", "MiB", stored, log_x=True, log_y=True, x_names=rates)
    write_plot("change", [seconds, bytes_])
    axis = "1 % incrementals since the full backup"
    ages = [
        Panel("Restore time against age", axis, "seconds a GiB", [line("restore by age", "restore", "wall a GiB")]),
        Panel(
            "Restore's CPU time against age",
            axis,
            "CPU seconds a GiB",
            [line("restore by age", "restore", "cpu a GiB")],
        ),
    ]
    write_plot("age", ages)


def _cells(point: Point) -> tuple[str, ...]:
    return (
        point.what,
        f"{point.at:.2%}" if point.what == "incremental" else f"{point.at:g}",
        f"{point.wall:.2f}",
        f"{min(point.seconds):.2f}–{max(point.seconds):.2f}",
        format_size(point.data / point.wall),
        f"{point.cpu:.1f}",
        format_size(point.stored) if point.stored else "",
        format_size(point.changed_compressed) if point.changed_compressed else "",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--size", type=parse_size, default="2GiB", help="of the data set (default 2GiB)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5, help="measured rounds, after one to warm up (default 5)")
    parser.add_argument("--data-set", type=Path, help="a directory that bench.dataset made, instead of a new data set")
    parser.add_argument(
        "--no-save", dest="save", action="store_false", help="print only: leave results and plots alone"
    )
    return parser


if __name__ == "__main__":
    main()
