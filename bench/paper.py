"""Planned on paper, to 50 TB: how large a cluster's index, page maps and listings are, and what an index of that size costs to open and to ask.

python -m bench.paper                       # -> results/paper.md, results/paper.json, a plot

The cluster is made up; its index objects, maps and listings are encoded by pgkeep's own code. Sizes beyond --largest follow in proportion.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import machine
from bench.health_simulation import NEVER, Case, simulate
from bench.plot import Line, Panel, write_plot
from bench.report import write_results
from pgkeep.backup.health import MAX_FETCH
from pgkeep.repository.codec import Codec, compress
from pgkeep.repository.contents import Parameters
from pgkeep.repository.crypto import KeyRing
from pgkeep.repository.index import Index, write_index
from pgkeep.repository.maps import Extent, FileEntry, encode_entry, encode_extents
from pgkeep.repository.packs import PackEntry, PackKind, pack_name
from pgkeep.repository.posix import PosixStore
from pgkeep.units import format_size, parse_size

TIB = 1 << 40
GIB = 1 << 30
TARGET = 50 * 10**12
# ContentWriter writes an index object after so many contents.
ENTRIES_AN_OBJECT = 250_000
# About what a cell of the authentication service's data compresses to.
STORED_CELL = 300_000
# Contents that a restore looks up at once.
LOOK_UPS = 1024
WORDS = (
    "A made-up cluster; index objects, maps and listings of pgkeep's own making. Look-ups are for contents that are not there, which asks "
    "every object. An index has {per_tib} for each TiB of data in cells."
)
# Days after which the maps are looked at; the largest counts.
LOOKED_AT = (18, 21, 24, 27, 30)
KEYS = KeyRing.unencrypted(bytes(16))


@dataclass(frozen=True, slots=True)
class IndexCost:
    """An index for ``data`` bytes: its bytes and objects, seconds for what is asked of it, bytes of memory that it adds to a process.

    ``mapped`` is memory that the page cache has anyway: the index objects, mapped. ``own`` is the process's alone.
    """

    data: int
    size: int
    objects: int
    open_seconds: float
    many_seconds: float
    one_seconds: float
    own: int
    mapped: int


def main() -> None:
    options = _parser().parse_args()
    if options.probe is not None:
        print(json.dumps(_ask(options.probe)))
        return
    costs = list(_index_costs(options.largest))
    maps = {"a full backup": float(_full_map_bytes())}
    for rate in (0.001, 0.01):
        # cells come due together under uniform changes, so that one day alone tells little
        lives = [simulate(Case("uniform", rate, NEVER, MAX_FETCH, days * 24)) for days in LOOKED_AT]
        maps[f"a month of hourly incrementals, {rate:.1%} each"] = max(outcome.map_per_gib for outcome in lives)
    text = report(costs, maps, _listing_bytes())
    print(f"\n{text}")
    if options.save:
        index = [asdict(cost) for cost in costs]
        document = {
            "machine": machine.facts(),
            "index": index,
            "map_bytes_per_gib": maps,
            "listing_bytes": _listing_bytes(),
        }
        write_results("paper", text, document)
        plot(costs)


def _index_costs(largest: int) -> Iterator[IndexCost]:
    """Write index objects for more and more data, and have another process ask the whole index each time."""
    with tempfile.TemporaryDirectory(prefix="pgkeep-bench-") as directory:
        store = PosixStore(directory)
        written = 0
        size = min(TIB, largest)
        while size <= largest:
            while written * Parameters().cell_size < size:
                _write_index_object(store)
                written += ENTRIES_AN_OBJECT
            objects = list(store.list("index/"))
            answer = subprocess.run(
                [sys.executable, "-m", "bench.paper", "--probe", directory], check=True, capture_output=True, text=True
            )
            data = written * Parameters().cell_size
            yield IndexCost(data, sum(info.size for info in objects), len(objects), **json.loads(answer.stdout))
            print(f"index for {format_size(data)}: {answer.stdout.strip()}", flush=True)
            size *= 2


def _write_index_object(store: PosixStore) -> None:
    """An index object as a backup writes it, of contents in full packs."""
    cells_a_pack = Parameters().pack_size // STORED_CELL
    packs = []
    for first in range(0, ENTRIES_AN_OBJECT, cells_a_pack):
        count = min(cells_a_pack, ENTRIES_AN_OBJECT - first)
        entries = [
            PackEntry(os.urandom(32), number * STORED_CELL, STORED_CELL, Parameters().cell_size, Codec.ZSTD)
            for number in range(count)
        ]
        packs.append((pack_name(PackKind.DATA, os.urandom(32).hex()), entries))
    write_index(store, KEYS, packs)


def _ask(directory: Path) -> dict[str, float]:
    """Open the index in ``directory`` and look up what is there not: that asks every object."""
    own, mapped = _memory()
    started = time.perf_counter()
    index = Index(PosixStore(directory), KEYS)
    opened = time.perf_counter()
    index.find_all([os.urandom(32) for _ in range(LOOK_UPS)])
    many = time.perf_counter()
    for _ in range(LOOK_UPS):
        index.find(os.urandom(32))
    one = time.perf_counter()
    own_after, mapped_after = _memory()
    return {
        "open_seconds": round(opened - started, 3),
        "many_seconds": round(many - opened, 4),
        "one_seconds": round((one - many) / LOOK_UPS, 6),
        "own": own_after - own,
        "mapped": mapped_after - mapped,
    }


def _memory() -> tuple[int, int]:
    """This process's memory of its own, and that which it shares with the page cache (proc(5), status)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return own, mapped


