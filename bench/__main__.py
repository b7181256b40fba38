"""``python -m bench``: pgkeep and its peers side by side, on the auth-service data set."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import dataset, full, machine, report, setup
from bench.contenders.base import Contender
from bench.contenders.basebackup import BaseBackupGzip, BaseBackupZstd
from bench.contenders.pgbackrest import PgBackRest
from bench.contenders.pgkeep import Pgkeep
from pgkeep.errors import PgkeepError
from pgkeep.postgres.account import give_to
from pgkeep.postgres.server import Server
from pgkeep.units import parse_size

CONTENDERS: tuple[type[Contender], ...] = (Pgkeep, PgBackRest, BaseBackupZstd, BaseBackupGzip)
ROWS = {"full": full.run}


def main() -> None:
    options = _parser().parse_args()
    setup.install_missing()
    with data_set(options.data_set, options.size, options.seed) as server, work_directory(server) as directory:
        contenders, notes = choose(server, directory, options.only)
        facts: dict[str, object] = {
            **machine.facts(),
            "postgresql": server.binaries.version_text,
            "seed": options.seed,
        }
        for name in options.rows:
            rows = list(ROWS[name](server, contenders, options.runs))
            text = report.write(name, rows, facts, notes) if options.save else report.markdown(name, rows, facts, notes)
            print(f"\n{text}")


@contextmanager
def data_set(existing: Path | None, size: int, seed: int) -> Iterator[Server]:
    """A running server with the data set: one that ``bench.dataset`` left in ``existing``, or a new one that goes away."""
    directory = existing or Path(tempfile.mkdtemp(prefix="pgkeep-bench-"))
    server = dataset.open_server(directory)
    found_running = server.is_running
    try:
        if existing is None:
            print("making the data set", flush=True)
            dataset.create(server, size, seed)
        elif not found_running:
            server.start()
        yield server
    finally:
        if not found_running:
            server.stop()
        if existing is None:
            shutil.rmtree(directory)


@contextmanager
def work_directory(server: Server) -> Iterator[Path]:
    """Where the contenders keep their repositories, on the same file system as the server."""
    directory = Path(tempfile.mkdtemp(prefix="work-", dir=server.data_directory.parent))
    give_to(server.account, directory)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def choose(server: Server, directory: Path, only: list[str] | None) -> tuple[list[Contender], list[str]]:
    """The contenders that can run here, and why the others cannot."""
    contenders: list[Contender] = []
    notes = []
    for kind in CONTENDERS:
        if only and kind.__name__.lower() not in only:
            continue
        contender = kind(server, directory)
        try:
            contender.facts()
        except PgkeepError as error:
            notes.append(f"{contender.name}: {error}")
            print(f"left out: {notes[-1]}", file=sys.stderr)
        else:
            contenders.append(contender)
    return contenders, notes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which comparisons (default: all)")
    parser.add_argument("--size", type=parse_size, default="2GiB", help="of the data set (default 2GiB)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5, help="measured rounds, after one to warm up (default 5)")
    parser.add_argument(
        "--only", nargs="+", choices=[kind.__name__.lower() for kind in CONTENDERS], help="some contenders"
    )
    parser.add_argument("--data-set", type=Path, help="a directory that bench.dataset made, instead of a new data set")
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only: leave bench/results alone")
    return parser


if __name__ == "__main__":
    main()
