"""An expiry in a repository: what goes, in which order, and what stays whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pgkeep.copies import CopyRequest, plan_copy
from pgkeep.errors import BusyError, KeyFailure, NotFoundError, PgkeepError, UsageError
from pgkeep.policy import ExpireRequest, Rules, clocks, plan_expiry, retention_copies, run_expire
from pgkeep.policy import expire as expire_module
from pgkeep.policy.expire import pin_lease
from pgkeep.policy.retention import State
from pgkeep.policy.retention_copies import wanted_wal
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory, TimelineSwitch
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.repository.manifests import BackupName
from pgkeep.units import utc_now
from support.jobs import KEY
from support.kept_repository import DAY, HOUR, NOW, SIZE, SYSTEM, KeptRepository, lsn_at

NO_GRACE = timedelta(0)
RULES = Rules(window=3 * DAY, weekly=3, grace=NO_GRACE)


@pytest.fixture(scope="module")
def five_weeks(tmp_path_factory: pytest.TempPathFactory) -> KeptRepository:
    """Nightly backups and all of their WAL."""
    made = KeptRepository(tmp_path_factory.mktemp("five-weeks") / "repository")
    for number in range(35):
        made.backup(NOW.replace(hour=3) - number * DAY)
    made.wal(NOW - 36 * DAY, NOW)
    return made


@pytest.fixture
def kept(five_weeks: KeptRepository, tmp_path: Path) -> KeptRepository:
    """The same, for one test."""
    return five_weeks.copy(tmp_path / "repository")


def request(rules: Rules | None = RULES, now: datetime = NOW, **options: object) -> ExpireRequest:
    return ExpireRequest(rules=rules, now=now, **options)  # type: ignore[arg-type]


def segment_at(moment: datetime) -> int:
    return lsn_at(moment) // SIZE


def night(day: datetime) -> str:
    return f"{day:%Y%m%d}T030000.000Z-00000000"


def test_backups_without_a_rule_go_and_wal_goes_with_the_last_that_needs_it(kept: KeptRepository) -> None:
    (report,) = run_expire(request(), kept.repository)

    mondays = [NOW - 14 * DAY, NOW - 7 * DAY]
    window = [NOW - number * DAY for number in (3, 2, 1, 0)]
    assert kept.ids() == [night(day) for day in (*mondays, *window)]
    assert len(report.backups) == 29
    first = segment_at(window[0].replace(hour=3))
    expected = {segment_at(day.replace(hour=3)) for day in mondays} | set(range(first, segment_at(NOW) + 1))
    assert kept.segments() == {number for number in expected if number <= segment_at(NOW - HOUR)}
    kept.expect_sound()


def test_the_index_of_times_goes_with_the_last_of_its_wal(kept: KeptRepository) -> None:
    before = kept.groups()
    run_expire(request(), kept.repository)

    there = kept.segments()
    assert kept.groups() == {group for group in before if there & set(range(group, group + 16))}
    assert kept.groups() != before


def test_a_plan_touches_nothing(kept: KeptRepository) -> None:
    before = sorted(info.name for info in kept.repository.store.list(""))
    (plan,) = plan_expiry(request(), kept.repository)

    assert len(plan.going) == 29
    assert plan.preview(kept.repository).objects > 0
    assert plan.preview(kept.repository, most=5).objects == 5
    assert not plan.preview(kept.repository, most=5).complete
    assert sorted(info.name for info in kept.repository.store.list("")) == before


def test_the_preview_counts_what_then_goes(kept: KeptRepository) -> None:
    (plan,) = plan_expiry(request(), kept.repository)
    preview = plan.preview(kept.repository)

    (report,) = run_expire(request(), kept.repository)

    assert (report.wal_objects, report.wal_bytes) == (preview.objects, preview.bytes)


def test_a_second_run_finds_nothing_to_do(kept: KeptRepository) -> None:
    run_expire(request(), kept.repository)
    (report,) = run_expire(request(), kept.repository)

    assert (report.backups, report.wal_objects) == ([], 0)
    # the one that says when it ran
    assert len(list(kept.repository.store.list(f"clusters/{SYSTEM}/expiries/"))) == 1


def test_nothing_goes_that_was_not_shown(kept: KeptRepository) -> None:
    """Another backup came after the plan: the plan's newest is not needed any more, and stays until it is shown."""
    rules = Rules(minimum=1, grace=NO_GRACE)
    shown = plan_expiry(request(rules), kept.repository)
    kept.backup(NOW - HOUR)

    run_expire(request(rules), kept.repository, shown=shown)

    assert kept.ids() == [night(NOW), f"{NOW - HOUR:%Y%m%dT%H%M%S}.000Z-00000000"]
    kept.expect_sound()


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> KeptRepository:
    """Five nights, one of them under a pin that has ended."""
    made = KeptRepository(tmp_path_factory.mktemp("template") / "repository")
    for number in range(5):
        made.backup(NOW.replace(hour=3) - number * DAY)
    made.wal(NOW - 5 * DAY, NOW)
    made.repository.pins.add(BackupName(night(NOW - 4 * DAY), SYSTEM), "over", NOW - HOUR)
    return made


