"""What is taken from the log of a recovering server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgkeep.restore.server_log import RecoveryLog

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("lines", "failure"),
    [
        (
            [
                'LOG:  invalid value for parameter "lc_messages": "ko_KR.UTF-8"',
                'LOG:  invalid value for parameter "lc_time": "ko_KR.UTF-8"',
                'FATAL:  configuration file "/data/postgresql.conf" contains errors',
            ],
            'configuration file "/data/postgresql.conf" contains errors: invalid value for parameter "lc_time": "ko_KR.UTF-8"',
        ),
        (["LOG:  redo starts at 0/1000028", "PANIC:  could not locate a valid checkpoint record"],
         "could not locate a valid checkpoint record"),
        (["FATAL:  the database system is starting up", "FATAL:  first", "FATAL:  second"], "first"),
        (["LOG:  database system is shut down"], None),
    ],
)  # fmt: skip
def test_why_a_server_ended_is_in_its_own_words(tmp_path: Path, lines: list[str], failure: str | None) -> None:
    path = tmp_path / "log"
    path.write_text("of an earlier start\nFATAL:  earlier\n")
    log = RecoveryLog(path, path.stat().st_size)
    with path.open("a") as file:
        for line in lines:
            # a line may be read in two pieces
            file.write(line[:20])
            file.flush()
            log.read()
            file.write(line[20:] + "\n")
            file.flush()
            log.read()
    assert log.failure == failure
