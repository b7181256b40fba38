"""Restores over what is there: what comes of them is what an ordinary restore makes, whatever was there before."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.cli.main import execute
from pgkeep.demo.workload import load
from pgkeep.errors import BusyError, TargetError, UsageError
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.restore import RestoreOutcome, RestoreRequest, make_plan
from pgkeep.restore.delta import DeltaCounts
from pgkeep.restore.journal import exclusive
from pgkeep.restore.last_wal import save_running_wal
from pgkeep.restore.target import RecoveryTarget
from support.delta import damage, snapshot
from support.jobs import KEY, SMALL, backup, new_repository, restore, running_copy, server_place
from support.servers import TEST_SETTINGS, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries
    from pgkeep.repository import Repository
    from pgkeep.repository.manifests import Manifest
    from support.servers import MakeServer

_SEED = int(os.environ.get("PGKEEP_DELTA_SEED", "20261123"))


@dataclass(frozen=True)
class Service:
    """A server with a tablespace, and two backups of it: the second one after 1 % of the rows were changed."""

    server: ThrowawayServer
    tablespace: Path
    repository: Repository
    first: Manifest
    second: Manifest

    def restore(self, target: Path, manifest: Manifest, **options: object) -> RestoreOutcome:
        """With the tablespace beside the target."""
        apart = {str(self.tablespace): str(beside(target))}
        return restore(self.repository, target, backup=manifest.id, tablespaces=apart, **options)

    def delta(self, target: Path, manifest: Manifest, **options: object) -> DeltaCounts:
        outcome = self.restore(target, manifest, delta=True, **options)
        assert outcome.delta is not None
        return outcome.delta


def beside(target: Path) -> Path:
    return target.with_name(target.name + "-apart")


@pytest.fixture(scope="module")
def service(postgres_major: int, binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[Service]:
    with ThrowawayServer(binaries_of(postgres_major), parent=work_root) as server:
        tablespace = server_place(server.directory / "apart")
        server.initdb()
        server.start({**TEST_SETTINGS, **({"summarize_wal": True} if postgres_major >= 17 else {})})
        load(server.dsn(), users=2000)
        sql(server.dsn(), f"CREATE TABLESPACE apart LOCATION '{tablespace}'")
        sql(
            server.dsn(),
            "CREATE TABLE far TABLESPACE apart AS SELECT i AS id, md5(i::text) AS word FROM generate_series(1, 40000) i",
        )
        sql(server.dsn(), "CREATE TABLE gone AS SELECT generate_series(1, 5000) AS id")
        repository = new_repository(server.directory / "repository", SMALL)
        first = backup(server.dsn(), repository)
        sql(server.dsn(), "UPDATE far SET word = 'later' WHERE id % 4000 = 7")
        sql(server.dsn(), "DROP TABLE gone")
        sql(server.dsn(), "CREATE TABLE later AS SELECT generate_series(1, 5000) AS id")
        second = backup(server.dsn(), repository)
        yield Service(server, tablespace, repository, first, second)


def test_a_directory_damaged_at_random_becomes_what_an_ordinary_restore_makes(service: Service, work_dir: Path) -> None:
    """Flipped bits, truncated, extended, missing and extra files, links; in the tablespace too. What links lead to stays."""
    chance = random.Random(_SEED)
    target, reference = work_dir / "target", work_dir / "reference"
    for manifest in (service.first, service.second):
        service.restore(target, manifest)
        service.restore(reference, manifest)
        expected = snapshot(reference, beside(reference))
        assert snapshot(target, beside(target)) == expected
        hostname = Path("/etc/hostname").read_bytes()
        for times in (1, 3, 10, 40):
            done = damage(target, chance, times) + damage(next(beside(target).iterdir()), chance, 1 + times // 8)

            service.delta(target, manifest)

            assert snapshot(target, beside(target)) == expected, (_SEED, done)
            assert Path("/etc/hostname").read_bytes() == hostname
        for place in (target, reference):
            shutil.rmtree(place)
            shutil.rmtree(beside(place))


def test_what_is_as_it_should_be_is_neither_fetched_nor_written(service: Service, work_dir: Path) -> None:
    """Of a backup that nothing has superseded; its WAL is written again."""
    target = work_dir / "target"
    service.restore(target, service.first)

    counts = service.delta(target, service.first)

    # the settings of recovery are taken out again, and put back in
    assert counts.written < 10_000
    assert counts.fetched < 10_000
    assert counts.kept > 0.95 * service.first.logical_size
    assert counts.compared >= 0.9 * counts.kept


def test_one_flipped_bit_costs_one_cell_to_fetch_and_one_page_to_write(service: Service, work_dir: Path) -> None:
    target = work_dir / "target"
    service.restore(target, service.first)
    untouched = service.delta(target, service.first)
    largest = max(
        (path for path in (target / "base").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    with largest.open("r+b") as file:
        file.seek(20_000)
        old = file.read(1)
        file.seek(20_000)
        file.write(bytes([old[0] ^ 1]))

    counts = service.delta(target, service.first)

    assert counts.written - untouched.written == 8192
    assert 0 < counts.fetched - untouched.fetched <= SMALL.cell_size


def test_an_older_and_a_newer_restore_become_each_other(service: Service, work_dir: Path) -> None:
    """Files that came, went and changed in between; most of it stays where it is."""
    target, reference = work_dir / "target", work_dir / "reference"
    service.restore(target, service.first)
    for manifest in (service.second, service.first):
        service.restore(reference, manifest)

        counts = service.delta(target, manifest)

        assert snapshot(target, beside(target)) == snapshot(reference, beside(reference))
        assert counts.kept > 5 * counts.written
        assert counts.removed_files > 0
        run_program(service.server, "pg_verifybackup", "--exit-on-error", target)


def test_a_directory_with_nothing_in_it_is_restored_whole(service: Service, work_dir: Path) -> None:
    target, reference = work_dir / "target", work_dir / "reference"
    service.restore(reference, service.second)

    outcome = service.restore(target, service.second, delta=True)

    assert outcome.delta is None
    assert any("nothing in" in note for note in outcome.notes)
    assert snapshot(target, beside(target)) == snapshot(reference, beside(reference))


def test_a_crashed_primary_comes_back_at_a_moment_and_its_last_wal_is_kept(
    make_server: MakeServer, postgres_major: int, work_dir: Path
) -> None:
    """In its own directory, with its tablespace where it is, recovered on the way; the WAL that was nowhere else is moved aside."""
    server = make_server(postgres_major)
    place = server_place(work_dir / "apart")
    sql(server.dsn(), f"CREATE TABLESPACE apart LOCATION '{place}'")
    sql(server.dsn(), "CREATE TABLE far TABLESPACE apart AS SELECT generate_series(1, 40000) AS id")
    repository = new_repository(work_dir / "repository", SMALL)
    manifest = backup(server.dsn(), repository)
    sql(server.dsn(), "DELETE FROM far WHERE id > 39000; CREATE TABLE later AS SELECT 1; CHECKPOINT")
    server.kill()
    assert (server.data_directory / "postmaster.pid").exists()
    segments = {path.name for path in (server.data_directory / "pg_wal").iterdir() if path.is_file()}

    outcome = restore(repository, server.data_directory, backup=manifest.id, delta=True, start=True)

    assert outcome.dsn is not None
    assert outcome.delta is not None
    assert outcome.delta.kept > outcome.delta.written
    try:
        assert sql(outcome.dsn, "SELECT count(*), to_regclass('later') IS NULL FROM far") == [(40000, True)]
        run_program(server, "pg_amcheck", f"--maintenance-db={outcome.dsn}", "--all", "--install-missing")
    finally:
        server.stop()
    (aside,) = server.data_directory.parent.glob("data.wal.before-*")
    assert {path.name for path in aside.iterdir()} <= segments
    assert any(str(aside) in note for note in outcome.notes)


def test_a_target_in_time_is_reached_over_what_is_there(
    make_server: MakeServer, postgres_major: int, work_dir: Path
) -> None:
    server = make_server(postgres_major)
    sql(server.dsn(), "CREATE TABLE t AS SELECT generate_series(1, 10) AS id")
    repository = new_repository(work_dir / "repository", SMALL)
    manifest = backup(server.dsn(), repository)
    restore(repository, work_dir / "target")
    sql(server.dsn(), "INSERT INTO t VALUES (11)")
    ((lsn,),) = sql(server.dsn(), "SELECT pg_current_wal_insert_lsn()::text")
    sql(server.dsn(), "INSERT INTO t VALUES (12)")
    save_running_wal(server.dsn(), server.data_directory, [repository])
    recovery = RecoveryTarget(kind="lsn", value=str(lsn), exclusive=True)

    outcome = restore(
        repository,
        work_dir / "target",
        backup=manifest.id,
        recovery=recovery,
        delta=True,
        start=True,
    )

    assert outcome.dsn is not None
    try:
        assert sql(outcome.dsn, "SELECT max(id) FROM t") == [(11,)]
    finally:
        run_program(server, "pg_ctl", "-D", work_dir / "target", "stop", "-m", "immediate")


def test_wal_on_another_disk_stays_there(service: Service, work_dir: Path) -> None:
    """``initdb -X`` makes pg_wal a link."""
    target, wal = work_dir / "target", work_dir / "wal"
    service.restore(target, service.first)
    shutil.move(target / "pg_wal", wal)
    (target / "pg_wal").symlink_to(wal)

    service.delta(target, service.second)

    assert (target / "pg_wal").is_symlink()
    assert set(service.second.wal.segments) >= {path.name for path in wal.iterdir() if path.is_file()}
    run_program(service.server, "pg_verifybackup", "--exit-on-error", target)


# What is refused


def test_a_directory_that_a_server_runs_on_is_refused_and_nothing_is_touched(service: Service) -> None:
    """The server goes on."""
    with pytest.raises(TargetError, match="a PostgreSQL server runs on"):
        restore(service.repository, service.server.data_directory, delta=True)

    assert sql(service.server.dsn(), "SELECT count(*) FROM far") == [(40000,)]
    assert not (service.server.data_directory / "pgkeep.restore-incomplete").exists()


def test_a_number_in_postmaster_pid_that_another_program_has_is_no_server(service: Service, work_dir: Path) -> None:
    target = work_dir / "target"
    service.restore(target, service.first)
    (target / "postmaster.pid").write_text(f"{os.getpid()}\n")

    service.delta(target, service.first)

    assert not (target / "postmaster.pid").exists()


def test_a_copy_whose_links_lead_to_the_running_originals_tablespace_is_refused(
    service: Service, work_dir: Path
) -> None:
    """Links are copied as they are; with a place of its own for the tablespace it is restored."""
    target = work_dir / "target"
    service.restore(target, service.first)
    link = next((target / "pg_tblspc").iterdir())
    link.unlink()
    link.symlink_to(service.tablespace)

    with pytest.raises(TargetError, match="is in use by the server on"):
        restore(service.repository, target, backup=service.first.id, delta=True)

    shutil.rmtree(beside(target))
    service.delta(target, service.first)
    assert sql(service.server.dsn(), "SELECT count(*) FROM far WHERE word = 'later'") == [(10,)]


def test_a_place_for_a_tablespace_with_something_else_in_it_is_refused(service: Service, work_dir: Path) -> None:
    target, other = work_dir / "target", work_dir / "other"
    service.restore(target, service.first)
    other.mkdir()
    (other / "precious").touch()
    for place in (other, beside(target)):
        (place / "precious").touch()
        with pytest.raises(TargetError, match=r"not .*target's|something else than"):
            restore(
                service.repository,
                target,
                backup=service.first.id,
                delta=True,
                tablespaces={str(service.tablespace): str(place)},
            )


def test_another_clusters_directory_is_refused(service: Service, make_server: MakeServer) -> None:
    """A stopped one; it starts again afterwards."""
    other = make_server(service.server.binaries.major)
    other.stop()
    before = snapshot(other.data_directory)

    with pytest.raises(TargetError, match="is of another cluster: global/pg_control says system identifier"):
        restore(service.repository, other.data_directory, delta=True)

    (other.data_directory / "global" / "pg_control").rename(other.directory / "pg_control")
    with pytest.raises(TargetError, match="is of another cluster"):
        restore(service.repository, other.data_directory, delta=True)
    (other.directory / "pg_control").rename(other.data_directory / "global" / "pg_control")
    assert snapshot(other.data_directory) == before


def test_what_is_no_data_directory_is_refused(service: Service, work_dir: Path) -> None:
    """And one that nothing tells whose it is."""
    target = work_dir / "target"
    target.mkdir()
    (target / "precious").write_text("do not touch")

    with pytest.raises(TargetError, match="is not a data directory"):
        restore(service.repository, target, delta=True)

    (target / "PG_VERSION").write_text(f"{service.server.binaries.major}\n")
    with pytest.raises(TargetError, match="nobody can say which cluster"):
        restore(service.repository, target, delta=True)
    assert (target / "precious").read_text() == "do not touch"


def test_a_directory_without_its_control_file_is_known_by_its_wal(service: Service, work_dir: Path) -> None:
    target, reference = work_dir / "target", work_dir / "reference"
    service.restore(target, service.first)
    service.restore(reference, service.second)
    (target / "global" / "pg_control").unlink()

    service.delta(target, service.second)

    assert snapshot(target, beside(target)) == snapshot(reference, beside(reference))


def test_two_at_a_time_are_refused(service: Service, work_dir: Path) -> None:
    target = work_dir / "target"
    service.restore(target, service.first)
    with exclusive(target.resolve()), pytest.raises(BusyError):
        service.delta(target, service.first)
    assert (target / "global" / "pg_control").exists()


# What the operator sees


def test_the_plan_says_what_is_overwritten_and_what_is_removed(
    service: Service, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And touches nothing; the end says what was done."""
    target = work_dir / "target"
    service.restore(target, service.first)
    (target / "extra").write_bytes(bytes(1000))
    before = snapshot(target)
    key = work_dir / "key"
    key.write_text(KEY.text() + "\n")
    key.chmod(0o600)
    words = ["restore", service.second.id, "--repository", service.repository.store.url, "--key-file", str(key)]
    words += ["--target-dir", str(target), "--delta"]

    assert execute([*words, "--plan"]) == 0
    answer = capsys.readouterr().out
    assert "OVERWRITTEN where they differ, with no way back" in answer
    assert "do not belong to the backup and are REMOVED" in answer
    assert execute([*words, "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]["delta"]
    assert plan["removed_bytes"] >= 1000
    assert plan["existing_bytes"] >= service.first.logical_size
    assert snapshot(target) == before

    assert execute([*words, "--json", "--rate", "1GB", "--nice", "5"]) == 0
    done = json.loads(capsys.readouterr().out)["delta"]
    assert done["kept_bytes"] + done["written_bytes"] >= 0.95 * service.second.logical_size
    assert done["removed_bytes"] >= 1000


@pytest.mark.parametrize("postgres_major", [18], scope="session")
def test_a_restore_at_a_rate_takes_its_time(service: Service, work_dir: Path) -> None:
    """Ordinary and delta; and the threads that do it stand back, but nobody else."""
    for delta in (False, True):
        outcome = service.restore(
            work_dir / "target", service.first, delta=delta, rate=service.first.logical_size // 2, nice=3
        )
        assert outcome.seconds["write"] >= 1.8
    assert os.getpriority(os.PRIO_PROCESS, 0) == int(subprocess.check_output(["nice"]))


def test_in_place_and_delta_are_refused_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["restore", "--in-place", "--delta"]) == UsageError.exit_code
    assert "pgkeep restore --delta --target-dir" in capsys.readouterr().err


def test_a_plan_for_a_half_restore_says_so(service: Service, work_dir: Path) -> None:
    """As one that was killed leaves it."""
    target = work_dir / "target"
    service.restore(target, service.first)
    (target / "global" / "pg_control").unlink()
    (target / "pgkeep.restore-incomplete").touch()
    apart = {str(service.tablespace): str(beside(target))}

    plan = make_plan(
        RestoreRequest(backup=service.first.id, target=str(target), tablespaces=apart, delta=True), service.repository
    )

    assert plan.delta is not None
    assert plan.delta.half
    assert plan.delta.wal == []
    assert plan.moved_aside == []


def test_the_copy_starts(service: Service, work_dir: Path) -> None:
    target = work_dir / "target"
    service.restore(target, service.first)
    service.delta(target, service.second)

    with running_copy(target, service.server.binaries) as copy:
        assert sql(copy.dsn(), "SELECT count(*) FROM far WHERE word = 'later'") == [(10,)]