@pytest.mark.parametrize("grace", [NO_GRACE, DAY], ids=["without grace", "with grace"])
@pytest.mark.parametrize("step", [*range(9), 17, 40, 55])
def test_wherever_it_is_killed_every_backup_is_whole_and_the_next_run_ends_it(
    template: KeptRepository, tmp_path: Path, step: int, grace: timedelta
) -> None:
    rules = Rules(window=DAY, weekly=1, grace=grace)
    undisturbed, kept = template.copy(tmp_path / "undisturbed"), template.copy(tmp_path / "repository")
    run_expire(request(rules), undisturbed.repository)

    with pytest.raises(Killed), killed_after(kept, step):
        run_expire(request(rules), kept.repository)
    kept.expect_sound()
    run_expire(request(rules), kept.repository)

    kept.expect_sound()
    assert (kept.ids(), kept.segments(), kept.groups()) == (
        undisturbed.ids(),
        undisturbed.segments(),
        undisturbed.groups(),
    )
    assert list(kept.repository.pins.all(SYSTEM)) == []


@contextmanager
def killed_after(kept: KeptRepository, steps: int) -> Iterator[None]:
    """Within it, the store does so many changes and no more, those of leases aside."""
    store = kept.repository.store
    left = iter(range(steps))

    def mortal(verb: Callable[..., None]) -> Callable[..., None]:
        def change(name: str, *arguments: object) -> None:
            if not name.startswith("leases/") and next(left, None) is None:
                raise Killed
            verb(name, *arguments)

        return change

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "put", mortal(store.put))
        patch.setattr(store, "delete", mortal(store.delete))
        yield


def test_wal_of_an_expired_backup_stays_for_the_grace(kept: KeptRepository) -> None:
    """A restore may be reading it: its contents stay for the collector's grace, its WAL for ours."""
    rules = Rules(window=3 * DAY, grace=DAY)
    run_expire(request(Rules(window=4 * DAY, grace=NO_GRACE)), kept.repository)
    went = NOW - 4 * DAY
    assert night(went) in kept.ids()

    run_expire(request(rules), kept.repository)
    assert night(went) not in kept.ids()
    assert segment_at(went.replace(hour=3)) in kept.segments()

    run_expire(request(rules, NOW + 23 * HOUR), kept.repository)
    assert segment_at(went.replace(hour=3)) in kept.segments()

    run_expire(request(rules, NOW + 25 * HOUR), kept.repository)
    assert segment_at(went.replace(hour=3)) not in kept.segments()


def test_run_every_night_the_wal_lags_behind_the_window_by_days_and_not_for_ever(kept: KeptRepository) -> None:
    rules = Rules(window=3 * DAY, grace=DAY)
    for number in range(1, 11):
        tonight = NOW.replace(hour=3) + number * DAY
        kept.wal(tonight - DAY + 9 * HOUR if number == 1 else tonight - DAY, tonight)
        kept.backup(tonight - HOUR / 2)
        run_expire(request(rules, tonight + timedelta(seconds=5 - number)), kept.repository)

    kept.expect_sound()
    assert min(kept.segments()) >= segment_at(NOW + 10 * DAY - 7 * DAY)
    assert min(kept.segments()) <= segment_at(NOW + 10 * DAY - 4 * DAY)


def test_wal_that_came_since_a_running_job_began_stays(kept: KeptRepository) -> None:
    """A backup that runs, or a copy, may need it and have no manifest yet."""
    with kept.repository.lease("backup of cluster 7123"):
        (plan,) = plan_expiry(request(now=NOW + 100 * 365 * DAY), kept.repository)

    assert plan.stored_before <= utc_now()


