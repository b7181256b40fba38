"""The spool: durable before acknowledged, sealed, and honest about what a crash and what damage did to it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import BusyError, ConfigError, DamageError, KeyFailure, StoreError
from pgkeep.postgres.lsn import LSN
from pgkeep.repository import KeyFile, Passphrase, Repository, open_store
from pgkeep.repository.crypto import KeyRing, Suite
from pgkeep.wal.spool import Position, Spool, SpoolSegment
from pgkeep.wal.spool_keys import SpoolIdentity, create_spool_keys, lock_spool, open_spool_keys
from pgkeep.wal.spool_parts import PART_HEADER_SIZE, PartWriter, read_part, scan_part

SEGMENT = 1 << 20
IDENTITY = SpoolIdentity(7000000000000000001, SEGMENT)
KEYS = KeyRing(Suite.AES_256_GCM, bytes(range(32)), bytes(16))
START = LSN(0x3000000)
FAMILIES = st.sampled_from([KEYS, KeyRing.unencrypted(bytes(16))])


def _bytes(size: int, seed: int = 1) -> bytes:
    return (seed.to_bytes(4, "little") * (size // 4 + 1))[:size]


def _open(directory: Path, keys: KeyRing = KEYS) -> Spool:
    return Spool(directory, IDENTITY, keys)


def _begun(directory: Path, timeline: int = 1, start: LSN = START) -> Spool:
    spool = _open(directory)
    spool.begin(Position(timeline, start))
    return spool


def _append(spool: Spool, data: bytes) -> None:
    assert spool.position is not None
    spool.append(spool.position.lsn, [memoryview(data)])


def _content(spool: Spool, segment: SpoolSegment) -> bytes:
    return b"".join(spool.read(segment, segment.first, segment.end))


def _newest_part(spool: Spool) -> Path:
    return max((spool.directory / "wal").glob("*-" + "?" * 16))


def test_what_is_synced_is_there_after_a_crash(tmp_path: Path) -> None:
    spool = _begun(tmp_path)
    _append(spool, b"one")
    _append(spool, b"two")
    spool.sync()

    again = _open(tmp_path)

    assert again.position == Position(1, LSN(START + 6))
    assert [_content(again, segment) for segment in again.segments()] == [b"onetwo"]


def test_what_is_not_synced_is_not_shown(tmp_path: Path) -> None:
    spool = _begun(tmp_path)
    _append(spool, b"one")
    spool.sync()
    _append(spool, b"two")

    assert spool.position == Position(1, LSN(START + 6))
    assert spool.durable == Position(1, LSN(START + 3))
    assert [_content(spool, segment) for segment in spool.segments()] == [b"one"]


def test_a_part_never_crosses_the_end_of_a_segment(tmp_path: Path) -> None:
    spool = _begun(tmp_path)
    data = os.urandom(2 * SEGMENT + 100)
    spool.append(START, [memoryview(data)[: SEGMENT - 5], memoryview(data)[SEGMENT - 5 :]])
    spool.sync()

    segments = spool.segments()

    assert [(s.complete, s.closed) for s in segments] == [(True, True), (True, True), (False, False)]
    assert [s.name[-2:] for s in segments] == ["30", "31", "32"]
    assert b"".join(_content(spool, s) for s in segments) == data


def test_a_finished_segment_is_durable_without_a_sync(tmp_path: Path) -> None:
    spool = _begun(tmp_path)
    _append(spool, bytes(SEGMENT))

    assert spool.durable == Position(1, LSN(START + SEGMENT))


def test_any_stretch_of_a_segment_can_be_read(tmp_path: Path) -> None:
    spool = _begun(tmp_path)
    data = os.urandom(3000)
    for first in range(0, 3000, 700):
        _append(spool, data[first : first + 700])
    spool.sync()
    (segment,) = spool.segments()

    for first, end in ((0, 3000), (1, 2), (699, 701), (700, 1400), (2999, 3000)):
        assert b"".join(spool.read(segment, START + first, START + end)) == data[first:end]


def test_a_restart_begins_a_new_part_with_a_key_of_its_own(tmp_path: Path) -> None:
    spool = _begun(tmp_path)
    _append(spool, b"before")
    spool.close()
    again = _open(tmp_path)
    _append(again, b"after")
    again.close()

    parts = sorted((tmp_path / "wal").iterdir())
    salts = [part.read_bytes()[PART_HEADER_SIZE - 32 : PART_HEADER_SIZE] for part in parts]

    assert [part.name for part in parts] == ["00000001-0000000003000000", "00000001-0000000003000006"]
    assert salts[0] != salts[1]
    third = _open(tmp_path)
    assert [_content(third, segment) for segment in third.segments()] == [b"beforeafter"]


def test_a_part_that_a_crash_left_empty_is_made_anew_with_another_key(tmp_path: Path) -> None:
    spool = _begun(tmp_path)
    _append(spool, b"lost")
    part = _newest_part(spool)
    salt = part.read_bytes()[:PART_HEADER_SIZE]
    os.truncate(part, PART_HEADER_SIZE + 3)

    again = _open(tmp_path)
    again.begin(Position(1, START))
    _append(again, b"kept")
    again.close()

    assert part.read_bytes()[:PART_HEADER_SIZE] != salt
    assert [_content(again, segment) for segment in again.segments()] == [b"kept"]


@given(keys=FAMILIES, sizes=st.lists(st.integers(1, 400), min_size=1, max_size=6), cut=st.integers(1, 600))
def test_a_torn_tail_is_dropped_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, keys: KeyRing, sizes: list[int], cut: int
) -> None:
    path = tmp_path_factory.mktemp("spool") / "part"
    writer = PartWriter(path, keys, 1, START)
    ends = [writer.size]
    for number, size in enumerate(sizes):
        writer.append([memoryview(_bytes(size, number))], START)
        ends.append(writer.size)
    writer.close()
    size = max(writer.size - cut, 0)
    os.truncate(path, size)

    scan = scan_part(path, keys, 1, START, thorough=True)

    whole = sum(end <= size for end in ends) - 1
    if whole < 1:
        assert scan is None
    else:
        assert scan is not None
        assert (scan.end, scan.size, scan.damage) == (START + sum(sizes[:whole]), ends[whole], None)
        expected = b"".join(_bytes(size, number) for number, size in enumerate(sizes[:whole]))
        assert b"".join(read_part(path, keys, START, scan.end)) == expected


@given(keys=FAMILIES, place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_before_the_durable_end_is_damage(
    tmp_path_factory: pytest.TempPathFactory, keys: KeyRing, place: float, bit: int
) -> None:
    path = tmp_path_factory.mktemp("spool") / "part"
    writer = PartWriter(path, keys, 1, START)
    writer.append([memoryview(b"acknowledged" * 10)], START)
    good = writer.size
    writer.append([memoryview(b"later")], LSN(START + 120))
    writer.close()
    data = bytearray(path.read_bytes())
    data[PART_HEADER_SIZE + int(place * (good - PART_HEADER_SIZE))] ^= 1 << bit
    path.write_bytes(data)

    scan = scan_part(path, keys, 1, START, thorough=True)

    assert scan is not None
    assert scan.damage is not None
    assert scan.end == START
    with pytest.raises(DamageError):
        list(read_part(path, keys, START, START + 125))


def test_frames_that_change_places_do_not_open(tmp_path: Path) -> None:
    path = tmp_path / "part"
    writer = PartWriter(path, KEYS, 1, START)
    writer.append([memoryview(b"first")], START)
    middle = writer.size
    writer.append([memoryview(b"other")], START)
    writer.close()
    data = path.read_bytes()
    path.write_bytes(data[:PART_HEADER_SIZE] + data[middle:] + data[PART_HEADER_SIZE:middle])

    with pytest.raises(DamageError):
        list(read_part(path, KEYS, START, START + 10))


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    writer = PartWriter(tmp_path / "part", KEYS, 1, START)
    writer.append([memoryview(b"first")], START)
    writer.close()

    with pytest.raises(DamageError, match="other WAL than its name says"):
        scan_part(tmp_path / "part", KEYS, 2, START, thorough=True)


def test_damage_is_told_and_set_aside_and_the_good_beginning_stays(tmp_path: Path) -> None:
    spool = _begun(tmp_path)
    for word in (b"good", b"bad!", b"more"):
        _append(spool, word)
        spool.sync()
    part = _newest_part(spool)
    data = bytearray(part.read_bytes())
    data[data.rfind(b"FRAM", 0, data.rfind(b"FRAM")) + 30] ^= 1
    part.write_bytes(data)

    again = _open(tmp_path)

    assert len(again.damage) == 1
    assert again.position == Position(1, LSN(START + 4))
    assert part.with_name(part.name + ".damaged").read_bytes() == data


def test_damage_in_the_middle_shows_when_it_is_read(tmp_path: Path) -> None:
    spool = _begun(tmp_path)
    _append(spool, os.urandom(SEGMENT + 10))
    spool.close()
    part = min((tmp_path / "wal").iterdir())
    data = bytearray(part.read_bytes())
    data[5000] ^= 1
    part.write_bytes(data)

    again = _open(tmp_path)

    with pytest.raises(DamageError):
        _content(again, again.segments()[0])
    again.set_aside(again.segments()[0])
    assert [segment.start for segment in again.segments()] == [START + SEGMENT]
    assert part.with_name(part.name + ".damaged").exists()


def test_a_segment_leaves_with_its_files_and_the_newest_one_stays(tmp_path: Path) -> None:
    spool = _begun(tmp_path)
    _append(spool, bytes(2 * SEGMENT))
    spool.sync()

    spool.release(Position(1, LSN(START + 2 * SEGMENT)))

    assert [segment.start for segment in spool.segments()] == [START + SEGMENT]
    assert spool.size == sum(path.stat().st_size for path in (tmp_path / "wal").iterdir())
    assert _open(tmp_path).position == Position(1, LSN(START + 2 * SEGMENT))


def test_nothing_leaves_before_it_is_shipped(tmp_path: Path) -> None:
    spool = _begun(tmp_path)
    _append(spool, bytes(2 * SEGMENT + 5))
    spool.sync()

    spool.release(Position(1, LSN(START + SEGMENT - 1)))

    assert len(spool.segments()) == 3


def test_a_new_timeline_begins_beside_the_old_one_and_closes_it(tmp_path: Path) -> None:
    spool = _begun(tmp_path)
    _append(spool, b"old timeline, longer")
    spool.begin(Position(2, START))
    _append(spool, b"old time")
    _append(spool, b"new")
    spool.close()

    for view in (spool, _open(tmp_path)):
        found = view.segments()
        assert [(s.timeline, s.closed, _content(view, s)) for s in found] == [
            (1, True, b"old timeline, longer"),
            (2, False, b"old timenew"),
        ]
        assert view.position == Position(2, LSN(START + 11))


def test_an_interrupted_begin_goes_on_at_the_old_end(tmp_path: Path) -> None:
    """Nothing of the new timeline was received: the next run decides anew."""
    spool = _begun(tmp_path)
    _append(spool, b"old")
    spool.begin(Position(2, START))

    assert _open(tmp_path).position == Position(1, LSN(START + 3))


def test_wal_that_does_not_follow_is_refused(tmp_path: Path) -> None:
    spool = _begun(tmp_path)

    with pytest.raises(ValueError, match="does not follow"):
        spool.append(LSN(START + 8), [memoryview(b"gap")])


def test_after_a_failed_fsync_only_what_was_durable_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may have dropped the pages and say that all is well the next time."""
    spool = _begun(tmp_path)
    _append(spool, b"durable")
    spool.sync()
    _append(spool, b"doubtful")

    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(StoreError, match="Input/output error"):
            spool.sync()
    spool.rollback()

    assert spool.position == spool.durable == Position(1, LSN(START + 7))
    _append(spool, b" again")
    spool.close()
    again = _open(tmp_path)
    assert [_content(again, segment) for segment in again.segments()] == [b"durable again"]