def _full_map_bytes() -> int:
    """The stored map of a 1 GiB segment that a full backup wrote."""
    cells, pages = GIB // Parameters().cell_size, Parameters().cell_size // Parameters().page_size
    encoded = encode_extents(Extent(cell * pages, pages, 0, os.urandom(32)) for cell in range(cells))
    return len(compress(encoded, Parameters().compression_level))


def _listing_bytes() -> int:
    """The stored bytes of a file's entry in a listing, among 256 of large segments."""
    entries = [
        encode_entry(
            FileEntry(f"16384.{n}".encode(), GIB, 0o100600, 0, None, map_id=os.urandom(32), stored_size=n << 20)
        )
        for n in range(256)
    ]
    return len(compress(b"".join(entries), Parameters().compression_level)) // len(entries)


def report(costs: Sequence[IndexCost], maps: dict[str, float], listing: int) -> str:
    """Index by size, maps and listings, and all of it for 50 TB."""
    lines: list[tuple[str, ...]] = [
        ("data", "index", "objects", "opening", f"{LOOK_UPS} look-ups", "one look-up", "own memory", "mapped"),
        ("---:",) * 8,
    ]
    lines += [
        (
            format_size(cost.data),
            format_size(cost.size),
            str(cost.objects),
            f"{cost.open_seconds:.2f} s",
            f"{cost.many_seconds * 1000:.1f} ms",
            f"{cost.one_seconds * 1e6:.0f} us",
            format_size(cost.own),
            format_size(cost.mapped),
        )
        for cost in costs
    ]
    last = costs[-1]
    factor = TARGET / last.data
    planned: list[tuple[str, ...]] = [
        ("for 50 TB, planned", "bytes"),
        ("---", "---:"),
        ("index", format_size(last.size * factor)),
        *((f"page maps, {name}", format_size(size * TARGET / GIB)) for name, size in maps.items()),
        ("listings, segments of 1 GiB", format_size(listing * TARGET / GIB)),
    ]
    return (
        "\n\n".join(
            [
                "# Metadata by size, planned on paper",
                WORDS.format(per_tib=format_size(last.size / last.data * TIB)),
                "\n".join(f"| {' | '.join(line)} |" for line in lines),
                "\n".join(f"| {' | '.join(line)} |" for line in planned),
                f"Opening an index of 50 TB would take {last.open_seconds * factor:.1f} s, a look-up of {LOOK_UPS} contents {last.many_seconds * factor * 1000:.0f} ms.",
            ]
        )
        + "\n"
    )


def plot(costs: Sequence[IndexCost]) -> None:
    """Index size and time to open it against the size of the cluster."""
    size = [(cost.data / TIB, cost.size / 2**20) for cost in costs]
    seconds = [(cost.data / TIB, cost.open_seconds) for cost in costs]
    write_plot(
        "index",
        [
            Panel("Index size", "TiB of data in cells", "MiB", [Line("index", size)]),
            Panel("Opening the index", "TiB of data in cells", "seconds", [Line("index", seconds)]),
        ],
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.paper", description=__doc__)
    parser.add_argument(
        "--largest", type=parse_size, default=8 * TIB, help="of the data whose index is written (default 8TiB)"
    )
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only: leave results and plot alone")
    return parser


if __name__ == "__main__":
    main()