def test_a_dead_timeline_goes_when_the_window_has_passed_it_and_a_living_one_stays(kept: KeptRepository) -> None:
    switch = NOW - 10 * DAY
    kept.history(TimelineHistory(2, (TimelineSwitch(1, LSN(lsn_at(switch))),)), switch)
    kept.wal(switch, NOW, timeline=2)
    kept.backup(NOW - 9 * DAY, timeline=2, id="20261114T120000.000Z-00000002")
    # what timeline 1 wrote after the switch came until now: both are alive
    run_expire(request(Rules(window=3 * DAY, grace=NO_GRACE)), kept.repository)
    assert "20261114T120000.000Z-00000002" in kept.ids()
    assert night(NOW - 3 * DAY) in kept.ids()
    assert min(kept.segments(2)) == segment_at(NOW - 9 * DAY)

    later = NOW + 60 * DAY
    kept.wal(NOW, later, timeline=2)
    kept.backup(later - DAY, timeline=2, id="20270121T120000.000Z-00000002")
    run_expire(request(Rules(window=3 * DAY, grace=NO_GRACE), later), kept.repository)
    assert kept.segments(1) == set()
    kept.expect_sound()
    assert kept.repository.wal(SYSTEM).exists("00000002.history")


def test_a_stopped_server_keeps_the_wal_behind_its_last_backup(kept: KeptRepository) -> None:
    """Nothing has come for a year: the last moment of the cluster is the newest one, and still in the window."""
    run_expire(request(Rules(window=3 * DAY, grace=NO_GRACE), NOW + 365 * DAY), kept.repository)

    assert kept.ids() == [night(NOW)]
    assert kept.segments() == set(range(segment_at(NOW.replace(hour=3)), segment_at(NOW - HOUR) + 1))


def test_wal_of_a_timeline_without_its_history_stays(kept: KeptRepository) -> None:
    kept.wal(NOW - 30 * DAY, NOW, timeline=3)
    before = kept.segments(3)

    (report,) = run_expire(request(), kept.repository)

    assert kept.segments(3) == before
    assert "timeline 3 has no history file" in " ".join(report.plan.notes)


def test_wal_of_a_cluster_without_a_backup_stays(tmp_path: Path) -> None:
    kept = KeptRepository(tmp_path / "repository")
    kept.wal(NOW - 30 * DAY, NOW)
    before = kept.segments()

    (report,) = run_expire(request(), kept.repository)

    assert kept.segments() == before
    assert report.plan.notes == ["no WAL goes: there is no backup that it could be told from"]


def test_a_manifest_that_cannot_be_read_stays_and_with_it_all_wal(kept: KeptRepository) -> None:
    before = kept.segments()
    kept.damage(BackupName(night(NOW - 30 * DAY), SYSTEM).object_name)

    (report,) = run_expire(request(), kept.repository)

    assert list(report.plan.unreadable) == [night(NOW - 30 * DAY)]
    assert night(NOW - 30 * DAY) in kept.ids()
    assert night(NOW - 29 * DAY) not in kept.ids()
    assert kept.segments() == before

    run_expire(request(remove=[night(NOW - 30 * DAY)]), kept.repository)
    assert night(NOW - 30 * DAY) not in kept.ids()
    assert kept.segments() != before


def test_a_named_backup_goes_and_without_rules_it_alone(kept: KeptRepository) -> None:
    (report,) = run_expire(request(None, remove=[night(NOW - 5 * DAY)]), kept.repository)

    assert report.backups == [night(NOW - 5 * DAY)]
    assert len(kept.ids()) == 34
    kept.expect_sound()


def test_a_pinned_backup_and_the_last_one_do_not_go_by_name(kept: KeptRepository) -> None:
    kept.repository.pins.add(BackupName(night(NOW), SYSTEM), "case 4711", None)
    with pytest.raises(UsageError, match="is pinned"):
        run_expire(request(remove=[night(NOW)]), kept.repository)
    with pytest.raises(UsageError, match="the last backup stays"):
        run_expire(request(remove=[*kept.ids()[:-1], night(NOW)], rules=None), pinless(kept))


def pinless(kept: KeptRepository) -> Repository:
    kept.repository.pins.remove(BackupName(night(NOW), SYSTEM))
    return kept.repository


