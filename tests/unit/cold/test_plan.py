"""What the rules for cold storage move, and what they leave: by the ages of backups and what each of them needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgkeep.repository.cold_records import read_cold, write_cold
from pgkeep.repository.manifests import BackupName
from pgkeep.repository.storage_classes import ObjectState
from support.cold_repository import NOW

if TYPE_CHECKING:
    from datetime import datetime

    from support.cold_repository import ColdRepository

SMALL = 20_000


def test_packs_of_old_backups_go_and_those_of_young_ones_stay(cold: ColdRepository) -> None:
    old, young = cold.backup(40, 1, 2), cold.backup(2, 3)

    plan = cold.plan((30, "GLACIER_IR"))

    assert cold.moved(plan) == {"GLACIER_IR": cold.packs(old)}
    assert plan.objects == len(cold.packs(old)) > 0
    assert plan.size >= 400_000
    assert cold.packs(old).isdisjoint(cold.packs(young))


def test_what_a_younger_backup_shares_stays(cold: ColdRepository) -> None:
    old, young = cold.backup(40, 1, 2), cold.backup(2, 2, 3)

    moved = cold.moved(cold.plan((30, "GLACIER_IR")))["GLACIER_IR"]

    assert moved == cold.packs(old) - cold.packs(young)
    assert cold.packs(old) & cold.packs(young)


def test_the_newest_backup_of_each_cluster_stays_whatever_its_age(cold: ColdRepository) -> None:
    cold.backup(400, 1)
    cold.backup(500, 2, system=8)

    assert cold.moved(cold.plan((30, "DEEP_ARCHIVE"))) == {}


def test_of_several_rules_the_age_decides_which_one(cold: ColdRepository) -> None:
    oldest, old, shared = cold.backup(100, 1, 5), cold.backup(40, 2, 5), cold.backup(35, 3)
    cold.backup(1, 4)

    plan = cold.plan((90, "DEEP_ARCHIVE"), (30, "STANDARD_IA"))

    assert cold.moved(plan) == {
        "DEEP_ARCHIVE": cold.packs(oldest) - cold.packs(old),
        "STANDARD_IA": cold.packs(old) | cold.packs(shared),
    }


@pytest.mark.parametrize(("age", "goes"), [(29.99, False), (30, True)])
def test_a_backup_goes_on_the_day_that_the_rule_names(cold: ColdRepository, age: float, goes: bool) -> None:
    cold.backup(age, 1)
    cold.backup(1, 2)

    assert bool(cold.moved(cold.plan((30, "GLACIER")))) is goes


def test_metadata_and_small_packs_stay_hot(cold: ColdRepository) -> None:
    """Listings, manifests, maps, index and keys are what plans read; what is small costs more in a cold class."""
    small = cold.backup(40, 1, size=SMALL)
    old = cold.backup(39, 2)
    cold.backup(1, 3)

    plan = cold.plan((30, "GLACIER"))

    there = {info.name.split("/")[0] for info in cold.repository.store.list("")}
    assert {"packs", "clusters", "index", "keys"} <= there
    assert all(name.startswith("packs/data/") for name in cold.moved(plan)["GLACIER"])
    assert cold.moved(plan)["GLACIER"] == cold.packs(old) - cold.packs(small)
    assert plan.stays == {"are so small that they would cost more there": len(cold.packs(small) - cold.packs(old))}


def test_a_pack_moves_no_second_time_nor_back(cold: ColdRepository) -> None:
    old = cold.backup(40, 1)
    cold.backup(1, 2)
    for pack in cold.packs(old):
        cold.classes.change(pack, "GLACIER_IR")
        cold.date(pack, 5)

    same, warmer = cold.plan((30, "GLACIER_IR")), cold.plan((30, "STANDARD_IA"), (60, "GLACIER_IR"))

    assert (same.moves, same.stays) == ({}, {})
    assert same.seen == dict.fromkeys(cold.packs(old), "GLACIER_IR")
    assert (warmer.moves, warmer.stays) == ({}, {})


@pytest.mark.parametrize(("there_for", "goes"), [(20, False), (31, True)])
def test_what_a_class_charges_for_is_waited_for_before_the_next_one(
    cold: ColdRepository, there_for: float, goes: bool
) -> None:
    old = cold.backup(100, 1)
    cold.backup(1, 2)
    for pack in cold.packs(old):
        cold.classes.change(pack, "STANDARD_IA")
        cold.date(pack, there_for)

    plan = cold.plan((30, "STANDARD_IA"), (90, "DEEP_ARCHIVE"))

    assert bool(plan.moves) is goes
    reason = "came to STANDARD_IA less than 30 days ago, which it charges for"
    assert plan.stays == ({} if goes else {reason: len(cold.packs(old))})


def test_what_lies_in_an_archive_goes_no_further(cold: ColdRepository) -> None:
    old = cold.backup(400, 1)
    cold.backup(1, 2)
    for pack in cold.packs(old):
        cold.classes.change(pack, "GLACIER")
        cold.date(pack, 300)

    plan = cold.plan((30, "GLACIER"), (365, "DEEP_ARCHIVE"))

    assert plan.moves == {}
    assert plan.stays == {
        "are in GLACIER, from where they can only go by way of a thaw": len(cold.packs(old)),
    }


def test_what_expires_before_its_class_is_paid_for_stays(cold: ColdRepository) -> None:
    """Each class is asked for by its own least time: 90 days of GLACIER_IR, 180 of DEEP_ARCHIVE."""
    short, lasting = cold.backup(41, 1), cold.backup(40, 2)
    cold.backup(1, 3)
    asked: list[int] = []

    def kept_at(moment: datetime) -> set[str]:
        asked.append((moment - NOW).days)
        return {lasting.id}

    plan = cold.plan((30, "GLACIER_IR"), (365, "DEEP_ARCHIVE"), kept_at=kept_at)

    assert cold.moved(plan) == {"GLACIER_IR": cold.packs(lasting)}
    assert plan.stays == {"expire before the 90 days that GLACIER_IR charges for": len(cold.packs(short))}
    assert asked == [90, 180]


def test_a_backup_that_needs_packs_of_an_archive_though_it_is_young_is_named(cold: ColdRepository) -> None:
    cold.backup(40, 1)
    young = cold.backup(2, 2)
    write_cold(cold.repository.store, "GLACIER", sorted(cold.packs(young)), {}, done=True)

    assert cold.plan((30, "GLACIER_IR")).needing == [young.id]


def test_new_backups_store_again_what_lies_in_an_archive(cold: ColdRepository) -> None:
    """So that the newest one is always read at once."""
    old = cold.packs(cold.backup(40, 1))
    write_cold(cold.repository.store, "GLACIER", sorted(old), {}, done=True)

    again = cold.packs(cold.backup(1, 1))

    assert again
    assert again.isdisjoint(old)


def test_an_index_that_is_made_again_still_prefers_what_is_not_in_an_archive(cold: ColdRepository) -> None:
    """Contents that are stored twice: wherever their packs come in the order of names."""
    olds = [cold.packs(cold.backup(40 + number, number)) for number in range(6)]
    write_cold(cold.repository.store, "GLACIER", sorted(set().union(*olds)), {}, done=True)
    young = cold.backup(1, *range(6))
    before = cold.packs(young)

    cold.repository.reindex()

    assert cold.packs(young) == before


def test_packs_of_no_backup_stay(cold: ColdRepository) -> None:
    """They are the collector's, and moving them would be paid for."""
    gone = cold.backup(400, 1)
    old = cold.backup(40, 2)
    cold.backup(1, 3)
    cold.repository.store.delete(BackupName(gone.id, gone.system_identifier).object_name)

    assert cold.moved(cold.plan((30, "GLACIER"))) == {"GLACIER": cold.packs(old)}


