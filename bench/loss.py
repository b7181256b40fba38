"""How much is lost when a server dies with its disk: ``python -m bench.loss --runs 200``.

A client writes a row ten times a second. At a random moment the server is killed with SIGKILL and its data directory removed;
in half of the runs the receiver is killed, too, and loses its spool as well, unless it is synchronous: then only the repository
and the spool are left, and the next receiver ships the spool. Then the cluster is restored to the latest moment that the
repository knows, and the acknowledged commits that are missing are counted.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psycopg

from bench import machine
from pgkeep.backup import BackupRequest, run_backup
from pgkeep.config import load_config
from pgkeep.policy.objectives import rpo_now
from pgkeep.postgres.account import give_to, server_account
from pgkeep.postgres.binaries import find_binaries
from pgkeep.postgres.server import Server
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.restore import RestoreRequest, run_restore
from pgkeep.restore.recover import Recovered
from pgkeep.restore.target import latest
from pgkeep.units import parse_duration, utc_now
from pgkeep.wal.status import read_wal_status

RATE = 10.0
_SEGMENT_MIB = 1
_SETTINGS: dict[str, str | int | bool] = {"fsync": False, "shared_buffers": "16MB", "wal_sender_timeout": "10s"}


@dataclass(frozen=True, slots=True)
class Scenario:
    """What one run does; ``ship_every`` in seconds."""

    major: int
    synchronous: bool
    kill_receiver: bool
    ship_every: float
    write_for: float


@dataclass(frozen=True, slots=True)
class Loss:
    """What came of it: commits acknowledged, those of them that did not come back, and from how many seconds before the end.

    ``measured`` is what pgkeep says of it before anything is restored: the seconds from the newest recoverable moment to the kill.
    """

    acknowledged: int
    lost: int
    seconds: float
    measured: float


def main() -> None:
    options = _parser().parse_args()
    chance = random.Random(options.seed)
    results: list[tuple[Scenario, Loss]] = []
    for run in range(options.runs):
        scenario = Scenario(
            major=options.majors[run % len(options.majors)],
            synchronous=run % 2 == 1,
            kill_receiver=run // 2 % 2 == 1,
            ship_every=options.ship_every,
            write_for=options.ship_every + chance.uniform(0.5, 1 + options.ship_every),
        )
        with work_directory() as directory:
            results.append((scenario, measure(scenario, directory)))
        print(f"{run + 1}/{options.runs} {scenario} {results[-1][1]}", flush=True)
    text = report(results, options.seed)
    print(f"\n{text}")
    if options.save:
        place = Path(__file__).with_name("results")
        (place / "loss.md").write_text(text)
        document = {
            **machine.facts(),
            "seed": options.seed,
            "runs": [{**asdict(scenario), **asdict(loss)} for scenario, loss in results],
        }
        (place / "loss.json").write_text(json.dumps(document, indent=1) + "\n")


def measure(scenario: Scenario, directory: Path) -> Loss:
    """One run, in an empty directory that the server's account may enter."""
    with Server(directory / "primary", find_binaries(scenario.major)) as server:
        _start_primary(server)
        config = _configure(directory, server, scenario)
        receiver = _start_receiver(config, directory)
        try:
            _wait_until_streaming(server)
            client = _start_client(server, directory)
            time.sleep(scenario.write_for)
            if scenario.kill_receiver:
                receiver.kill()
            killed = utc_now()
            server.kill()
            shutil.rmtree(server.data_directory)
            client.wait(30)
            if scenario.kill_receiver:
                receiver.wait()
                if scenario.synchronous:
                    receiver = _ship_what_is_left(config, directory)
                else:
                    shutil.rmtree(directory / "spool")
            else:
                receiver.terminate()
                receiver.wait(30)
        finally:
            if receiver.poll() is None:
                receiver.kill()
            receiver.wait()
    newest = _newest_moment(config)
    return _compare(directory / "heartbeat.log", _recover(directory), (killed - newest).total_seconds())


