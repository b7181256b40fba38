"""What a collector deletes, when, and what it leaves."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.collection import CollectReport, CollectRequest, run_collect
from pgkeep.errors import BusyError, DamageError, StoreError
from pgkeep.repository import Repository, open_store
from pgkeep.repository.contents import ContentWriter, adopt_orphans
from pgkeep.repository.crypto import KeyRing
from pgkeep.repository.distrust import note_distrusted, read_distrusted
from pgkeep.repository.doomed import read_tombstones, write_tombstone
from pgkeep.repository.index import write_index
from pgkeep.repository.packs import PackKind, pack_name
from pgkeep.repository.parameters import Parameters
from support.jobs import KEY, new_repository
from support.tiny_backups import contents_of, expect_whole, make_backup, page, remove_backup, store_tree

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from pgkeep.repository.manifests import Manifest
    from pgkeep.repository.maps import FileEntry
    from pgkeep.repository.store import Store


NO_GRACE = CollectRequest(grace=timedelta(0))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return new_repository(tmp_path / "repository", Parameters(pack_size=40_000))


def collect(repository: Repository, request: CollectRequest = NO_GRACE) -> CollectReport:
    """As a process of its own does it."""
    return run_collect(request, Repository.open(open_store(repository.store.url), KEY))


def packs(repository: Repository, kind: str = "data") -> set[str]:
    return {info.name for info in repository.store.list(f"packs/{kind}/")}


def test_what_no_backup_needs_goes_in_two_runs_and_the_rest_stays(repository: Repository) -> None:
    first = make_backup(repository, 1, {b"a": page("a"), b"b": page("b")})
    second = make_backup(repository, 1, {b"c": page("c")})
    before = contents_of(repository, second)
    before_marking = packs(repository)
    remove_backup(repository, first)

    marking = collect(repository)
    there = packs(repository)
    deleting = collect(repository)

    assert (marking.deleted, marking.doomed) == (0, 2), "a data pack and a meta pack"
    assert there == before_marking
    assert (deleting.deleted, deleting.doomed) == (2, 0)
    assert len(packs(repository)) == 1
    assert contents_of(Repository.open(open_store(repository.store.url), KEY), second) == before
    assert read_tombstones(repository.store) == []


def test_nothing_goes_before_its_grace_is_over(repository: Repository) -> None:
    manifest = make_backup(repository, 1, {b"a": page("a")})
    remove_backup(repository, manifest)

    young = collect(repository, CollectRequest(grace=timedelta(days=1)))
    collect(repository)
    waiting = collect(repository, CollectRequest(grace=timedelta(days=1)))

    assert young.doomed == 0, "packs may be of a backup that is being taken"
    assert (waiting.deleted, waiting.waiting) == (0, 2)


def test_a_dry_run_says_it_all_and_changes_nothing(repository: Repository) -> None:
    remove_backup(repository, make_backup(repository, 1, {b"a": page("a")}))
    before = {info.name for info in repository.store.list("")}

    first = collect(repository, CollectRequest(grace=timedelta(0), dry_run=True))
    assert {info.name for info in repository.store.list("")} == before
    collect(repository)
    before = {info.name for info in repository.store.list("")}
    second = collect(repository, CollectRequest(grace=timedelta(0), dry_run=True))

    assert {info.name for info in repository.store.list("")} == before
    assert (first.doomed, second.deleted) == (2, 2)
    assert first.doomed_size == second.deleted_size > 0


def test_packs_that_are_mostly_garbage_are_stored_anew(repository: Repository) -> None:
    """With the sums of their blocks."""
    files = {f"f{number}".encode(): page(f"{number}") * 4 for number in range(8)}
    first = make_backup(repository, 1, files)
    entries = [file.entry for file in repository.tree(first).files()]
    second = make_backup(repository, 1, {}, [entries[3]])
    remove_backup(repository, first)
    size = sum(info.size for info in repository.store.list("packs/data/"))

    moved = collect(repository)
    collect(repository)

    fresh = Repository.open(open_store(repository.store.url), KEY)
    assert moved.repacked >= 1
    assert contents_of(fresh, second) == {b"f3": files[b"f3"]}
    assert sum(info.size for info in repository.store.list("packs/data/")) < size / 2
    (pack,) = packs(repository)
    assert [len(sums) for sums in fresh.reader().block_sums(pack).values()] == [4 * 8]


def test_who_has_read_the_index_before_finds_what_was_moved(repository: Repository) -> None:
    files = {f"f{number}".encode(): page(f"{number}") * 4 for number in range(8)}
    first = make_backup(repository, 1, files)
    entries = [file.entry for file in repository.tree(first).files()]
    second = make_backup(repository, 1, {}, [entries[3]])
    reader = Repository.open(open_store(repository.store.url), KEY)
    assert reader.index.known_packs()
    remove_backup(repository, first)
    collect(repository)
    collect(repository)

    assert contents_of(reader, second) == {b"f3": files[b"f3"]}


def test_a_backup_that_began_before_the_tombstone_spares_it(repository: Repository) -> None:
    plain = page("a")
    gone = make_backup(repository, 1, {b"a": plain})
    remove_backup(repository, gone)
    writer = Repository.open(open_store(repository.store.url), KEY)
    with writer.lease("backup of cluster 2"):
        watch = writer.doom_watch()
        collect(repository)
        held = collect(repository)
        rests = make_backup(writer, 2, {b"z": plain}, watch=watch)
    after = collect(repository)
    collect(repository)

    assert (held.deleted, held.waiting) == (0, 2)
    assert after.deleted == 0
    assert contents_of(Repository.open(open_store(repository.store.url), KEY), rests) == {b"z": plain}


def entries_of(repository: Repository, manifest: Manifest) -> list[FileEntry]:
    return [file.entry for file in repository.tree(manifest).files()]


def test_a_backup_may_rest_on_one_that_spared_a_tombstone_and_is_gone(repository: Repository) -> None:
    """What the second has of the first is in packs that were doomed before it began."""
    plain = page("a")
    remove_backup(repository, make_backup(repository, 1, {b"a": plain}))
    writer = Repository.open(open_store(repository.store.url), KEY)
    with writer.lease("backup of cluster 2"):
        watch = writer.doom_watch()
        collect(repository)
        parent = make_backup(writer, 2, {b"z": plain}, watch=watch)
    with repository.lease("backup of cluster 2"):
        watch = repository.doom_watch()
        kept = entries_of(repository, parent)
        remove_backup(repository, parent)
        for _ in range(3):
            collect(repository)
        child = make_backup(repository, 2, {}, kept, watch=watch)

    assert contents_of(Repository.open(open_store(repository.store.url), KEY), child) == {b"z": plain}


def test_a_backup_that_came_just_before_the_tombstone_is_seen(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that rests on it outlives it."""
    plain = page("a")
    remove_backup(repository, make_backup(repository, 1, {b"a": plain}))
    parents: list[Manifest] = []

    def after_a_backup(store: Store, packs: Iterable[str]) -> str:
        writer = Repository.open(open_store(repository.store.url), KEY)
        with writer.lease("backup of cluster 2"):
            parents.append(make_backup(writer, 2, {b"z": plain}))
        return write_tombstone(store, packs)

    monkeypatch.setattr("pgkeep.collection.job.write_tombstone", after_a_backup)
    report = collect(repository)
    monkeypatch.undo()
    with repository.lease("backup of cluster 2"):
        watch = repository.doom_watch()
        kept = entries_of(repository, parents[0])
        remove_backup(repository, parents[0])
        for _ in range(3):
            collect(repository)
        child = make_backup(repository, 2, {}, kept, watch=watch)

    assert "a backup came meanwhile" in report.notes[0]
    assert contents_of(Repository.open(open_store(repository.store.url), KEY), child) == {b"z": plain}


