"""Peak memory of a backup and a restore at two sizes: it must not grow with the cluster, and stays under 300 MB.

python -m bench.memory --sizes 512MiB 4GiB
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass

from bench.__main__ import data_set, work_directory
from bench.contenders.pgkeep import Pgkeep
from bench.dataset import data_size
from bench.report import MEMORY_LIMIT, RESULTS
from pgkeep.units import format_size, parse_size


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes."""

    data: int
    backup: int
    restore: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=[512 << 20, 4 << 30])
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    peaks = [measure(size, options.seed) for size in options.sizes]
    print(write(peaks))
    if any(max(peak.backup, peak.restore) > MEMORY_LIMIT for peak in peaks):
        sys.exit(f"more than {MEMORY_LIMIT // 10**6} MB at the peak")


def measure(size: int, seed: int) -> Peak:
    """Make a data set of the size, back it up and restore it once."""
    with data_set(None, size, seed) as server, work_directory(server) as directory:
        pgkeep = Pgkeep(server, directory)
        pgkeep.prepare()
        backup = pgkeep.backup()
        restore = pgkeep.restore(directory / "restored")
        return Peak(data_size(server), backup.memory, restore.memory)


def write(peaks: list[Peak]) -> str:
    """Write ``results/memory.md`` and ``results/memory.json``; returns the Markdown."""
    lines = [("data", "backup's peak", "restore's peak"), ("---:", "---:", "---:")]
    lines += [(format_size(peak.data), format_size(peak.backup), format_size(peak.restore)) for peak in peaks]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    text = f"# pgkeep's memory\n\nResident memory at the peak; the limit is {MEMORY_LIMIT // 10**6} MB.\n\n{table}\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.md").write_text(text)
    (RESULTS / "memory.json").write_text(json.dumps([asdict(peak) for peak in peaks], indent=2) + "\n")
    return text


if __name__ == "__main__":
    main()
