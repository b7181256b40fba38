from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pytest

from pgkeep.drill.record import (
    Check,
    DrillRecord,
    DrillTarget,
    Phase,
    decode_record,
    encode_record,
    new_drill_id,
    record_json,
)
from pgkeep.errors import DamageError

MOMENT = datetime(2026, 11, 23, 3, 4, 5, 678000, tzinfo=UTC)
NAME = "clusters/7/drills/20261123T030405.678Z-1f2e3d4c"


def record(**changes: object) -> DrillRecord:
    fields: dict[str, object] = {
        "id": "20261123T030405.678Z-1f2e3d4c",
        "cluster": "auth",
        "system_identifier": 7_591_823_001_234_567_891,
        "repository": "file:///backups",
        "started": MOMENT,
        "ended": MOMENT,
        "state": "passed",
        "asked_by": "operator",
        "target": DrillTarget(how="random", asked="random", kind="time", value=MOMENT.isoformat(), time=MOMENT),
        "phases": [Phase(name="write", seconds=1.5, bytes=8192)],
        "checks": [Check(name="all tables", kind="tables", outcome="passed", detail="12 tables")],
        **changes,
    }
    return DrillRecord(**fields)  # type: ignore[arg-type]


def test_a_record_reads_back_as_it_was_written() -> None:
    assert decode_record(encode_record(record()), NAME) == record()


def test_a_record_with_fields_of_a_later_version_is_still_read() -> None:
    fields = msgspec.msgpack.decode(encode_record(record()))
    later = msgspec.msgpack.encode({**fields, "weather": "rain"})

    assert decode_record(later, NAME) == record()


def test_a_record_that_is_cut_is_damage_and_names_its_object() -> None:
    with pytest.raises(DamageError, match="drills/20261123T030405") as error:
        decode_record(encode_record(record())[:-1], NAME)
    assert error.value.object_name == NAME


def test_as_json_the_system_identifier_keeps_all_its_digits() -> None:
    document = json.loads(json.dumps(record_json(record())))

    assert document["system_identifier"] == "7591823001234567891"
    assert document["started"] == "2026-11-23T03:04:05.678000Z"


def test_ids_sort_by_time() -> None:
    assert new_drill_id(MOMENT) < new_drill_id(MOMENT.replace(second=6))


def test_seconds_of_a_phase_that_was_not_reached_are_unknown() -> None:
    assert record().seconds_of("write") == 1.5
    assert record().seconds_of("replay") is None
