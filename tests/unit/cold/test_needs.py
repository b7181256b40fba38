"""What a restore needs of an archive: which objects, how many bytes, and what each way to have them takes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.cold.needs import archived_needs, candidates, packs_of, suspects, thaw_hint, wal_between
from pgkeep.cold.prices import CLASSES, TierChange, corrected
from pgkeep.errors import DamageError
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.timeline import TimelineHistory, TimelineSwitch
from pgkeep.postgres.wal import parse_segment_name, segment_name
from pgkeep.repository.cold_records import read_cold, write_cold
from pgkeep.repository.records import write_record
from pgkeep.repository.storage_classes import ObjectState
from support.cold_repository import SEGMENT

if TYPE_CHECKING:
    from support.cold_repository import ColdRepository

GIB = 1 << 30


def archive(cold: ColdRepository, names: set[str], storage_class: str = "GLACIER") -> None:
    """Move packs, with the record of it."""
    for name in names:
        cold.classes.change(name, storage_class)
    write_cold(cold.repository.store, storage_class, sorted(names), {}, done=True)


def test_a_backup_needs_its_own_packs_and_no_others(cold: ColdRepository) -> None:
    first, second = cold.backup(40, 1, 2), cold.backup(30, 2, 3)

    names = {info.name for info in cold.repository.store.list("packs/data/")}
    assert cold.packs(first) | cold.packs(second) == names
    assert len(cold.packs(first) & cold.packs(second)) == 1


def test_only_what_is_in_an_archive_is_named_with_its_bytes(cold: ColdRepository) -> None:
    old, other = cold.backup(40, 1, 2), cold.backup(39, 3)
    archive(cold, cold.packs(old) | cold.packs(other))
    half = sorted(cold.packs(old))[:1]
    cold.classes.states[half[0]] = ObjectState(half[0], 1, "GLACIER_IR")

    names = candidates(cold.repository, read_cold(cold.repository.store), old)
    need = archived_needs(cold.classes, names)

    assert {state.name for state in need.objects} == cold.packs(old) - set(half)
    assert need.size == sum(cold.repository.store.info(name).size for name in cold.packs(old) - set(half))
    assert need.by_class == {"GLACIER": (1, need.size)}


def test_where_nothing_was_moved_nothing_is_asked(cold: ColdRepository) -> None:
    old = cold.backup(40, 1)

    assert candidates(cold.repository, read_cold(cold.repository.store), old) == []
    assert archived_needs(cold.classes, []).objects == []
    assert cold.classes.asked == 0


def test_what_is_read_at_once_is_no_need(cold: ColdRepository) -> None:
    old = cold.backup(40, 1)
    archive(cold, cold.packs(old), "GLACIER_IR")

    assert candidates(cold.repository, read_cold(cold.repository.store), old) == []


def test_what_is_thawed_or_asked_for_is_told_apart(cold: ColdRepository) -> None:
    old = cold.backup(40, 1, 2, 3)
    thawed, asked, frozen = sorted(cold.packs(old))
    archive(cold, cold.packs(old))
    until = datetime(2026, 12, 1, tzinfo=UTC)
    states = cold.classes.states
    states[thawed] = replace(states[thawed], thawed_until=until)
    states[asked] = replace(states[asked], thawing=True)

    need = archived_needs(cold.classes, cold.packs(old))

    assert {state.name for state in need.objects} == {asked, frozen}
    assert (need.thawing, need.thawed, need.thawed_until) == (1, 1, until)
    # paid for once
    assert [round(cost * 1e9) for _, _, _, cost in need.choices()] == [
        round((tier.per_gib * states[frozen].size / GIB + tier.per_1000 / 1000) * 1e9)
        for tier in CLASSES["s3"]["GLACIER"].tiers
    ]


def test_each_tier_is_offered_with_hours_and_price(cold: ColdRepository) -> None:
    old = cold.backup(40, 1, 2)
    quick, slow = sorted(cold.packs(old))
    cold.classes.states[quick] = ObjectState(quick, 100 * GIB, "GLACIER")
    cold.classes.states[slow] = ObjectState(slow, 10 * GIB, "DEEP_ARCHIVE")

    need = archived_needs(cold.classes, [quick, slow])

    assert thaw_hint(old.id, need) == (
        f"pgkeep thaw {old.id} --wait (--tier: Standard (DEEP_ARCHIVE): 12 h 0 min, about $0.20;"
        " Bulk (DEEP_ARCHIVE): 2 d 0 h, about $0.03; Expedited (GLACIER): 5 min 0 s, about $3.01;"
        " Standard (GLACIER): 5 h 0 min, about $1.00; Bulk (GLACIER): 12 h 0 min, about $0.00)"
    )
    assert need.quickest_hours == 12, "the slowest class decides when all is there"
    document = need.document()
    assert document["bytes"] == 110 * GIB
    assert document["classes"] == [
        {"class": "DEEP_ARCHIVE", "objects": 1, "bytes": 10 * GIB},
        {"class": "GLACIER", "objects": 1, "bytes": 100 * GIB},
    ]
    assert {"class": "GLACIER", "tier": "Standard", "hours": 5, "price": 1.0} in document["tiers"]  # type: ignore[operator]


def test_the_users_prices_are_what_is_said(cold: ColdRepository) -> None:
    old = cold.backup(40, 1)
    (pack,) = cold.packs(old)
    cold.classes.states[pack] = ObjectState(pack, 100 * GIB, "GLACIER")
    facts = {"GLACIER": corrected(CLASSES["s3"]["GLACIER"], {"Standard": TierChange(3, 0.05, 0)})}

    assert ("GLACIER", "Standard", 3, 5.0) in list(archived_needs(cold.classes, [pack], facts).choices())


def test_an_object_that_is_gone_is_left_to_whoever_reads_it(cold: ColdRepository) -> None:
    old = cold.backup(40, 1)
    (pack,) = cold.packs(old)
    cold.repository.store.delete(pack)

    assert archived_needs(cold.classes, [pack]).objects == []


def test_content_that_no_index_knows_is_damage(cold: ColdRepository) -> None:
    old = cold.backup(40, 1)
    for info in list(cold.repository.store.list("index/")):
        cold.repository.store.delete(info.name)
    cold.repository.index.refresh()

    with pytest.raises(DamageError, match="in no index"):
        packs_of(cold.repository, old)


def test_wal_up_to_what_was_moved_is_suspected_and_no_more(cold: ColdRepository) -> None:
    backup = cold.backup(40, 1, wal=(segment_name(1, 16 * SEGMENT, SEGMENT), segment_name(1, 17 * SEGMENT, SEGMENT)))
    write_cold(cold.repository.store, "GLACIER", [], {"7/00000001": segment_name(1, 16 * SEGMENT, SEGMENT)})
    records = read_cold(cold.repository.store)

    assert candidates(cold.repository, records, backup) == [
        cold.repository.wal(7).object_name(segment_name(1, 16 * SEGMENT, SEGMENT))
    ]
    assert suspects(cold.repository, records, backup, (), [segment_name(2, 0, SEGMENT), "00000002.history"]) == []


def test_a_restore_to_a_later_moment_needs_the_wal_in_between(cold: ColdRepository) -> None:
    backup = cold.backup(40, 1, start=16 * SEGMENT)
    write_cold(cold.repository.store, "GLACIER", [], {"7/00000001": segment_name(1, 30 * SEGMENT, SEGMENT)})

    names = candidates(
        cold.repository, read_cold(cold.repository.store), backup, path=TimelineHistory(1), end=19 * SEGMENT + 5
    )

    numbers = [parse_segment_name(name.rpartition("/")[2], SEGMENT)[1] // SEGMENT for name in names]
    assert numbers == [16, 17, 18, 19]


@given(start=st.integers(0, 40 * SEGMENT), length=st.integers(1, 20 * SEGMENT), switch=st.integers(1, 60 * SEGMENT))
def test_wal_between_covers_every_byte_on_its_timeline(start: int, length: int, switch: int) -> None:
    path = TimelineHistory(2, (TimelineSwitch(1, LSN(switch)),))
    names = set(wal_between(path, start, start + length, SEGMENT))

    for position in {start, start + length // 2, start + length - 1, min(max(switch, start), start + length - 1)}:
        first = position - position % SEGMENT
        assert segment_name(path.timeline_of(position), first, SEGMENT) in names
    assert len(names) <= (start + length - 1) // SEGMENT - start // SEGMENT + 2


def test_records_add_up_and_a_damaged_one_is_passed_over(cold: ColdRepository) -> None:
    store = cold.repository.store
    first, second = f"packs/data/aa/aa{'0' * 62}", f"packs/data/bb/bb{'0' * 62}"
    assert not read_cold(store)
    write_cold(store, "GLACIER", [first], {"7/00000001": "B"})
    write_cold(store, "GLACIER_IR", [first, second], {"7/00000001": "A"}, done=True)
    store.put("cold/damaged", [b"no record"])
    write_record(store, "cold/other", {"class": "GLACIER", "packs": 5})

    found = read_cold(store)

    # what may be in an archive counts as there: the store is asked
    assert found.packs == {first: "GLACIER", second: "GLACIER_IR"}
    assert found.archived == {first}
    assert (found.wal, found.wal_done) == ({"7/00000001": "B"}, {"7/00000001": "A"})
    assert len(found.records) == 2
