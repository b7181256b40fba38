"""Page maps over months of hourly backups: what the thresholds of `pgkeep.backup.health` cost in bytes stored and bytes restored.

python -m bench.health_simulation                     # -> results/health.md, results/health.json, the plot
python -m bench.health_simulation --days 14 --rates 0.01 --no-save

The maps are made by pgkeep's own code; what is made up are the numbers of the pages that change, the ids of contents, and their places in
packs. Sizes are counted in pages before compression, so that they are ratios for any data.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from statistics import mean

import numpy as np
import numpy.typing as npt

from bench.machine import CORES
from bench.plot import Line, Panel, write_plot
from bench.report import write_results
from pgkeep.backup.health import unhealthy_cells
from pgkeep.backup.overlay import EXTENT, Extents, Pages, cut, joined, overlay, split_at_grid
from pgkeep.repository.codec import Codec, compress
from pgkeep.repository.content_reader import spans
from pgkeep.repository.contents import Parameters
from pgkeep.repository.index import Location
from pgkeep.repository.packs import PackEntry

PAGE_SIZE = Parameters().page_size
CELL_PAGES = Parameters().cell_size // PAGE_SIZE
PACK_PAGES = Parameters().pack_size // PAGE_SIZE
# 64 MiB: large enough that no single cell shows, small enough that the whole grid takes minutes.
FILE_PAGES = 64 * CELL_PAGES
NEVER = 1_000_000
# What the issue of stored bytes and restores is judged by: thirty backups of 1 % each.
THIRTY = 30
RETENTION_BACKUPS = 14 * 24
GIB_PAGES = (1 << 30) // PAGE_SIZE
RATES = (0.01, 0.001, 0.0002)
# What is compared: at most so many pieces in a cell, and at most so many times its size fetched for it.
RULES: tuple[tuple[int, float], ...] = ((8, 3), (32, 3), (96, 3), (NEVER, 3), (NEVER, 2), (NEVER, 1.5), (NEVER, NEVER))
PLOTTED = ("uniform", "zipf", "hot", "append")
WORDS = """
Simulated: {days} days of hourly backups of {size} MiB, with the page maps of `pgkeep.backup.overlay` and the rule of `pgkeep.backup.health`. A rule
stores a cell anew that would be in more pieces, or for which more than so many times its size would be fetched. All columns are ratios, of bytes
before compression, but for the last two.

* written: pages stored for each page that changed; after thirty backups, and over the whole life
* kept: what a repository holds that keeps 14 days, against each version of a page once
* fetched: what a restore fetches for each byte that it writes; mean and most in the second half
* pieces in a cell on average; map: KiB that the page map takes in the repository for each GiB of data