def test_a_tail_that_cannot_even_be_cut_off_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = _begun(tmp_path)
    _append(spool, b"durable")
    spool.sync()
    _append(spool, b"doubtful")

    def fail(_descriptor: int, _size: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(StoreError):
            spool.rollback()

    assert spool.position == Position(1, LSN(START + 7))
    _append(spool, b" again")
    spool.close()
    again = _open(tmp_path)
    assert again.damage == []
    assert [_content(again, segment) for segment in again.segments()] == [b"durable again"]


def test_after_a_write_that_did_not_fit_receiving_goes_on_at_the_durable_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = _begun(tmp_path)

    def fail(_descriptor: int, _data: bytes, _offset: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with pytest.raises(StoreError, match="No space left"):
            _append(spool, b"too much")
    spool.rollback()

    assert spool.position == Position(1, START)
    _append(spool, b"fits")
    spool.sync()
    assert [_content(spool, segment) for segment in spool.segments()] == [b"fits"]


def test_history_files_stay(tmp_path: Path) -> None:
    spool = _begun(tmp_path)
    spool.add_history(2, b"1\t0/3000000\tno recovery target specified\n")
    spool.add_history(2, b"1\t0/3000000\tno recovery target specified\n")

    assert _open(tmp_path).histories == {2: b"1\t0/3000000\tno recovery target specified\n"}


def test_no_plain_byte_rests_in_an_encrypted_spool(tmp_path: Path) -> None:
    spool = _begun(tmp_path)
    _append(spool, b"the secret of all secrets" * 100)
    spool.add_history(2, b"1\t0/3000000\tbefore the secret of all secrets\n")
    spool.close()

    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]

    assert len(files) == 2
    assert not any(b"secret" in data for data in files)


class TestKeys:
    """Whose the spool is, and who opens it."""

    KEY, OTHER = KeyFile(bytes(range(32))), KeyFile(bytes(32))

    def _repository(self, place: Path, secret: KeyFile | None) -> Repository:
        return Repository.create(open_store(str(place)), secret)

    def test_each_configured_secret_opens_it_without_any_repository(self, tmp_path: Path) -> None:
        word = Passphrase("correct horse")
        for secret in (self.KEY, word):
            keys = create_spool_keys(tmp_path, IDENTITY, {"a": self.KEY, "b": word, "c": None}, {})
            found = open_spool_keys(tmp_path, {"x": secret}, {})
            assert found == (IDENTITY, keys)

    def test_a_secret_that_is_configured_no_longer_does_not_open_it(self, tmp_path: Path) -> None:
        repository = self._repository(tmp_path / "main", self.KEY)
        create_spool_keys(tmp_path, IDENTITY, {"main": self.KEY}, {"main": repository})
        open_spool_keys(tmp_path, {"main": self.OTHER}, {"main": repository})

        with pytest.raises(KeyFailure):
            open_spool_keys(tmp_path, {"main": self.KEY}, {})

    def test_a_repository_opens_it_after_its_key_file_was_changed(self, tmp_path: Path) -> None:
        repository = self._repository(tmp_path / "main", self.KEY)
        keys = create_spool_keys(tmp_path, IDENTITY, {"main": self.KEY}, {"main": repository})

        found = open_spool_keys(tmp_path, {"main": self.OTHER}, {"main": repository})

        assert found == (IDENTITY, keys)
        assert open_spool_keys(tmp_path, {"main": self.OTHER}, {}) == found

    def test_a_foreign_key_does_not_open_it(self, tmp_path: Path) -> None:
        create_spool_keys(tmp_path, IDENTITY, {"main": self.KEY}, {})

        with pytest.raises(KeyFailure):
            open_spool_keys(tmp_path, {"main": self.OTHER}, {})

    def test_its_key_is_not_written_in_plain(self, tmp_path: Path) -> None:
        keys = create_spool_keys(tmp_path, IDENTITY, {"main": self.KEY}, {})

        assert keys.root_key.hex() not in (tmp_path / "spool.json").read_text()

    def test_a_plain_spool_is_refused_once_a_repository_is_encrypted(self, tmp_path: Path) -> None:
        create_spool_keys(tmp_path, IDENTITY, {"main": None}, {})

        with pytest.raises(ConfigError, match="not encrypted"):
            open_spool_keys(tmp_path, {"main": self.KEY}, {})

    def test_where_nothing_is_there_is_no_spool(self, tmp_path: Path) -> None:
        assert open_spool_keys(tmp_path, {"main": self.KEY}, {}) is None

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2}'])
    def test_a_damaged_record_is_told(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "spool.json").write_text(text)

        with pytest.raises(DamageError):
            open_spool_keys(tmp_path, {"main": self.KEY}, {})

    def test_one_receiver_at_a_time_holds_the_directory(self, tmp_path: Path) -> None:
        spool = tmp_path / "deep" / "spool"
        with lock_spool(spool), pytest.raises(BusyError), lock_spool(spool):
            pass
        with lock_spool(spool):
            assert stat.S_IMODE(spool.stat().st_mode) == 0o700
