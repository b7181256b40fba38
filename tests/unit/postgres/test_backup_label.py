from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import DamageError
from pgkeep.postgres.backup_label import (
    BackupLabel,
    format_tablespace_map,
    parse_backup_label,
    parse_tablespace_map,
    strip_incremental_lines,
)
from pgkeep.postgres.lsn import LSN

FULL = b"""START WAL LOCATION: 0/A000028 (file 00000002000000000000000A)
CHECKPOINT LOCATION: 0/A000060
BACKUP METHOD: streamed
BACKUP FROM: standby
START TIME: 2026-11-23 02:14:07 UTC
LABEL: nightly: all of it
START TIMELINE: 2
"""
INCREMENTAL = FULL + b"INCREMENTAL FROM LSN: 0/9000028\nINCREMENTAL FROM TLI: 1\n"


def test_all_fields_are_read() -> None:
    assert parse_backup_label(FULL) == BackupLabel(
        start_lsn=LSN.parse("0/A000028"),
        start_segment="00000002000000000000000A",
        checkpoint=LSN.parse("0/A000060"),
        backup_method="streamed",
        backup_from="standby",
        start_time="2026-11-23 02:14:07 UTC",
        label="nightly: all of it",
        start_timeline=2,
    )


def test_an_incremental_backup_says_what_it_rests_on() -> None:
    label = parse_backup_label(INCREMENTAL)
    assert (label.incremental_from_lsn, label.incremental_from_timeline) == (LSN.parse("0/9000028"), 1)


def test_the_incremental_lines_are_stripped_and_no_other_byte() -> None:
    assert strip_incremental_lines(INCREMENTAL) == FULL
    assert strip_incremental_lines(FULL) == FULL


def test_a_label_in_another_encoding_does_no_harm() -> None:
    assert parse_backup_label(FULL.replace(b"nightly", b"caf\xe9")).label == "caf\udce9: all of it"


@pytest.mark.parametrize(
    "line",
    [
        "START WAL LOCATION",
        "CHECKPOINT LOCATION",
        "BACKUP METHOD",
        "BACKUP FROM",
        "START TIME",
        "LABEL",
        "START TIMELINE",
    ],
)
def test_a_missing_line_is_named(line: str) -> None:
    lines = [kept for kept in FULL.splitlines(keepends=True) if not kept.startswith(f"{line}:".encode())]
    with pytest.raises(DamageError, match=f"no line {line}"):
        parse_backup_label(b"".join(lines))


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"(file 0", b"(file x"), (b"0/A000060", b"nowhere"), (b"TIMELINE: 2", b"TIMELINE: two"), (b"0/A000028 ", b"0 ")],
)
def test_an_unreadable_line_is_damage(old: bytes, new: bytes) -> None:
    with pytest.raises(DamageError, match="unreadable line"):
        parse_backup_label(FULL.replace(old, new))


LOCATIONS = st.binary(min_size=1, max_size=30).filter(lambda location: b"\0" not in location)


@given(st.dictionaries(st.integers(1, (1 << 32) - 1), LOCATIONS, max_size=4))
def test_tablespaces_that_are_written_are_read_back(tablespaces: dict[int, bytes]) -> None:
    assert parse_tablespace_map(format_tablespace_map(tablespaces.items())) == tablespaces


@pytest.mark.parametrize(
    ("data", "tablespaces"),
    [
        (b"", {}),
        (b"16384 /srv/fast\n16385 /srv/my disk\n", {16384: b"/srv/fast", 16385: b"/srv/my disk"}),
        (b"16384 /a\\\nb\\\\c\\\rd\n", {16384: b"/a\nb\\c\rd"}),
        (b"16384 /srv/fast\r\n", {16384: b"/srv/fast"}),
    ],
    ids=["empty", "two", "escapes", "crlf"],
)
def test_a_tablespace_map_is_read_by_the_servers_rules(data: bytes, tablespaces: dict[int, bytes]) -> None:
    assert parse_tablespace_map(data) == tablespaces


@pytest.mark.parametrize("data", [b"16384 /srv", b"16384\n", b"16384 \n", b"fast /srv\n", b" /srv\n", b"16384 /srv\\"])
def test_a_tablespace_map_that_cannot_be_is_damage(data: bytes) -> None:
    with pytest.raises(DamageError, match="no tablespace"):
        parse_tablespace_map(data)
