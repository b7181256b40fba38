"""How well a restore's time is predicted: ``python -m bench.rto --sizes 1GiB 2GiB … ``.

One cluster grows from size to size. At each it is backed up, WAL is written behind the backup, and it is restored up to the end of that
WAL until the server answers its first query. Every second size is what the model is fitted on; the others it has to predict.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg

from bench import machine
from bench.loss import work_directory
from pgkeep.backup import BackupRequest, run_backup
from pgkeep.policy.rto import Measured, RtoModel, Work
from pgkeep.postgres.binaries import find_binaries
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.server import Server
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.restore import RestoreRequest, run_restore
from pgkeep.restore.target import target_name
from pgkeep.units import format_size, parse_size

_SETTINGS: dict[str, str | int | bool] = {
    "shared_buffers": "128MB",
    "max_wal_size": "4GB",
    "wal_keep_size": "8GB",
    "autovacuum": False,
}
_WAL_SHARES = (0.5, 0.1, 0.3, 0.8, 0.2, 0.6, 1.0, 0.4)
"""WAL behind the backups, as shares of the cluster's size, in turn."""


@dataclass(frozen=True, slots=True)
class Run:
    """A restore: ``predicted`` for those that the model was not fitted on."""

    size: int
    measured: Measured
    predicted: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured."""
        return abs((self.predicted or 0.0) - self.measured.total) / self.measured.total


def main() -> None:
    options = _parser().parse_args()
    with work_directory() as directory, Server(directory / "primary", find_binaries(options.major)) as server:
        server.initdb()
        server.start(_SETTINGS)
        repository = Repository.create(
            open_store(str(directory / "repository")), KeyFile.generate(directory / "pgkeep.key")
        )
        config = _configure(directory, server)
        sizes = sorted(options.sizes)
        backups = []
        for number, size in enumerate(sizes):
            _grow(server, size)
            backups.append(run_backup(BackupRequest(cluster="rto", dsn=server.dsn()), repository).id)
            end = _write_wal(server, number, int(size * _WAL_SHARES[number % len(_WAL_SHARES)]))
            _receive(config, end, directory)
        server.stop("fast")
        found: list[list[Measured]] = [[] for _ in sizes]
        for _ in range(options.runs):
            # in turn, so that the noise of the machine is shared
            for number, size in enumerate(sizes):
                found[number].append(_restore(repository, directory, backups[number], _point(number)))
                print(f"{format_size(size)}: {found[number][-1].total:.1f} s {found[number][-1]}", flush=True)
    fitted = [Run(size, measured) for size, group in zip(sizes[::2], found[::2], strict=True) for measured in group]
    # in the order of the rounds: the newest counts most
    model = RtoModel([group[turn] for turn in range(options.runs) for group in found[::2]])
    results = [_predicted(model, size, group) for size, group in zip(sizes[1::2], found[1::2], strict=True)]
    text = report(results, fitted, options.major, options.runs)
    print(f"\n{text}")
    if options.save:
        place = Path(__file__).with_name("results")
        (place / "rto.md").write_text(text)
        document = {
            **machine.facts(),
            "fitted": [asdict(run) for run in fitted],
            "predicted": [asdict(run) for run in results],
        }
        (place / "rto.json").write_text(json.dumps(document, indent=1) + "\n")


def report(predicted: list[Run], fitted: list[Run], major: int, runs: int) -> str:
    """A line for each size that was predicted."""
    sizes = ", ".join(format_size(size) for size in sorted({run.size for run in fitted}))
    lines = [
        "# Restore times, predicted and measured",
        "",
        f"PostgreSQL {major}; fitted on {len(fitted)} restores of clusters of {sizes}. Measured: the median of {runs}.",
        "",
        f"Load of the machine at the end: {machine.facts()['load']}.",
        "",
        "| cluster | WAL to replay | predicted | nine of ten within | measured | off by |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {format_size(run.size)} | {format_size(run.measured.work.wal)} | {run.predicted:.1f} s | {run.low:.1f} to {run.high:.1f} s"
        f" | {run.measured.total:.1f} s | {run.error:.0%} |"
        for run in predicted
    ]
    within = sum(run.error <= 0.25 for run in predicted)
    lines += [
        "",
        f"{within} of {len(predicted)} within 25 %; the worst is off by {max(run.error for run in predicted):.0%}.",
    ]
    return "\n".join(lines) + "\n"


def _predicted(model: RtoModel, size: int, group: list[Measured]) -> Run:
    """Against the median of the restores of a size."""
    measured = sorted(group, key=lambda each: each.total)[len(group) // 2]
    found = model.predict(measured.work)
    return Run(size, measured, found.seconds, found.low, found.high)


def _configure(directory: Path, server: Server) -> Path:
    path = directory / "pgkeep.toml"
    path.write_text(
        f'[repository.main]\nurl = "file://{directory}/repository"\nkey = "file:{directory}/pgkeep.key"\n'
        f"[cluster.rto]\ndsn = {json.dumps(server.dsn())}\n"
        f'wal = {{ spool = "{directory}/spool", slot_cap = "none" }}\n'
    )
    return path


def _grow(server: Server, size: int) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS filler (n bigserial PRIMARY KEY, a text, b text)")
        while connection.execute("SELECT sum(pg_database_size(oid)) < %s FROM pg_database", [size]).fetchone() == (
            True,
        ):
            _insert(connection)
        connection.execute("CHECKPOINT")


def _insert(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    # half of it compresses, as rows do
    connection.execute(
        "INSERT INTO filler (a, b) SELECT md5(random()::text) || md5(random()::text), repeat('row ' || n % 100, 10)"
        " FROM generate_series(1, 20000) n"
    )


def _point(number: int) -> str:
    return f"end-{number}"


def _write_wal(server: Server, number: int, size: int) -> LSN:
    """Inserts and updates, until there is so much, and a restore point; where it ends."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        begin = connection.execute("SELECT pg_current_wal_lsn()").fetchone()
        while connection.execute(
            "SELECT pg_current_wal_lsn() - %s::pg_lsn < %s", [*(begin or ()), size]
        ).fetchone() == (True,):
            connection.execute("UPDATE filler SET b = b || '.' WHERE n % 500 = floor(random() * 500)")
            _insert(connection)
        row = connection.execute("SELECT pg_create_restore_point(%s)::text", [_point(number)]).fetchone()
        assert row is not None
        connection.execute("SELECT pg_switch_wal()")
        return LSN.parse(str(row[0]))


