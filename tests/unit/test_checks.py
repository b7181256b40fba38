"""What checks make of facts that no server at hand shows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pgkeep import checks
from pgkeep.checks import Finding, check_repository, first_failure, raise_first_failure
from pgkeep.config import KeyReference, RepositorySettings
from pgkeep.errors import ConfigError, RepositoryError, ServerSettingError, StoreError
from pgkeep.postgres.facts import ServerFacts, server_facts
from pgkeep.repository import Repository, open_store
from pgkeep.repository.posix import PosixStore

if TYPE_CHECKING:
    from pathlib import Path

FACTS = ServerFacts(
    version_num=180006,
    system_identifier=7,
    timeline=1,
    in_recovery=False,
    wal_level="replica",
    max_wal_senders=10,
    wal_senders_in_use=0,
    max_replication_slots=10,
    wal_segment_size=16 << 20,
    block_size=8192,
    segment_size=1 << 30,
    data_checksums=True,
    archive_mode="off",
    full_page_writes=True,
    fsync=True,
    summarize_wal=False,
    server_encoding="UTF8",
    data_directory="/data",
    config_files_outside=(),
    role="keeper",
    role_replication=True,
    role_superuser=False,
    size=1000 << 20,
    tablespaces=(),
)


@pytest.mark.parametrize(
    ("version_num", "status"),
    [
        (150020, "ok"),
        (160001, "ok"),
        (170010, "warning"),
        (170011, "ok"),
        (180004, "warning"),
        (180005, "ok"),
        (190000, "warning"),
    ],
)
def test_versions_with_the_visibility_map_fault_and_unknown_ones_are_named(version_num: int, status: str) -> None:
    assert checks._version(replace(FACTS, version_num=version_num)).status == status


def test_a_server_that_is_too_old_is_refused() -> None:
    class OldServer:
        server_version = 140012

    with pytest.raises(ServerSettingError, match="PostgreSQL 14, and 15 is the oldest"):
        server_facts(OldServer(), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("total", "used", "status"),
    [(10, 8, "ok"), (10, 9, "failed"), (2, 0, "ok"), (1, None, "failed"), (10, None, "unknown")],
)
def test_two_wal_senders_must_be_free(total: int, used: int | None, status: str) -> None:
    assert checks._wal_senders(replace(FACTS, max_wal_senders=total, wal_senders_in_use=used)).status == status


@pytest.mark.parametrize(
    ("free", "status"), [(2000, "ok"), (1000, "ok"), (999, "warning"), (250, "warning"), (249, "failed")]
)
def test_the_room_must_hold_the_first_backup(
    free: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RepositorySettings(name="main", url=str(tmp_path / "store"), key=KeyReference(kind="none"))
    Repository.create(open_store(settings.url), None)
    monkeypatch.setattr(PosixStore, "free_bytes", lambda _store: free << 20)
    opens, room, *_ = check_repository(settings, FACTS)
    assert (opens.status, room.status) == ("ok", status)
    assert check_repository(settings, replace(FACTS, size=None))[1].status == "unknown"


def test_a_repository_that_is_not_there_fails(tmp_path: Path) -> None:
    settings = RepositorySettings(name="main", url=str(tmp_path / "store"), key=KeyReference(kind="none"))
    (found,) = check_repository(settings, FACTS)
    assert (found.status, type(found.error)) == ("failed", RepositoryError)


def test_the_gate_raises_the_first_failure() -> None:
    failures = [Finding("a", "failed", "a", error=StoreError("a")), Finding("b", "failed", "b", error=ConfigError("b"))]
    with pytest.raises(StoreError):
        raise_first_failure([Finding("c", "warning", "c"), *failures])
    assert first_failure([Finding("c", "warning", "c")]) is None