Patterns: uniform (one file; many files: sixteen small ones, which share bundles); zipf: the page of rank n is 1/n as likely as the first; hot: nine
of ten changes in one twentieth of the file; append: changes in the newest tenth of a file that grows to eight times its size.
""".strip()

Random = np.random.Generator
Pattern = Callable[[Random, int, int, int], Pages]


@dataclass(frozen=True, slots=True)
class Case:
    """One life of a cluster: ``rate`` is the share of its pages that change between two backups."""

    pattern: str
    rate: float
    max_pieces: int
    max_fetch: float
    backups: int

    @property
    def rule(self) -> str:
        """The thresholds in words."""
        if self.max_fetch == NEVER:
            return "no rule"
        pieces = f"{self.max_pieces} pieces, " if self.max_pieces != NEVER else ""
        return f"{pieces}{self.max_fetch:g} times"


@dataclass(frozen=True, slots=True)
class RestoreCost:
    """What a restore of the backup taken after so many hours reads, against what it writes."""

    hours: int
    fetched: float
    requests_per_gib: float
    pieces_per_cell: float


@dataclass(slots=True)
class Outcome:
    """What came of a case; all but the pieces and ``map_per_gib`` are ratios.

    ``written_30`` and ``written`` are pages written for each page that changed, after thirty backups and over the whole
    life; ``rewritten`` is the part of ``written`` that went to whole cells. ``kept`` is what a repository that keeps 14 days of
    backups holds, against the least that it could: each version of a page once. ``map_per_gib`` are the bytes that the map of
    1 GiB takes as pgkeep stores it, compressed.
    """

    case: Case
    written_30: float = 0.0
    written: float = 0.0
    rewritten: float = 0.0
    kept: float = 0.0
    pieces: float = 0.0
    pieces_most: int = 0
    map_per_gib: float = 0.0
    restores: list[RestoreCost] = field(default_factory=list)

    @property
    def fetched_late(self) -> list[float]:
        """What restores fetch once the map is old: in the second half of its life."""
        return [cost.fetched for cost in self.restores if cost.hours * 2 > self.case.backups]


def uniform(random: Random, pages: int, count: int, _backup: int) -> Pages:
    """Every page is as likely as any other."""
    return _ascending(random.choice(pages, count, replace=False))


def zipf(random: Random, pages: int, count: int, _backup: int) -> Pages:
    """The page of rank n is 1/n as likely as the first; ranks are scattered over the file, always in the same way."""
    ranks = np.random.default_rng(pages).permutation(pages) + 1
    # the greatest of these are a draw without replacement, with those weights
    keys = random.gumbel(size=pages) - np.log(ranks)
    return _ascending(np.argpartition(keys, -count)[-count:])


def hot(random: Random, pages: int, count: int, _backup: int) -> Pages:
    """Nine of ten changes are in one twentieth of the file, which is one stretch."""
    warm = pages // 20
    inside = min(warm, round(count * 0.9))
    first = pages // 3
    return _ascending(
        np.union1d(first + random.choice(warm, inside, replace=False), random.choice(pages, count - inside))
    )


def append(random: Random, pages: int, count: int, _backup: int) -> Pages:
    """Changes are in the newest tenth of a file that grows; what is new comes on top (`_life`)."""
    newest = max(1, pages // 10)
    return _ascending(pages - 1 - random.choice(newest, min(count, newest), replace=False))


PATTERNS: dict[str, Pattern] = {
    "uniform": uniform,
    "many files": uniform,
    "zipf": zipf,
    "hot": hot,
    "append": append,
}
# The pattern of which the cluster is not one file but so many, which share bundles.
MANY_FILES = 16


class Contents:
    """The contents stored so far: how large each is, where it lies, and which backup used it last."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.offsets: list[int] = []
        self.last_used = np.zeros(0, np.int64)
        self._end = 0

    def add(self, sizes: Sequence[int]) -> npt.NDArray[np.int64]:
        """Numbers of new contents of so many pages each, one after the other in the packs."""
        first = len(self.sizes)
        for size in sizes:
            self.sizes.append(size)
            self.offsets.append(self._end)
            self._end += size
        self.last_used = np.concatenate((self.last_used, np.zeros(len(sizes), np.int64)))
        return np.arange(first, len(self.sizes))

    def new_backup(self) -> None:
        """What follows is in packs of its own."""
        self._end = -(-self._end // PACK_PAGES) * PACK_PAGES

    def use(self, extents: Extents, backup: int) -> None:
        """These contents are part of a backup."""
        self.last_used[_numbers(extents)] = backup

    def kept(self, backup: int) -> int:
        """Pages of all contents that some backup of the retention still uses."""
        return int(np.array(self.sizes)[self.last_used > backup - RETENTION_BACKUPS].sum())

    def restore(self, extents: Extents) -> tuple[int, int]:
        """Pages to fetch, gaps included, and requests for that, when a restore reads all contents of a map once."""
        locations = [self._location(number) for number in np.unique(_numbers(extents)).tolist()]
        reads = [entries[-1].offset + entries[-1].stored_size - entries[0].offset for _, entries in spans(locations)]
        return sum(reads) // PAGE_SIZE, len(reads)

    def _location(self, number: int) -> Location:
        pack, page = divmod(self.offsets[number], PACK_PAGES)
        size = self.sizes[number] * PAGE_SIZE
        return Location(str(pack), PackEntry(b"", page * PAGE_SIZE, size, size, Codec.RAW))


def simulate(case: Case) -> Outcome:
    """Live through a case. Always the same for the same case."""
    random = np.random.default_rng(7)
    contents, outcome = Contents(), Outcome(case)
    pages = _first_pages(case.pattern)
    extents = _whole_cells(contents, np.arange(-(-pages // CELL_PAGES)), pages)
    contents.use(extents, 0)
    written = rewritten = changes = 0
    versions = np.zeros(case.backups + 1, np.int64)
    for backup in range(1, case.backups + 1):
        contents.new_backup()
        old_pages = pages
        changed = PATTERNS[case.pattern](random, pages, max(1, round(case.rate * FILE_PAGES)), backup)
        pages = _grown(case, backup)
        changed = np.concatenate((changed, np.arange(old_pages, pages, dtype=np.uint32)))
        extents, cells = _backup(contents, extents, old_pages, pages, changed, case)
        contents.use(extents, backup)
        whole = int(sum(min(CELL_PAGES, pages - cell * CELL_PAGES) for cell in cells.tolist()))
        bundled = int((~np.isin(changed // CELL_PAGES, cells)).sum())
        written, rewritten, changes = written + whole + bundled, rewritten + whole, changes + len(changed)
        versions[backup] = len(changed)
        if backup == min(THIRTY, case.backups):
            outcome.written_30 = written / changes
        if _is_looked_at(backup):
            fetched, requests = contents.restore(extents)
            pieces = len(split_at_grid(extents, CELL_PAGES)) / -(-pages // CELL_PAGES)
            outcome.restores.append(RestoreCost(backup, fetched / pages, requests / pages * GIB_PAGES, pieces))
    outcome.written, outcome.rewritten = written / changes, rewritten / changes
    # each page as the oldest kept backup has it, and every version that came since
    oldest = max(0, case.backups - RETENTION_BACKUPS + 1)
    outcome.kept = contents.kept(case.backups) / (_grown(case, oldest) + int(versions[oldest + 1 :].sum()))
    counts = np.bincount(split_at_grid(extents, CELL_PAGES)["first_page"] // CELL_PAGES)
    outcome.pieces, outcome.pieces_most = float(counts.mean()), int(counts.max())
    outcome.map_per_gib = len(compress(_with_hashes(extents), Parameters().compression_level)) / pages * GIB_PAGES
    return outcome


def _backup(
    contents: Contents, parent: Extents, old_pages: int, pages: int, changed: Pages, case: Case
) -> tuple[Extents, Pages]:
    """One backup's map, and the cells that it stored anew; as `pgkeep.backup.changes.ChangedFile` goes about it."""
    expected = overlay(parent, old_pages, changed, _bundles(contents, changed, keep=False))
    cells = _unhealthy(expected, case)
    rest = changed[~np.isin(changed // CELL_PAGES, cells)]
    placed = _bundles(contents, rest, keep=True)
    if not len(cells):
        return overlay(parent, old_pages, changed, placed), cells
    whole = _whole_cells(contents, cells, pages)
    inside = (cells[:, None].astype(np.int64) * CELL_PAGES + np.arange(CELL_PAGES)).reshape(-1)
    replaced = np.union1d(changed, inside[inside < pages]).astype(np.uint32)
    together = np.concatenate((placed, whole))
    return overlay(parent, old_pages, replaced, together[np.argsort(together["first_page"])]), cells


def _unhealthy(extents: Extents, case: Case) -> Pages:
    """The cells to store anew, each file judged by its own map."""
    file_cells = FILE_PAGES // CELL_PAGES // (MANY_FILES if case.pattern == "many files" else 1)
    found = []
    for first in range(0, FILE_PAGES // CELL_PAGES, file_cells):
        own = cut(extents, first * CELL_PAGES, (first + file_cells) * CELL_PAGES)
        own["first_page"] -= first * CELL_PAGES
        cells = unhealthy_cells(own, CELL_PAGES, max_pieces=case.max_pieces, max_fetch=case.max_fetch)
        found.append(cells + np.uint32(first))
    return np.concatenate(found)


def _bundles(contents: Contents, changed: Pages, *, keep: bool) -> Extents:
    """Extents of changed pages in new bundles; without ``keep`` these are only tried."""
    placed = np.zeros(len(changed), EXTENT)
    placed["first_page"], placed["pages"] = changed, 1
    placed["content_page"] = np.arange(len(changed)) % CELL_PAGES
    firsts = range(0, len(changed), CELL_PAGES)
    if keep:
        numbers = contents.add([min(CELL_PAGES, len(changed) - first) for first in firsts])
    else:
        numbers = len(contents.sizes) + np.arange(len(firsts))
    placed["id"] = _ids(numbers[np.arange(len(changed)) // CELL_PAGES])
    return joined(placed)


def _whole_cells(contents: Contents, cells: npt.NDArray[np.integer], pages: int) -> Extents:
    """Extents of cells stored anew."""
    placed = np.zeros(len(cells), EXTENT)
    placed["first_page"] = cells * CELL_PAGES
    placed["pages"] = np.minimum(CELL_PAGES, pages - cells.astype(np.int64) * CELL_PAGES)
    placed["id"] = _ids(contents.add(placed["pages"].tolist()))
    return placed


def _ids(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    """Ids that look like hashes and hold the number, so that sorting them costs what it costs in earnest."""
    ids = np.zeros((len(numbers), 4), "<u8")
    ids[:, 0] = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    ids[:, 3] = numbers
    return ids.view("V32").reshape(-1)


def _with_hashes(extents: Extents) -> bytes:
    """A map with ids that do not compress, like those in a repository."""
    numbers = _numbers(extents)
    result = extents.copy()
    result["id"] = np.frombuffer(np.random.default_rng(7).bytes(32 * (int(numbers.max()) + 1)), "V32")[numbers]
    return result.tobytes()


def _numbers(extents: Extents) -> npt.NDArray[np.int64]:
    """The contents' numbers, out of their ids."""
    ids = np.ascontiguousarray(extents["id"]).view("<u8").reshape(-1, 4)
    return ids[:, 3].astype(np.int64)


def _ascending(pages: npt.NDArray[np.integer]) -> Pages:
    return np.sort(pages).astype(np.uint32)


def _first_pages(pattern: str) -> int:
    return FILE_PAGES // 8 if pattern == "append" else FILE_PAGES


def _grown(case: Case, backup: int) -> int:
    """Pages of the file when a backup is taken; one that is appended to is full at the end of its life."""
    first = _first_pages(case.pattern)
    return first + (FILE_PAGES - first) * backup // case.backups


def _is_looked_at(backup: int) -> bool:
    """Whether a restore of this backup is looked at: one a day, and two early ones."""
    return backup % 24 == 0 or backup in {1, THIRTY}


def main() -> None:
    options = _parser().parse_args()
    cases = [
        Case(pattern, rate, *rule, options.days * 24)
        for rate, pattern, rule in itertools.product(options.rates, PATTERNS, RULES)
    ]
    outcomes = []
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:
        for outcome in pool.map(simulate, cases):
            outcomes.append(outcome)
            print(f"{len(outcomes)}/{len(cases)} {_line(outcome)}", flush=True)
    text = report(outcomes, options.days)
    print(f"\n{text}")
    if options.save:
        write_results("health", text, [asdict(outcome) for outcome in outcomes])
        plot(outcomes)


def report(outcomes: Sequence[Outcome], days: int) -> str:
    """A table for each rate."""
    parts = ["# When cells are stored anew", WORDS.format(days=days, size=FILE_PAGES * PAGE_SIZE >> 20)]
    for rate in dict.fromkeys(outcome.case.rate for outcome in outcomes):
        lines: list[tuple[str, ...]] = [
            ("pattern", "rule", "written, 30", "written", "kept", "fetched", "at most", "pieces", "map"),
            ("---", "---", *("---:",) * 7),
        ]
        lines += [_cells(outcome) for outcome in outcomes if outcome.case.rate == rate]
        parts += [
            f"## {rate:.2%} of the pages change in an hour",
            "\n".join(f"| {' | '.join(line)} |" for line in lines),
        ]
    return "\n\n".join(parts) + "\n"


def plot(outcomes: Sequence[Outcome]) -> None:
    """What restores fetch against age, under each rule, at the highest rate."""
    most = max(outcome.case.rate for outcome in outcomes)
    panels = [
        Panel(
            f"{pattern}, {most:.0%} an hour",
            "days of hourly backups",
            "fetched for a restored byte",
            [
                Line(outcome.case.rule, [(cost.hours / 24, cost.fetched) for cost in outcome.restores])
                for outcome in outcomes
                if outcome.case.rate == most and outcome.case.pattern == pattern
            ],
            y_end=6,
        )
        for pattern in PLOTTED
    ]
    write_plot("health", panels)


def _cells(outcome: Outcome) -> tuple[str, ...]:
    late = outcome.fetched_late
    return (
        outcome.case.pattern,
        outcome.case.rule,
        f"{outcome.written_30:.2f}",
        f"{outcome.written:.2f}",
        f"{outcome.kept:.2f}",
        f"{mean(late):.2f}",
        f"{max(late):.2f}",
        f"{outcome.pieces:.0f}",
        f"{outcome.map_per_gib / 1024:,.0f}",
    )


def _line(outcome: Outcome) -> str:
    names = ("", "", "written ", "", "kept ", "fetched ", "at most ", "pieces ", "map ")
    return f"{outcome.case.rate:.2%} " + ", ".join(map("".join, zip(names, _cells(outcome), strict=True)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.health_simulation", description=__doc__)
    parser.add_argument("--days", type=int, default=60, help="of hourly backups (default 60)")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="share of pages changed in an hour")
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only: leave results and plot alone")
    return parser


if __name__ == "__main__":
    main()