def report(results: list[tuple[Scenario, Loss]], seed: int) -> str:
    """A table: one line for each way to lose a server."""
    majors = ", ".join(str(major) for major in sorted({scenario.major for scenario, _ in results}))
    lines = [
        "# Loss when a server dies with its disk",
        "",
        f"{RATE:.0f} commits a second, {len(results)} runs, seed {seed}, ship_every {results[0][0].ship_every:g} s, PostgreSQL {majors}.",
        "",
        "| synchronous | receiver | runs | commits | lost, all runs | lost, worst | seconds, median | 95 % | worst | measured wrong by, worst |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for synchronous in (False, True):
        for killed in (False, True):
            losses = [
                loss
                for scenario, loss in results
                if (scenario.synchronous, scenario.kill_receiver) == (synchronous, killed)
            ]
            if not losses:
                continue
            seconds = sorted(loss.seconds for loss in losses)
            wrong = max(abs(loss.measured - loss.seconds) for loss in losses)
            fate = "lives on" if not killed else "killed" if synchronous else "killed, spool gone"
            lines.append(
                f"| {'yes' if synchronous else 'no'} | {fate} | {len(losses)} | {sum(loss.acknowledged for loss in losses)}"
                f" | {sum(loss.lost for loss in losses)} | {max(loss.lost for loss in losses)}"
                f" | {statistics.median(seconds):.2f} | {seconds[int(0.95 * (len(seconds) - 1))]:.2f} | {seconds[-1]:.2f} | {wrong:.2f} s |"
            )
    return "\n".join(lines) + "\n"


@contextmanager
def work_directory() -> Iterator[Path]:
    """A directory of a run's own, which belongs to the server's account."""
    directory = Path(tempfile.mkdtemp(prefix="pgkeep-loss-"))
    directory.chmod(0o755)
    give_to(server_account(), directory)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _start_primary(server: Server) -> None:
    server.initdb(wal_segment_size=_SEGMENT_MIB)
    server.start(_SETTINGS)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE heartbeat (beat int)")


def _configure(directory: Path, server: Server, scenario: Scenario) -> Path:
    """A repository with a backup, and the settings."""
    repository = Repository.create(
        open_store(str(directory / "repository")), KeyFile.generate(directory / "pgkeep.key")
    )
    run_backup(BackupRequest(cluster="loss", dsn=server.dsn()), repository)
    if scenario.synchronous:
        # from now on a commit waits for the receiver
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'pgkeep_loss'")
            connection.execute("SELECT pg_reload_conf()")
    path = directory / "pgkeep.toml"
    path.write_text(
        f'[repository.main]\nurl = "file://{directory}/repository"\nkey = "file:{directory}/pgkeep.key"\n'
        f"[cluster.loss]\ndsn = {json.dumps(server.dsn())}\n"
        f'wal = {{ spool = "{directory}/spool", ship_every = "{scenario.ship_every}s",'
        f' synchronous = {"true" if scenario.synchronous else "false"}, slot_cap = "none" }}\n'
    )
    return path


def _start_receiver(config: Path, directory: Path) -> subprocess.Popen[bytes]:
    with (directory / "receiver.log").open("ab") as log:
        command = [sys.executable, "-m", "pgkeep", "--config", str(config), "wal", "receive"]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def _wait_until_streaming(server: Server) -> None:
    deadline = time.monotonic() + 30
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND flush_lsn >= pg_current_wal_flush_lsn()"
        while connection.execute(query).fetchone() != (1,):
            assert time.monotonic() < deadline, "the receiver does not stream"
            time.sleep(0.02)


def _start_client(server: Server, directory: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bench.heartbeat", server.dsn(), str(directory / "heartbeat.log"), str(RATE)]
    with (directory / "client.log").open("wb") as log:
        client = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[1])
    deadline = time.monotonic() + 30
    while not (directory / "heartbeat.log").exists() or not (directory / "heartbeat.log").stat().st_size:
        assert time.monotonic() < deadline, "the client does not write"
        time.sleep(0.01)
    return client


def _ship_what_is_left(config: Path, directory: Path) -> subprocess.Popen[bytes]:
    """The next receiver finds no server; it ships the spool all the same."""
    receiver = _start_receiver(config, directory)
    status = directory / "spool" / "status.json"
    deadline = time.monotonic() + 30
    while True:
        with suppress(OSError, ValueError):
            document = json.loads(status.read_text())
            if document["pid"] == receiver.pid and document["durable_lsn"] is not None:
                break
        assert time.monotonic() < deadline, "the receiver does not start"
        time.sleep(0.05)
    receiver.terminate()
    receiver.wait(30)
    return receiver


def _newest_moment(config: Path) -> datetime:
    """As ``pgkeep status`` knows it without the server."""
    settings = load_config(config)
    status = read_wal_status(settings, settings.cluster("loss"))
    newest = rpo_now(status.repositories[0]).newest
    assert newest is not None
    return newest


def _recover(directory: Path) -> set[int]:
    """Restore from the repository, to the latest moment that it knows; the rows that are there then."""
    repository = Repository.open(open_store(str(directory / "repository")), KeyFile.read(directory / "pgkeep.key"))
    rows: set[int] = set()

    def count(recovered: Recovered) -> None:
        with psycopg.connect(recovered.dsn, autocommit=True) as connection:
            rows.update(row[0] for row in connection.execute("SELECT beat FROM heartbeat"))

    request = RestoreRequest(
        target=str(directory / "restored"), recovery=latest, start=True, settings={"synchronous_standby_names": ""}
    )
    outcome = run_restore(request, repository, after=count)
    Server(outcome.plan.target, find_binaries(outcome.plan.major)).stop("immediate")
    return rows


def _compare(log: Path, restored: set[int], measured: float) -> Loss:
    beats = [(int(beat), float(moment)) for beat, moment in (line.split() for line in log.read_text().splitlines())]
    lost = [(beat, moment) for beat, moment in beats if beat not in restored]
    last = max((moment for beat, moment in beats if beat in restored), default=beats[0][1])
    # what was lost is the end, never something in the middle
    assert all(beat > max(restored, default=0) for beat, _ in lost), "a commit in the middle is missing"
    return Loss(len(beats), len(lost), beats[-1][1] - last if lost else 0.0, measured)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.loss", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--ship-every", type=lambda text: parse_duration(text).total_seconds(), default="2s")
    parser.add_argument("--majors", type=int, nargs="+", default=[15, 17, 18], help="versions of PostgreSQL, in turn")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only: leave bench/results alone")
    return parser


if __name__ == "__main__":
    main()