@pytest.mark.parametrize("asks", ["before it reads its parent", "too late"])
def test_a_backup_that_is_listed_while_a_collector_is_about_to_delete_what_its_parent_needed_is_whole(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    """The parent goes, its packs are doomed, and the backup comes after the collector's look at the backups."""
    make_backup(repository, 1, {b"k": page("k")})
    plain = page("a")
    parent = make_backup(repository, 2, {b"a": plain})
    writer = Repository.open(open_store(repository.store.url), KEY)
    children: list[Manifest] = []
    with ExitStack() as stack:
        stack.enter_context(writer.lease("backup of cluster 2"))
        watch = writer.doom_watch() if asks != "too late" else None
        kept = entries_of(writer, parent)
        remove_backup(repository, parent)
        assert collect(repository).doomed == 2
        assert collect(repository).waiting == 2

        def after_the_backup(store: Store) -> dict[str, datetime]:
            if not children:
                children.append(make_backup(writer, 2, {}, kept, watch))
                stack.close()
            return read_distrusted(store)

        monkeypatch.setattr("pgkeep.collection.job.read_distrusted", after_the_backup)
        late = collect(repository)

    assert late.deleted == 0
    assert contents_of(Repository.open(open_store(repository.store.url), KEY), children[0]) == {b"a": plain}


def test_nothing_goes_while_whoever_was_at_work_then_still_is(repository: Repository) -> None:
    remove_backup(repository, make_backup(repository, 1, {b"a": page("a")}))
    with repository.lease("backup of cluster 2"):
        collect(repository)
        assert collect(repository).waiting == 2
    assert collect(repository).deleted == 2


def test_a_backup_that_begins_after_the_tombstone_rests_on_nothing_that_goes(repository: Repository) -> None:
    plain = page("a")
    remove_backup(repository, make_backup(repository, 1, {b"a": plain}))
    collect(repository)
    with repository.lease("backup of cluster 2"):
        watch = repository.doom_watch()
        assert collect(repository).deleted == 2
        later = make_backup(repository, 2, {b"z": plain}, watch=watch)

    assert contents_of(repository, later) == {b"z": plain}


def test_a_copy_that_needs_a_doomed_pack_spares_it_or_is_told_to_wait(repository: Repository) -> None:
    remove_backup(repository, make_backup(repository, 1, {b"a": page("a")}))
    collect(repository)
    (pack,) = packs(repository)
    watch = repository.doom_watch()

    watch.claim("packs/data/00/another")
    assert read_tombstones(repository.store)[0].holds
    (tombstone,) = read_tombstones(repository.store)
    repository.store.put(f"{tombstone.name}.deleting", [b"x"])
    with pytest.raises(BusyError, match="a collection is deleting"):
        watch.claim(pack)
    repository.store.delete(f"{tombstone.name}.deleting")
    watch.claim(pack)

    assert collect(repository).deleted == 0
    assert pack in packs(repository)


def test_packs_of_a_backup_that_was_never_listed_go_and_are_not_adopted_once_they_are_doomed(
    repository: Repository,
) -> None:
    make_backup(repository, 1, {b"a": page("a")})
    with repository.writer() as writer:
        store_tree(writer, {b"x": page("x")})
    collect(repository)
    (tombstone,) = read_tombstones(repository.store)
    for info in list(repository.store.list("index/")):
        repository.store.delete(info.name)

    adopted = adopt_orphans(repository.store, repository.keys, repository.index)

    assert adopted == 2, "those of the backup"
    assert tombstone.packs.isdisjoint(repository.index.known_packs())
    assert collect(repository).deleted == len(tombstone.packs)
    assert expect_whole(repository) == 1


def test_where_it_cannot_be_known_what_is_needed_nothing_is_collected(repository: Repository) -> None:
    make_backup(repository, 1, {b"a": page("a")})
    remove_backup(repository, make_backup(repository, 1, {b"b": page("b")}))
    collect(repository)
    for info in list(repository.store.list("index/")):
        repository.store.delete(info.name)
    there = packs(repository)

    with pytest.raises(DamageError, match="in no index"):
        collect(repository)

    assert packs(repository) == there


def test_a_tombstone_that_somebody_forged_deletes_nothing_that_is_needed(repository: Repository) -> None:
    manifest = make_backup(repository, 1, {b"a": page("a")})
    everything = packs(repository) | packs(repository, "meta")
    name = write_tombstone(repository.store, everything)
    repository.store.put(f"{name}.writers", [repository.store.get(name).replace(b'"packs"', b'"leases"')])

    for _ in range(3):
        collect(repository)
        assert contents_of(Repository.open(open_store(repository.store.url), KEY), manifest)

    assert everything <= packs(repository) | packs(repository, "meta")


def test_a_pack_that_only_says_that_it_has_a_content_does_not_send_the_true_one_away(repository: Repository) -> None:
    """Forged by somebody who can add: rubbish, and an index that places all contents of a backup in it."""
    manifest = make_backup(repository, 1, {b"a": page("a"), b"b": page("b")})
    before = contents_of(repository, manifest)
    true = packs(repository) | packs(repository, "meta")
    for kind in PackKind:
        rubbish = secrets.token_bytes(50_000)
        forged = pack_name(kind, hashlib.sha256(rubbish).hexdigest())
        repository.store.put(forged, [rubbish])
        entries = [
            segment.location(row).entry
            for segment in repository.index.segments
            for row in range(len(segment))
            if segment.location(row).pack.startswith(f"packs/{kind.name.lower()}/")
        ]
        repository.index.adopt(write_index(repository.store, repository.keys, [(forged, entries)]))

    reports = [collect(repository) for _ in range(4)]

    assert true <= packs(repository) | packs(repository, "meta")
    assert any("void" in note for report in reports for note in report.notes)
    assert contents_of(Repository.open(open_store(repository.store.url), KEY), manifest) == before


def test_a_damaged_pack_goes_once_its_contents_were_stored_anew(repository: Repository) -> None:
    files = {b"a": page("a"), b"b": page("b")}
    old = make_backup(repository, 1, files)
    damaged = next(iter(packs(repository)))
    path = Path(repository.store.url.removeprefix("file://")) / damaged
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(bytes(size))
    note_distrusted(repository.store, damaged=[damaged])

    lonely = [collect(repository), collect(repository)]
    there = packs(repository)
    new = make_backup(repository, 1, files)
    healed = [collect(repository), collect(repository)]

    assert damaged in there, "nothing else had what it holds"
    assert sum(report.deleted for report in lonely) == 0
    assert damaged not in packs(repository)
    assert healed[1].deleted == 1
    assert read_distrusted(repository.store) == {}
    opened = Repository.open(open_store(repository.store.url), KEY)
    assert contents_of(opened, old) == contents_of(opened, new) == files


def test_what_cannot_be_read_to_prove_it_is_not_relied_on(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice stored: by a key that cannot read, neither copy goes."""
    make_backup(repository, 1, {b"a": page("a")})
    segment = repository.index.segments[0]
    plain = repository.reader().get(segment.location(0).entry.id)
    twice = ContentWriter(repository.store, repository.keys, repository.index, repository.parameters, packs(repository))
    with twice:
        for row in range(len(segment)):
            location = segment.location(row)
            if location.pack.startswith("packs/data/"):
                plain = repository.reader().get(location.entry.id)
                twice.put(PackKind.DATA, plain)
    monkeypatch.setattr(KeyRing, "opens_boxes", property(lambda _: False))

    blind = [collect(repository), collect(repository)]
    monkeypatch.undo()
    reading = [collect(repository), collect(repository)]

    assert sum(report.deleted for report in blind) == 0
    assert any("cannot read" in note for note in blind[0].notes)
    assert sum(report.deleted for report in reading) == 1
    assert expect_whole(Repository.open(open_store(repository.store.url), KEY)) == 1


def test_a_pack_that_the_store_does_not_delete_is_named_and_tried_again(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_backup(repository, make_backup(repository, 1, {b"a": page("a")}))
    collect(repository)
    store = open_store(repository.store.url)
    delete = store.delete

    def locked(name: str) -> None:
        if name.startswith("packs/data/"):
            raise StoreError(f"{name} is locked until tomorrow")
        delete(name)

    monkeypatch.setattr(store, "delete", locked)
    refused = run_collect(NO_GRACE, Repository.open(store, KEY))
    again = collect(repository)

    assert [what for _, what in refused.refused] == [f"{name} is locked until tomorrow" for name, _ in refused.refused]
    assert (refused.deleted, again.deleted) == (1, 1)
    assert read_tombstones(repository.store) == []


def test_many_small_index_objects_become_one(repository: Repository) -> None:
    manifests = [make_backup(repository, 1, {f"f{number}".encode(): page("x")}) for number in range(40)]
    assert len(list(repository.store.list("index/"))) >= 40

    collect(repository)

    assert len(list(repository.store.list("index/"))) == 1
    assert expect_whole(Repository.open(open_store(repository.store.url), KEY)) == len(manifests)


def test_two_collectors_at_once_are_one(repository: Repository) -> None:
    with repository.lease("collection"), pytest.raises(BusyError, match="collection"):
        collect(repository)
