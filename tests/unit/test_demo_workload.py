"""The demo's rows follow from the seed, and have the entropy of real ones."""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from pgkeep.demo import rows, schema
from pgkeep.demo.workload import _chunks, _lines

USERS = 5_000


def lines(table: str, seed: int = 1) -> list[str]:
    return [line for chunk in _chunks(USERS) if chunk[0] == table for line in _lines(seed, USERS, *chunk)]


@pytest.mark.parametrize("table", schema.TABLE_NAMES)
def test_the_same_seed_gives_the_same_rows_and_another_seed_other_ones(table: str) -> None:
    assert lines(table) == lines(table)
    assert not set(lines(table)) & set(lines(table, seed=2))


@pytest.mark.parametrize(
    ("table", "count", "columns"),
    [
        ("users", USERS, 12),
        ("platform_accounts", USERS, 7),
        ("token_blacklist", 2 * USERS, 6),
        ("audit_logs", 12 * USERS, 8),
    ],
)
def test_every_table_gets_its_share_of_rows_with_all_columns(table: str, count: int, columns: int) -> None:
    found = lines(table)

    assert len(found) == count
    assert {line.count("\t") + 1 for line in found} == {columns}
    assert all(line.endswith("\n") for line in found)


def test_the_chunks_cover_every_row_once() -> None:
    users = 45_001

    numbers = [number for table, first, end in _chunks(users) if table == "users" for number in range(first, end)]

    assert numbers == list(range(1, users + 1))


def test_audit_details_are_json_with_the_address_of_the_row() -> None:
    for line in lines("audit_logs")[:500]:
        columns = line.rstrip("\n").split("\t")
        details = json.loads(columns[6])
        assert details["ip"] == columns[4] == str(ip_address(columns[4]))


@pytest.mark.parametrize("table", schema.TABLE_NAMES)
def test_rows_compress_like_real_ones(table: str) -> None:
    text = "".join(lines(table)).encode()

    ratio = len(text) / len(zlib.compress(text, 1))

    assert 1.4 < ratio < 5


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (rows.password_hash, r"\$argon2id\$v=19\$m=65536,t=3,p=4\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}"),
        (rows.display_name, r"[가-힣]{3}|[a-z]+_\d{1,4}"),
        (rows.user_agent, r"(Mozilla/5\.0 |UnityPlayer/|AuthSdk/)[ -~]+"),
    ],
)
def test_values_look_like_what_they_are(make: Callable[[random.Random], str], pattern: str) -> None:
    source = random.Random(1)

    assert all(re.fullmatch(pattern, make(source)) for _ in range(200))