def test_a_pin_keeps_a_backup_and_its_own_wal(kept: KeptRepository) -> None:
    pinned = NOW - 20 * DAY
    kept.repository.pins.add(BackupName(night(pinned), SYSTEM), "case 4711", NOW + DAY)

    run_expire(request(), kept.repository)
    assert night(pinned) in kept.ids()
    assert segment_at(pinned.replace(hour=3)) in kept.segments()
    assert segment_at(pinned.replace(hour=5)) not in kept.segments()

    run_expire(request(now=NOW + 2 * DAY), kept.repository)
    assert night(pinned) not in kept.ids()


def test_a_pin_that_cannot_be_read_holds(kept: KeptRepository) -> None:
    pinned = BackupName(night(NOW - 20 * DAY), SYSTEM)
    kept.repository.pins.add(pinned, "case 4711", NOW - DAY)
    (stored,) = kept.repository.pins.all(SYSTEM)
    kept.damage(stored.name)

    run_expire(request(), kept.repository)

    assert pinned.id in kept.ids()


def test_whoever_pins_and_whoever_expires_do_not_cross(kept: KeptRepository) -> None:
    with pin_lease(kept.repository, SYSTEM), pytest.raises(BusyError, match="pins of cluster"):
        run_expire(request(), kept.repository)
    assert len(kept.ids()) == 35


def test_two_expiries_do_not_run_at_once(kept: KeptRepository) -> None:
    with kept.repository.lease(f"expiry of cluster {SYSTEM}"), pytest.raises(BusyError, match="expiry of cluster"):
        run_expire(request(), kept.repository)


def test_a_backup_that_is_gone_cannot_be_pinned(kept: KeptRepository) -> None:
    with pytest.raises(NotFoundError, match="has just been removed"):
        kept.repository.pins.add(BackupName("20200101T000000.000Z-00000000", SYSTEM), "why", None)
    assert list(kept.repository.pins.all(SYSTEM)) == []


def test_a_clock_behind_the_stores_removes_nothing(kept: KeptRepository) -> None:
    with pytest.raises(PgkeepError, match="the clock of this machine must be wrong"):
        run_expire(request(now=NOW - 2 * DAY), kept.repository)


