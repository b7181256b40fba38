"""A real server stops exactly where the plan says, for every kind of target, on every branch."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
import pytest

from pgkeep.cli.main import execute
from pgkeep.postgres.account import give_to, server_account
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.recovery_settings import RECOVERY_DEFAULTS, rewrite_settings
from pgkeep.postgres.server import Server, ThrowawayServer
from pgkeep.postgres.timeline import history_name, parse_history
from pgkeep.postgres.wal import segment_name
from pgkeep.repository import Repository, open_store
from pgkeep.restore import export_tar
from pgkeep.restore.nearest import UnreachableTarget
from pgkeep.restore.recovery_plan import plan_recovery
from pgkeep.restore.target import (
    RecoveryPlan,
    RecoveryTarget,
    immediate,
    latest,
    target_lsn,
    target_name,
    target_time,
    target_xid,
)
from pgkeep.wal.inventory import WalInventory, load_segment
from support.jobs import KEY, backup, new_repository, server_place
from support.servers import MAJORS, TEST_SETTINGS, sql
from support.stored_wal import store_wal
from support.wal import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries
    from pgkeep.repository.manifests import Manifest

SETTINGS: dict[str, str | int | bool] = {
    **TEST_SETTINGS,
    "wal_keep_size": "1GB",
    "max_wal_size": "2GB",
    "track_commit_timestamp": True,
    "max_prepared_transactions": 5,
    "autovacuum": False,
}
TICK = timedelta(microseconds=1)


@dataclass
class Story:
    """A server's own account of its transactions, and a repository with its backups and its WAL."""

    server: Server
    place: Path
    repository: Repository
    manifests: list[Manifest] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    xids: dict[str, str] = field(default_factory=dict)
    times: dict[str, datetime] = field(default_factory=dict)
    ends: dict[str, LSN] = field(default_factory=dict)
    """The insert position behind each word's transaction."""

    def write(self, word: str) -> None:
        """One transaction that adds a word."""
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            ((xid,),) = connection.execute(
                "INSERT INTO words VALUES (%s) RETURNING pg_current_xact_id()::text", [word]
            ).fetchall()
            ((moment, end),) = connection.execute(
                "SELECT pg_xact_commit_timestamp(%s::xid), pg_current_wal_insert_lsn()::text",
                [str(int(xid) & 0xFFFFFFFF)],
            ).fetchall()
        self.words.append(word)
        self.xids[word], self.times[word], self.ends[word] = xid, moment.astimezone(UTC), LSN.parse(end)
        time.sleep(0.002)

    def back_up(self) -> None:
        self.manifests.append(backup(self.server.dsn(), self.repository))

    def plan(self, target: RecoveryTarget | None, **options: Any) -> RecoveryPlan:
        return plan_recovery(self.repository, target, **options)[1]

    def until(self, word: str) -> list[str]:
        """All words up to and with this one."""
        return self.words[: self.words.index(word) + 1]

    @contextmanager
    def recovered(self, plan: RecoveryPlan, place: Path) -> Iterator[Server]:
        """A server that follows the plan with PostgreSQL's own means, paused at its target; promoted for "latest"."""
        data = self._unpack(plan.backup, place)
        archive = self._archive(place)
        settings: dict[str, str | int | bool] = {
            **plan.settings,
            "restore_command": f'cp "{archive}/%f" "%p"',
            "wal_keep_size": 0,
        }
        if "recovery_target_action" in settings:
            settings["recovery_target_action"] = "pause"
        auto_conf = data / "postgresql.auto.conf"
        # one that was promoted has its own target in there still
        text = rewrite_settings(auto_conf.read_text(), remove=RECOVERY_DEFAULTS, add=settings, comment="a test")
        auto_conf.write_text(text)
        (data / plan.signal).touch()
        give_to(server_account(), auto_conf, data / plan.signal)
        with Server(data, self.server.binaries) as server:
            server.start(SETTINGS)
            question = "SELECT NOT pg_is_in_recovery() OR pg_get_wal_replay_pause_state() = 'paused'"
            deadline = time.monotonic() + 60
            while sql(server.dsn(), f"SELECT CASE WHEN pg_is_in_recovery() THEN ({question}) ELSE true END") != [
                (True,)
            ]:
                assert time.monotonic() < deadline, server.log_tail()
                time.sleep(0.02)
            yield server

    def _unpack(self, backup_id: str, place: Path) -> Path:
        exported = self.place / backup_id
        if not exported.exists():
            manifest = self.repository.catalog.find(backup_id)
            export_tar(self.repository, manifest, exported, compress="none")
        data = server_place(place / "data")
        data.chmod(0o700)
        subprocess.run(["tar", "-xf", exported / "base.tar", "-C", data], check=True)
        subprocess.run(["tar", "-xf", exported / "pg_wal.tar", "-C", data / "pg_wal"], check=True)
        subprocess.run(["chown", "-R", "--reference", data, data], check=True)
        return data

    def _archive(self, place: Path) -> Path:
        """The repository's WAL as files, for cp."""
        archive = server_place(place / "archive")
        held = self.repository.wal(self.manifests[0].system_identifier)
        inventory = WalInventory.read(held, self.manifests[0].wal.segment_size)
        for timeline, wal in inventory.timelines.items():
            for start in sorted(wal.whole | wal.pieces.keys()):
                name = segment_name(timeline, start, inventory.segment_size)
                (archive / name).write_bytes(load_segment(held, wal, start)[0])
            if held.exists(history_name(timeline)):
                (archive / history_name(timeline)).write_bytes(held.get(history_name(timeline)))
        return archive


