from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgkeep.errors import DamageError
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.records import read_record, write_record
from pgkeep.repository.store import ObjectExists, ObjectMissing

FIELDS: dict[str, object] = {"b": 1, "a": 'ž\n"\x7f😀', "list": [1, "x", None], "nested": {"z": True, "y": -5}}

reuse_fixtures = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def overwrite(store: PosixStore, data: bytes) -> None:
    store.root.mkdir(exist_ok=True)
    (store.root / "r.json").unlink(missing_ok=True)
    (store.root / "r.json").write_bytes(data)


def test_a_record_is_one_line_of_canonical_json_with_its_check(store: PosixStore) -> None:
    write_record(store, "r.json", {"b": 1, "a": "é"})
    plain = '{"a":"\\u00e9","b":1}'
    check = hashlib.sha256(plain.encode()).hexdigest()
    assert store.get("r.json").decode() == plain[:-1] + f',"check":"{check}"}}\n'
    assert read_record(store, "r.json") == {"b": 1, "a": "é"}


def test_a_record_is_never_replaced_and_may_be_missing(store: PosixStore) -> None:
    with pytest.raises(ObjectMissing):
        read_record(store, "r.json")
    write_record(store, "r.json", FIELDS)
    with pytest.raises(ObjectExists):
        write_record(store, "r.json", {})
    assert read_record(store, "r.json") == FIELDS


def test_any_changed_byte_is_damage(store: PosixStore) -> None:
    write_record(store, "r.json", FIELDS)
    data = store.get("r.json")
    for position in range(len(data)):
        for value in {data[position] ^ 1, data[position] ^ 0x20, 0x20, 0x30, 0x80, 0} - {data[position]}:
            overwrite(store, data[:position] + bytes([value]) + data[position + 1 :])
            with pytest.raises(DamageError) as caught:
                read_record(store, "r.json")
            assert caught.value.object_name == "r.json"


def test_a_record_that_is_cut_off_or_has_more_is_damage(store: PosixStore) -> None:
    write_record(store, "r.json", FIELDS)
    data = store.get("r.json")
    for changed in [*(data[:length] for length in range(len(data))), data + b"\n", data + data, b" " + data]:
        overwrite(store, changed)
        with pytest.raises(DamageError, match=r"r\.json is damaged"):
            read_record(store, "r.json")


@reuse_fixtures
@given(
    data=st.one_of(
        st.binary(),
        st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda value: json.dumps(value).encode()),
    )
)
def test_whatever_else_stands_there_is_damage(store: PosixStore, data: bytes) -> None:
    overwrite(store, data)
    with pytest.raises(DamageError):
        read_record(store, "r.json")
