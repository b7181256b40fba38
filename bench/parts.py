"""What each part of a backup and a restore costs a core, on cells of the auth-service data set, in CPU time: nothing waits, nothing is shared.

python -m bench.parts                       # -> results/parts.md, results/parts.json
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import google_crc32c

from bench import machine
from bench.changes import PAGE_SIZE, relation_files
from bench.dataset import data_set
from bench.report import write_results
from pgkeep.postgres.pages import verify_pages
from pgkeep.repository.codec import Codec, compress, decompress
from pgkeep.repository.contents import Parameters
from pgkeep.repository.crypto import SALT_SIZE, KeyRing, Suite
from pgkeep.units import format_size, parse_size

CELL = Parameters().cell_size
CELLS_A_FILE = 16
NONCE = bytes(12)
# Later than any page's LSN: every page is checked.
ANY_LSN = 1 << 62

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, slots=True)
class Part:
    """CPU seconds for a GiB of pages."""

    work: str
    name: str
    seconds: float


def main() -> None:
    options = _parser().parse_args()
    with data_set(options.data_set, options.size, 1) as server:
        cells = list(_cells(server.data_directory))
    parts, ratio = measure(cells)
    text = report(parts, len(cells), ratio)
    print(f"\n{text}")
    if options.save:
        document = {"machine": machine.facts(), "cells": len(cells), "compressed_to": round(ratio, 3)}
        write_results("parts", text, {**document, "parts": [asdict(part) for part in parts]})


def measure(cells: Sequence[tuple[int, bytes]]) -> tuple[list[Part], float]:
    """All parts in the order of the pipeline, and what the cells compress to."""
    parts: list[Part] = []

    def take(work: str, name: str, function: Callable[[_In], _Out], given: Sequence[_In]) -> list[_Out]:
        started = time.thread_time()
        results = [function(value) for value in given]
        seconds = (time.thread_time() - started) / len(cells) * (1 << 30) / CELL
        parts.append(Part(work, name, round(seconds, 3)))
        return results

    keys = KeyRing(Suite.AES_256_GCM, os.urandom(32), os.urandom(16))
    sealer = keys.sealer(os.urandom(SALT_SIZE), "bench")
    plain = [cell for _, cell in cells]
    level = Parameters().compression_level
    take("backup", "page checksums", lambda cell: verify_pages(cell[1], first_block=cell[0], start_lsn=ANY_LSN), cells)
    take("backup", "CRC-32C", google_crc32c.value, plain)
    take("backup", "content id (BLAKE3)", keys.content_id, plain)
    packed = take("backup", f"zstd level {level}", lambda cell: compress(cell, level), plain)
    sealed = take("backup", "sealing (AES-256-GCM)", lambda data: sealer.seal(NONCE, data, b""), packed)
    opened = take("restore", "opening (AES-256-GCM)", lambda data: sealer.open(NONCE, data, b""), sealed)
    restored = take("restore", "zstd", lambda data: decompress(data, Codec.ZSTD, CELL), opened)
    take("restore", "content id (BLAKE3)", keys.content_id, restored)
    return parts, sum(map(len, packed)) / sum(map(len, plain))


def report(parts: Sequence[Part], cells: int, ratio: float) -> str:
    """One table."""
    lines: list[tuple[str, ...]] = [
        ("work", "part", "CPU seconds a GiB", "a second on one core"),
        ("---", "---", "---:", "---:"),
    ]
    lines += [(part.work, part.name, f"{part.seconds:.2f}", format_size((1 << 30) / part.seconds)) for part in parts]
    for work in dict.fromkeys(part.work for part in parts):
        total = sum(part.seconds for part in parts if part.work == work)
        lines.append((work, "together", f"{total:.2f}", format_size((1 << 30) / total)))
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# The parts of a backup and a restore\n\n{cells} cells of relations, which compress to {ratio:.0%}; CPU time of one thread.\n\n{table}\n"


def _cells(data_directory: Path) -> Iterator[tuple[int, bytes]]:
    """The first cells of each relation that fills some: number of the first page, bytes."""
    for path in relation_files(data_directory):
        with path.open("rb") as file:
            for number in range(min(CELLS_A_FILE, path.stat().st_size // CELL)):
                yield number * CELL // PAGE_SIZE, file.read(CELL)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.parts", description=__doc__)
    parser.add_argument("--size", type=parse_size, default="300MiB", help="of the data set (default 300MiB)")
    parser.add_argument("--data-set", type=Path, help="a directory that bench.dataset made, instead of a new data set")
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only: leave results alone")
    return parser


if __name__ == "__main__":
    main()
