"""Peak memory of backups and restores at several sizes: it must not grow with the cluster, and stays under 300 MB.

python -m bench.memory --sizes 1GiB 8GiB          # -> results/memory.md, results/memory.json, a plot
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import machine
from bench.contenders.pgkeep import Pgkeep, PgkeepStream
from bench.dataset import data_size, work_directory
from bench.filler import change_rows, filled_server
from bench.measure import Measurement
from bench.plot import Line, Panel, write_plot
from bench.report import MEMORY_LIMIT, write_results
from pgkeep.units import format_size, parse_size

MAJOR = 17
SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Peak:
    """One kind of work on a table of ``size`` bytes: all of the cluster's bytes, those of memory at the peak, and seconds."""

    work: str
    size: int
    data: int
    peak: int
    seconds: float


def main() -> None:
    options = _parser().parse_args()
    peaks = [peak for size in options.sizes for peak in measure(size, options.directory)]
    text = report(peaks)
    print(f"\n{text}")
    if options.save:
        write_results("memory", text, {"machine": machine.facts(), "peaks": [asdict(peak) for peak in peaks]})
        plot(peaks)
    if any(peak.peak > MEMORY_LIMIT for peak in peaks):
        sys.exit(f"more than {MEMORY_LIMIT // 10**6} MB at the peak")


def measure(size: int, where: Path) -> list[Peak]:
    """Fill a server to the size, and do all that is done with it once, one after the other."""
    directory = Path(tempfile.mkdtemp(prefix="pgkeep-bench-", dir=where))
    peaks: list[Peak] = []
    try:
        with filled_server(directory, size, MAJOR) as server, work_directory(server) as work:

            def note(what: str, run: Callable[[], Measurement]) -> None:
                measured = run()
                peaks.append(Peak(what, size, data_size(server), measured.memory, round(measured.wall, 2)))
                shown = f"{what}, {format_size(size)}"
                print(f"{shown}: {format_size(measured.memory)}, {measured.wall:.1f} s", flush=True)

            for pgkeep in (PgkeepStream(server, work), Pgkeep(server, work)):
                pgkeep.prepare()
                note(f"full backup, {_mode(pgkeep)}", pgkeep.backup)
                change_rows(server, SHARE, 1)
                note(f"incremental, {_mode(pgkeep)}", pgkeep.backup_changes)
                if isinstance(pgkeep, PgkeepStream):
                    # its repository makes room for the other's
                    pgkeep.clean()
            target = work / "restored"
            note("restore", lambda: pgkeep.restore(target))
            note("delta restore", lambda: pgkeep.restore_delta("latest", target))
    finally:
        shutil.rmtree(directory)
    return peaks


def report(peaks: Sequence[Peak]) -> str:
    """Work by size."""
    sizes = sorted({peak.size for peak in peaks})
    lines: list[tuple[str, ...]] = [
        ("work", *(format_size(size) for size in sizes)),
        ("---", *("---:",) * len(sizes)),
    ]
    for work in dict.fromkeys(peak.work for peak in peaks):
        found = {peak.size: peak for peak in peaks if peak.work == work}
        lines.append((work, *(format_size(found[size].peak) if size in found else "" for size in sizes)))
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"# pgkeep's memory\n\nResident memory of all its processes at the peak; the limit is "
        f"{MEMORY_LIMIT // 10**6} MB. PostgreSQL {MAJOR}; incrementals after {SHARE:.0%} of the pages changed.\n\n{table}\n"
    )


def plot(peaks: Sequence[Peak]) -> None:
    """Memory against size."""
    lines = [
        Line(work, [(peak.data / 2**30, peak.peak / 1e6) for peak in peaks if peak.work == work])
        for work in dict.fromkeys(peak.work for peak in peaks)
    ]
    sizes = [size / 2**30 for size in sorted(peak.data for peak in peaks)]
    limit = Line("limit", [(sizes[0], MEMORY_LIMIT / 1e6), (sizes[-1], MEMORY_LIMIT / 1e6)], is_dashed=True)
    write_plot("memory", [Panel("Memory against size", "GiB of cluster", "MB at the peak", [*lines, limit])])


def _mode(pgkeep: Pgkeep) -> str:
    return "stream" if isinstance(pgkeep, PgkeepStream) else "local"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=[1 << 30, 4 << 30, 8 << 30])
    parser.add_argument(
        "--directory", type=Path, default=Path(tempfile.gettempdir()), help="needs twice the largest size"
    )
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only: leave results and plot alone")
    return parser


if __name__ == "__main__":
    main()
