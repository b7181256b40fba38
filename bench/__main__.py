"""``python -m bench``: pgkeep and its peers side by side, on the auth-service data set, and what pgkeep costs alone."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from bench import full, incremental, machine, report, setup
from bench.contenders.barman import Barman
from bench.contenders.base import Contender, IncrementalContender
from bench.contenders.basebackup import BaseBackupGzip, BaseBackupIncremental, BaseBackupZstd
from bench.contenders.pgbackrest import PgBackRest, PgBackRestNewer
from bench.contenders.pgkeep import Pgkeep, PgkeepStream
from bench.dataset import data_set, work_directory
from bench.report import Row
from pgkeep.errors import PgkeepError
from pgkeep.postgres.server import Server
from pgkeep.units import parse_size

FULL: tuple[type[Contender], ...] = (Pgkeep, PgkeepStream, PgBackRest, PgBackRestNewer, BaseBackupZstd, BaseBackupGzip)
INCREMENTAL: tuple[type[IncrementalContender], ...] = (
    Pgkeep,
    PgkeepStream,
    PgBackRest,
    PgBackRestNewer,
    BaseBackupIncremental,
    Barman,
)
KINDS: dict[str, type[Contender]] = {kind.__name__.lower(): kind for kind in (*FULL, *INCREMENTAL)}
# Each is a program of its own, with its own options.
ALONE = ("parts", "scaling", "memory", "paper", "health_simulation", "offsite", "wal_push", "wal_fetch", "loss")
MAJORS = [15, 17, 18]

_Kind = TypeVar("_Kind", bound=Contender)


def main() -> None:
    options = _parser().parse_args()
    setup.install_missing()
    rows = [name for name in ROWS if name in options.rows]
    for major in options.majors if rows else ():
        with data_set(options.data_set, options.size, options.seed, major) as server:
            for name in rows:
                _compare(name, server, options)
    for name in (name for name in ALONE if name in options.rows):
        print(f"\npython -m bench.{name}", flush=True)
        subprocess.run([sys.executable, "-m", f"bench.{name}", *([] if options.save else ["--no-save"])], check=True)


def _compare(name: str, server: Server, options: argparse.Namespace) -> None:
    """One comparison, printed and written."""
    version = server.binaries.version_text
    facts: dict[str, object] = {**machine.facts(), "postgresql": version, "seed": options.seed}
    with work_directory(server) as directory:
        rows, notes = ROWS[name](server, directory, options)
        conditions = full.CONDITIONS if name == "full" else incremental.CONDITIONS
        text = report.markdown(f"pgkeep and its peers: {name}, PostgreSQL {version}", conditions, rows, facts, notes)
    print(f"\n{text}", flush=True)
    if options.save:
        report.write(f"{name}-{server.binaries.major}", text, rows, facts, notes)


def _full(server: Server, directory: Path, options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    contenders, notes = choose(FULL, server, directory, options.only)
    return list(full.run(server, contenders, options.runs)), notes


def _incremental(server: Server, directory: Path, options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    contenders, notes = choose(INCREMENTAL, server, directory, options.only)
    counts = {"incrementals": options.incrementals, "seed": options.seed}
    return list(incremental.run(server, contenders, options.runs, **counts)), notes


ROWS = {"full": _full, "incremental": _incremental}


def choose(
    kinds: Iterable[type[_Kind]], server: Server, directory: Path, only: list[str] | None
) -> tuple[list[_Kind], list[str]]:
    """The contenders that can run here, and why the others cannot: each is asked to make a repository."""
    contenders: list[_Kind] = []
    notes = []
    for kind in kinds:
        if only and kind.__name__.lower() not in only:
            continue
        contender = kind(server, directory)
        try:
            contender.facts()
            contender.prepare()
        except PgkeepError as error:
            notes.append(f"{contender.name}: {str(error).splitlines()[0]}")
            print(f"left out: {notes[-1]}", file=sys.stderr)
        else:
            contenders.append(contender)
        finally:
            contender.clean()
    return contenders, notes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [*ROWS, *ALONE]
    parser.add_argument("--rows", nargs="+", choices=names, default=names, help="which measurements (default: all)")
    parser.add_argument(
        "--majors", nargs="+", type=int, default=MAJORS, help="versions of PostgreSQL (default 15 17 18)"
    )
    parser.add_argument("--size", type=parse_size, default="2GiB", help="of the data set (default 2GiB)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5, help="measured rounds, after one to warm up (default 5)")
    parser.add_argument("--incrementals", type=int, default=30, help="in a row, one to warm up (default 30)")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), help="some contenders")
    parser.add_argument("--data-set", type=Path, help="a directory that bench.dataset made, instead of a new data set")
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only: leave bench/results alone")
    return parser


if __name__ == "__main__":
    main()
