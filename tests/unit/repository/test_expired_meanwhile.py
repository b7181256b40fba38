"""Backups that expire between a listing and the reading of what it named: jobs go on with the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgkeep.backup import everywhere, incremental
from pgkeep.copies.walk import find_common
from pgkeep.repository.manifests import BackupName, Catalog, Manifest
from pgkeep.repository.parameters import Parameters
from pgkeep.verify import VerifyRequest, run_verify
from support.jobs import new_repository
from support.tiny_backups import make_backup, page

if TYPE_CHECKING:
    from pathlib import Path

    from pgkeep.repository import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return new_repository(tmp_path / "repository", Parameters(pack_size=40_000))


@pytest.fixture
def manifest(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """The one backup that is there; a newer one and an older one are in every listing, and gone."""
    made = make_backup(repository, 1, {b"a": page("a")})
    gone = [BackupName(f"{year}0101T030000.000Z-00000000", 1) for year in (2001, 2091)]
    monkeypatch.setattr(Catalog, "names", lambda _: sorted([*gone, BackupName(made.id, 1)]))
    return made


def test_the_next_backup_has_the_newest_that_is_there_for_its_parent(
    repository: Repository, manifest: Manifest
) -> None:
    damaged: list[str] = []
    assert [each.id for each in incremental._backups(repository, 1, "c1", damaged)] == [manifest.id]
    assert damaged == []
    assert everywhere._newest(repository, "c1") == manifest.id


def test_a_copy_finds_nothing_that_both_have(repository: Repository, manifest: Manifest) -> None:
    assert find_common(repository, repository, manifest) is None


def test_a_verification_finds_no_damage_in_what_is_gone(repository: Repository, manifest: Manifest) -> None:
    report = run_verify(VerifyRequest(scrub=False), repository.store, repository)
    assert report.backups == [manifest.id]
    assert not [damage for damage in report.damage if "/backups/" in str(damage.object_name)]