def words_of(server: Server) -> list[str]:
    return [str(row[0]) for row in sql(server.dsn(), "SELECT word FROM words ORDER BY number")]


def stopped_at(server: Server) -> LSN:
    """Where replay stands, or, once it has ended, where the new timeline branches off."""
    ((recovering, lsn, name),) = sql(
        server.dsn(),
        "SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text,"
        " CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END",
    )
    if recovering:
        return LSN.parse(lsn)
    timeline = int(name, 16)
    text = (server.data_directory / "pg_wal" / history_name(timeline)).read_bytes()
    return parse_history(timeline, text).switches[-1].lsn


@pytest.fixture(scope="module", params=MAJORS, ids=lambda major: f"pg{major}")
def story(
    request: pytest.FixtureRequest, binaries_of: Callable[[int], ServerBinaries], work_root: Path
) -> Iterator[Story]:
    """Words, two backups, a restore point, a transaction that was rolled back and one that was prepared."""
    with ThrowawayServer(binaries_of(request.param), parent=work_root) as server:
        server.initdb()
        server.start(SETTINGS)
        told = Story(server, server.directory / "exports", new_repository(server.directory / "repository"))
        told.place.mkdir()
        sql(server.dsn(), "CREATE TABLE words (word text, number int GENERATED ALWAYS AS IDENTITY)")
        told.write("before")
        told.back_up()
        for word in ("one", "two", "three"):
            told.write(word)
        sql(server.dsn(), "SELECT pg_create_restore_point('after three')")
        told.write("four")
        told.back_up()
        told.write("five")
        with psycopg.connect(server.dsn()) as connection:
            ((xid,),) = connection.execute(
                "INSERT INTO words VALUES ('undone') RETURNING pg_current_xact_id()::text"
            ).fetchall()
            connection.rollback()
        told.xids["undone"] = xid
        told.write("six")
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("BEGIN")
            ((xid,),) = connection.execute(
                "INSERT INTO words VALUES ('prepared') RETURNING pg_current_xact_id()::text"
            ).fetchall()
            connection.execute("PREPARE TRANSACTION 'later'")
            connection.execute("COMMIT PREPARED 'later'")
        told.words.append("prepared")
        told.xids["prepared"] = xid
        told.write("seven")
        told.ends["all"] = store_wal(server, told.repository)
        server.stop()
        yield told