def _receive(config: Path, end: LSN, directory: Path) -> None:
    with (directory / "receiver.log").open("ab") as log:
        command = [sys.executable, "-m", "pgkeep", "--config", str(config), "wal", "receive", f"--until-lsn={end}"]
        subprocess.run(command, stdout=log, stderr=log, check=True)


def _restore(repository: Repository, directory: Path, backup: str, point: str) -> Measured:
    target = directory / "restored"
    began = time.monotonic()
    outcome = run_restore(
        RestoreRequest(target=str(target), backup=backup, recovery=target_name(point), start=True), repository
    )
    assert outcome.dsn is not None
    with psycopg.connect(outcome.dsn) as connection:
        connection.execute("SELECT count(*) FROM pg_class")
    total = time.monotonic() - began
    Server(target, find_binaries(outcome.plan.major)).stop("immediate")
    manifest = outcome.plan.manifest
    recovery = outcome.plan.recovery
    assert recovery is not None
    shutil.rmtree(target)
    write, replay = outcome.seconds["write"], outcome.seconds["replay"]
    work = Work(manifest.logical_size, manifest.stored_size, recovery.wal_bytes)
    return Measured(work, write, replay, total - write - replay)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.rto", description=__doc__)
    sizes = ["1GiB", "2GiB", "4GiB", "5GiB", "7GiB", "9GiB", "12GiB", "14GiB", "16GiB"]
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=[parse_size(size) for size in sizes])
    parser.add_argument("--runs", type=int, default=2, help="restores of each size")
    parser.add_argument("--major", type=int, default=17)
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only: leave bench/results alone")
    return parser


if __name__ == "__main__":
    main()