def test_a_clock_ahead_of_the_stores_removes_nothing(kept: KeptRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (expire_module, clocks):
        monkeypatch.setattr(module, "utc_now", lambda: utc_now() + 400 * DAY)
    with pytest.raises(PgkeepError, match="the clock of this machine shows"):
        run_expire(ExpireRequest(rules=RULES), kept.repository)
    assert len(kept.ids()) == 35


def test_a_clock_that_has_jumped_ahead_with_the_stores_removes_nothing_unasked(
    kept: KeptRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory's dates are those of the same clock, and so are new backups; what tells is when an expiry ran last."""
    run_expire(request(), kept.repository)
    jumped = NOW + 400 * DAY
    monkeypatch.setattr(expire_module, "utc_now", lambda: jumped)
    monkeypatch.setattr(expire_module, "check_against_store", lambda *_: None)
    for number in range(5):
        kept.backup(jumped - number * HOUR)
    before = kept.ids()

    with pytest.raises(PgkeepError, match="or this machine's clock has jumped ahead; nothing was removed") as caught:
        run_expire(ExpireRequest(rules=RULES), kept.repository)
    assert "--clock-is-right" in (caught.value.hint or "")
    assert kept.ids() == before

    run_expire(ExpireRequest(rules=RULES, clock_is_right=True), kept.repository)
    assert len(kept.ids()) < len(before)
    assert plan_expiry(ExpireRequest(rules=RULES), kept.repository)[0].silence is None


def test_an_expiry_that_runs_every_week_is_no_jump_whatever_it_leaves(kept: KeptRepository) -> None:
    for number in range(4):
        (plan,) = plan_expiry(request(Rules(minimum=1), NOW + number * 7 * DAY), kept.repository)
        assert plan.silence is None
        run_expire(request(Rules(minimum=1), NOW + number * 7 * DAY), kept.repository)


def test_clusters_do_not_mix(kept: KeptRepository) -> None:
    other = kept.backup(NOW - 200 * DAY, system_identifier=8, cluster="other", id="20260507T120000.000Z-00000008")

    reports = run_expire(request(cluster="auth"), kept.repository)

    assert [report.plan.system_identifier for report in reports] == [SYSTEM]
    run_expire(request(), kept.repository)
    assert other in kept.ids()


def test_the_newest_proven_and_the_newest_verified_backup_stay(kept: KeptRepository) -> None:
    proven, verified = night(NOW - 30 * DAY), night(NOW - 20 * DAY)
    states = {proven: State.PROVEN, verified: State.VERIFIED, night(NOW - 25 * DAY): State.VERIFIED}

    run_expire(request(Rules(window=3 * DAY, grace=NO_GRACE), states=states), kept.repository)

    assert kept.ids()[:2] == [proven, verified]
    assert len(kept.ids()) == 6


def test_an_intruder_with_the_writers_key_makes_no_good_backup_go(kept: KeptRepository) -> None:
    """A flood, over all times, with any LSNs, added within the window: what stood for something stands, and its WAL is there."""
    pristine = plan_expiry(request(), kept.repository)[0]
    good = {verdict.backup.id for verdict in pristine.verdicts if not verdict.goes}
    needed = set(kept.segments())
    came = NOW - 2 * DAY
    for number in range(200):
        moment = NOW - (number - 60) * DAY / 3
        start = lsn_at(NOW - number * DAY)
        kept.backup(
            moment,
            stored=came,
            id=f"{moment:%Y%m%dT%H%M%S}.000Z-bad{number:05}",
            start_lsn=start,
            stop_lsn=start + 1,
            timeline=1 + number % 3,
        )

    (report,) = run_expire(request(), kept.repository)

    assert good <= set(kept.ids())
    assert any("doubtful" in " ".join(verdict.kept_by) for verdict in report.plan.verdicts)
    begin = min(v.backup.start_lsn for v in pristine.verdicts if v.continuous) // SIZE
    assert {number for number in needed if number >= begin} <= kept.segments()


def test_in_sealed_mode_a_key_that_only_adds_is_enough(tmp_path: Path) -> None:
    """What is kept is decided by metadata: manifests, history files, pins and names."""
    Repository.create(open_store(str(tmp_path / "repository")), KEY, reader=KeyFile(b"owner" * 6 + b"12"))
    kept = KeptRepository(tmp_path / "repository")
    for number in range(6, 12):
        kept.backup(NOW.replace(hour=3) - number * DAY)
    switch = NOW - 5 * DAY
    kept.wal(NOW - 12 * DAY, switch)
    kept.history(TimelineHistory(2, (TimelineSwitch(1, LSN(lsn_at(switch))),)), switch)
    kept.wal(switch, NOW, timeline=2)
    kept.backup(NOW - 4 * DAY, timeline=2, id="20261119T120000.000Z-00000002")
    kept.repository.pins.add(BackupName(night(NOW - 11 * DAY), SYSTEM), "case 4711", None)
    segment = f"{1:08X}{0:08X}{1:08X}"
    kept.repository.wal(SYSTEM).put(segment, b"rows")
    with pytest.raises(KeyFailure):
        kept.repository.wal(SYSTEM).get(segment)

    (report,) = run_expire(request(Rules(window=3 * DAY, grace=NO_GRACE)), kept.repository)

    assert kept.ids() == [night(NOW - 11 * DAY), "20261119T120000.000Z-00000002"]
    assert min(kept.segments(2)) == segment_at(NOW - 4 * DAY)
    assert report.plan.spared == set()
    kept.expect_sound()


def test_wal_that_has_expired_in_a_repository_is_not_copied_back(
    kept: KeptRepository, five_weeks: KeptRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_copies, "utc_now", lambda: NOW)
    run_expire(request(), kept.repository)
    everything = CopyRequest(wal=True)

    without = plan_copy(everything, five_weeks.repository, kept.repository)
    plan = plan_copy(everything, five_weeks.repository, kept.repository, wanted_wal=wanted_wal(kept.repository, RULES))

    assert without.wal_files == len(five_weeks.segments()) - len(kept.segments())
    assert (plan.backups, plan.wal_files) == ([], 0)


def test_wal_that_a_repository_with_rules_lacks_and_needs_is_copied(
    kept: KeptRepository, five_weeks: KeptRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_copies, "utc_now", lambda: NOW)
    run_expire(request(), kept.repository)
    wal = kept.repository.wal(SYSTEM)
    lost = [name for name, _ in wal.names(1)][-30:]
    for name in lost:
        kept.repository.store.delete(wal.object_name(name))
    source = five_weeks.copy(kept.directory.parent / "source")
    source.wal(NOW, NOW + 5 * HOUR, timeline=3)

    plan = plan_copy(
        CopyRequest(wal=True), source.repository, kept.repository, wanted_wal=wanted_wal(kept.repository, RULES)
    )

    assert plan.wal_files == len(lost) + len(source.segments(3))