def test_wal_goes_that_only_old_backups_need_and_whose_times_are_indexed(cold: ColdRepository) -> None:
    cold.backup(40, 1, start=16 << 20)
    cold.backup(2, 2, start=36 << 20)
    names = {number: cold.wal(number, 50) for number in range(14, 40)}
    for group in (0, 16, 32):
        cold.times(group)

    moved = cold.moved(cold.plan((30, "GLACIER")))["GLACIER"]

    wal = {number for number, name in names.items() if name in moved}
    # segment 36 is the first that the newest backup needs
    assert wal == set(range(14, 36))


def test_wal_stays_that_is_young_small_or_not_indexed(cold: ColdRepository) -> None:
    cold.backup(40, 1, start=16 << 20)
    cold.backup(2, 2, start=90 << 20)
    cold.times(16)
    old, young, small, plain = cold.wal(16, 50), cold.wal(17, 5), cold.wal(18, 50, SMALL), cold.wal(40, 50)

    plan = cold.plan((30, "GLACIER"))

    moved = cold.moved(plan)["GLACIER"]
    assert old in moved
    assert moved.isdisjoint({young, small, plain})
    assert plan.wal == {"7/00000001": old.rpartition("/")[2]}


def test_wal_that_was_moved_is_not_asked_about_again(cold: ColdRepository) -> None:
    cold.backup(40, 1, start=16 << 20)
    cold.backup(2, 2, start=90 << 20)
    cold.times(16)
    first, second = cold.wal(16, 50), cold.wal(17, 50)
    write_cold(cold.repository.store, "GLACIER", [], {"7/00000001": first.rpartition("/")[2]}, done=True)

    assert read_cold(cold.repository.store).wal_done == {"7/00000001": first.rpartition("/")[2]}
    assert {name for name in cold.moved(cold.plan((30, "GLACIER")))["GLACIER"] if "/wal/" in name} == {second}


def test_wal_that_expires_before_its_class_is_paid_for_stays(cold: ColdRepository) -> None:
    cold.backup(40, 1, start=16 << 20)
    young = cold.backup(2, 2, start=90 << 20)
    cold.times(16)
    cold.wal(16, 50)

    plan = cold.plan((30, "GLACIER"), kept_at=lambda _moment: {young.id})

    assert plan.moves == {}
    assert plan.stays["are WAL that expires before its class is paid for"] == 1


def test_where_listings_say_no_class_the_records_do(cold: ColdRepository) -> None:
    """Google and Azure: a question for each object is spared."""
    old = cold.backup(40, 1)
    cold.backup(1, 2)
    cold.classes.scheme = "az"
    pack = next(iter(cold.packs(old)))
    cold.classes.states[pack] = ObjectState(pack, 1, "Archive")
    write_cold(cold.repository.store, "Archive", [pack], {}, done=True)

    plan = cold.plan((30, "Archive"))

    assert plan.seen == {pack: "Archive"}
    assert cold.moved(plan).get("Archive", set()) == cold.packs(old) - {pack}
    assert cold.classes.asked == 0