def with_options(target: RecoveryTarget, **options: Any) -> RecoveryTarget:
    return msgspec.structs.replace(target, **options)


def to(moment: datetime, **options: Any) -> RecoveryTarget:
    return with_options(target_time(moment.isoformat()), **options)


CASES: dict[str, tuple[Callable[[Story], RecoveryTarget], str]] = {
    "just at a transaction": (lambda story: to(story.times["two"]), "two"),
    "just before a transaction": (lambda story: to(story.times["two"] - TICK), "one"),
    "exclusive, at a transaction": (lambda story: to(story.times["six"], exclusive=True), "five"),
    "at the last transaction": (lambda story: to(story.times["seven"]), "seven"),
    "an id": (lambda story: target_xid(story.xids["three"]), "three"),
    "an id, exclusive": (lambda story: with_options(target_xid(story.xids["three"]), exclusive=True), "two"),
    "an id that was rolled back": (lambda story: target_xid(story.xids["undone"]), "five"),
    "an id that was prepared": (lambda story: target_xid(story.xids["prepared"]), "prepared"),
    "a restore point": (lambda _: target_name("after three"), "three"),
    "a position, exclusive": (
        lambda story: with_options(target_lsn(str(story.ends["five"])), exclusive=True),
        "five",
    ),
    "a position": (lambda story: target_lsn(str(LSN(story.ends["two"] - 8))), "two"),
    "the end of all WAL": (lambda story: target_lsn(str(story.ends["all"])), "seven"),
    "the end of a backup": (lambda _: immediate, "four"),
    "latest": (lambda _: latest, "seven"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_server_stops_where_the_plan_says(story: Story, work_dir: Path, case: str) -> None:
    make, last_word = CASES[case]
    plan = story.plan(make(story))
    with story.recovered(plan, work_dir) as server:
        assert stopped_at(server) == plan.stop_lsn
        assert words_of(server) == story.until(last_word)
        ((ended,),) = sql(server.dsn(), "SELECT pg_last_xact_replay_timestamp()")
        # a server that stops at a position does not count the transaction that it has stopped behind
        assert ended == plan.stop_time or (
            plan.stop_time == story.times[last_word] and "recovery_target_lsn" in plan.settings
        )


def test_the_backup_with_the_least_to_replay_is_chosen(story: Story) -> None:
    first, second = (manifest.id for manifest in story.manifests)
    assert story.plan(to(story.times["three"])).backup == first
    assert story.plan(to(story.times["five"])).backup == second
    assert story.plan(None).backup == second


def test_what_cannot_be_reached_is_refused_with_what_can(story: Story) -> None:
    with pytest.raises(UnreachableTarget, match="cannot be reached") as early:
        story.plan(to(story.times["before"] - timedelta(hours=1)))
    with pytest.raises(UnreachableTarget) as late:
        story.plan(to(story.times["seven"] + timedelta(days=1)))
    assert early.value.after is not None
    assert early.value.after.backup == story.manifests[0].id
    assert late.value.before is not None
    assert late.value.before.lsn == story.ends["all"]
    with pytest.raises(UnreachableTarget, match="did you mean 'after three'"):
        story.plan(target_name("after tree"))
    with pytest.raises(UnreachableTarget, match="does not show its end"):
        story.plan(target_xid("400000000"))


def test_a_named_backup_is_refused_where_it_is_too_late(story: Story) -> None:
    later = story.manifests[1].id
    with pytest.raises(UnreachableTarget, match=f"from backup {later}"):
        story.plan(to(story.times["one"]), backup=later)
    assert story.plan(None, backup=later).target == immediate


def test_each_branch_is_reached_and_the_newest_one_is_meant(story: Story, work_dir: Path) -> None:
    """The server is set back to "three" and goes on as timeline 2, with words and a backup of its own."""
    copy = work_dir / "repository"
    shutil.copytree(Path(story.repository.store.url.removeprefix("file://")), copy)
    told = dataclasses.replace(
        story,
        repository=Repository.open(open_store(str(copy)), KEY),
        manifests=[*story.manifests],
        words=story.until("three"),
        xids={},
        times={**story.times},
        ends={},
    )
    with told.recovered(told.plan(target_name("after three")), work_dir / "second") as server:
        sql(server.dsn(), "SELECT pg_wal_replay_resume()")
        until(lambda: sql(server.dsn(), "SELECT pg_is_in_recovery()") == [(False,)], "the promotion")
        branch = dataclasses.replace(told, server=server)
        branch.write("left")
        branch.back_up()
        branch.write("right")
        store_wal(server, told.repository)

    plan = told.plan(latest)
    assert (plan.path.timeline, plan.stop_timeline) == (2, 2)
    with told.recovered(plan, work_dir / "latest") as server:
        assert words_of(server) == [*story.until("three"), "left", "right"]

    plan = told.plan(to(told.times["left"]))
    assert plan.backup == told.manifests[2].id
    with told.recovered(plan, work_dir / "left") as server:
        assert stopped_at(server) == plan.stop_lsn
        assert words_of(server) == [*story.until("three"), "left"]

    plan = told.plan(to(told.times["six"]))
    assert (plan.path.timeline, plan.stop_timeline) == (1, 1)
    assert "lies on timeline 2 too" in plan.notes[0]
    with told.recovered(plan, work_dir / "old") as server:
        assert stopped_at(server) == plan.stop_lsn
        assert words_of(server) == story.until("six")

    plan = told.plan(to(told.times["six"], timeline=2))
    assert "had not begun by then" in plan.notes[0]
    with told.recovered(plan, work_dir / "fork") as server:
        assert stopped_at(server) == plan.stop_lsn
        assert words_of(server) == story.until("three")


def test_the_command_recovers_to_a_target_and_says_what_it_reached(
    story: Story, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = work_dir / "key"
    key.write_text(KEY.text())
    target = server_place(work_dir / "restored")
    words = ["restore", "--repository", story.repository.store.url, "--key-file", str(key), "--target-dir", str(target)]
    words += ["--to", story.times["five"].isoformat(), "--start", "--json"]
    # as the origin was started with
    words += ["--set", "fsync=off", "--set", "max_prepared_transactions=5"]

    code = execute([*words, "--plan"])
    planned = json.loads(capsys.readouterr().out)["plan"]["recovery"]
    assert code == 0
    assert execute(words) == 0, capsys.readouterr()
    answer = json.loads(capsys.readouterr().out)

    assert planned["target"]["value"] == to(story.times["five"]).value
    assert datetime.fromisoformat(planned["last_transaction"]) == story.times["five"]
    assert answer["recovery"]["lsn"] == planned["stop_lsn"]
    assert answer["recovery"]["timeline"] == 2
    try:
        assert [
            row[0] for row in sql(answer["recovery"]["dsn"], "SELECT word FROM words ORDER BY number")
        ] == story.until("five")
    finally:
        Server(target, story.server.binaries).stop()


def test_the_command_names_the_nearest_target_where_there_is_no_way(
    story: Story, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = work_dir / "key"
    key.write_text(KEY.text())
    words = ["restore", "--repository", story.repository.store.url, "--key-file", str(key)]
    words += ["--target-dir", str(work_dir / "never"), "--to", "2001-01-01 00:00Z", "--json"]

    assert execute(words) == 11

    error = json.loads(capsys.readouterr().out)["error"]
    assert story.manifests[0].id in error["message"]
    assert error["hint"].startswith('pgkeep restore --to "20')
    assert not (work_dir / "never").exists()
