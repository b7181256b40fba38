"""The tree of errors: exit codes, hints, and the table that tells them to scripts."""

from __future__ import annotations

import pickle
import re
import signal

import pytest

from pgkeep import errors
from pgkeep.errors import DamageError, Interrupted, PgkeepError

CLASSES = [getattr(errors, name) for name in errors.__all__]
# "├── UsageError         2   the command line ..."
_ROW = re.compile(r"^[\s│├└─]*([A-Z]\w+)\s+(\d+)\s", re.MULTILINE)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_one_of_ours(kind: type[PgkeepError]) -> None:
    assert issubclass(kind, PgkeepError)


def test_no_two_errors_share_an_exit_code() -> None:
    codes = [kind.exit_code for kind in CLASSES]

    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", CLASSES)
def test_an_exit_code_means_failure_and_fits_a_process(kind: type[PgkeepError]) -> None:
    assert 1 <= kind.exit_code <= 255


def test_the_module_tells_every_error_and_its_exit_code() -> None:
    told = {name: int(code) for name, code in _ROW.findall(errors.__doc__ or "")}

    assert told == {kind.__name__: kind.exit_code for kind in CLASSES}


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_crosses_processes_with_its_hint(kind: type[PgkeepError]) -> None:
    error = kind("the disk is full", hint="make room")

    copy = pickle.loads(pickle.dumps(error))

    assert (type(copy), str(copy), copy.hint, copy.exit_code) == (
        kind,
        "the disk is full",
        "make room",
        error.exit_code,
    )


def test_damage_keeps_what_is_damaged_across_processes() -> None:
    copy = pickle.loads(pickle.dumps(DamageError("bad", object_name="packs/data/ab/cd", path="base/5/1259")))

    assert (copy.object_name, copy.path) == ("packs/data/ab/cd", "base/5/1259")


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_exits_as_its_signal_would(number: signal.Signals, exit_code: int) -> None:
    assert Interrupted(signal_number=number).exit_code == exit_code


def test_an_interruption_keeps_its_signal_across_processes() -> None:
    assert pickle.loads(pickle.dumps(Interrupted(signal_number=signal.SIGTERM))).exit_code == 143


def test_an_error_without_a_hint_has_none() -> None:
    assert PgkeepError("something").hint is None
