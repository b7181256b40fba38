"""Repositories with backups and WAL of many weeks, made in a moment: manifests of no files, WAL objects of a few bytes."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeep.postgres.timeline import TimelineHistory, format_history, history_name
from pgkeep.postgres.wal import parse_segment_name, segment_name, segments_between
from pgkeep.repository import Repository, open_store
from pgkeep.repository.manifests import BackupName, WalRange
from pgkeep.wal.times_groups import GROUP_SEGMENTS
from support.jobs import KEY, new_repository
from support.manifests import plain_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgkeep.repository.store import ObjectInfo

__all__ = ["DAY", "HOUR", "NOW", "SIZE", "SYSTEM", "KeptRepository", "lsn_at"]

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SIZE = 1 << 20
"""A WAL segment, of which these clusters write one in an hour."""
SYSTEM = 7123
_BIRTH = NOW - 2000 * DAY


def lsn_at(moment: datetime) -> int:
    """Where the WAL is at a moment."""
    return SIZE + int((moment - _BIRTH) / HOUR * SIZE)


@dataclass
class KeptRepository:
    """A repository in a directory, whose objects' times are those that its story tells."""

    directory: Path
    repository: Repository = field(init=False)

    def __post_init__(self) -> None:
        exists = self.directory.exists()
        self.repository = (
            Repository.open(open_store(str(self.directory)), KEY) if exists else new_repository(self.directory)
        )

    def copy(self, directory: Path) -> KeptRepository:
        """The same once more; objects never change, so they share their files."""
        shutil.copytree(self.directory, directory, copy_function=os.link)
        return KeptRepository(directory)

    def backup(self, started: datetime, *, stored: datetime | None = None, **fields: object) -> str:
        """Commit a backup that took ten minutes; returns its id."""
        finished = started + timedelta(minutes=10)
        start, stop = lsn_at(started), lsn_at(finished)
        timeline = int(str(fields.get("timeline", 1)))
        names = segments_between(timeline, start, stop, SIZE)
        manifest = plain_manifest(
            **{
                "id": f"{started:%Y%m%dT%H%M%S}.000Z-00000000",
                "cluster": "auth",
                "system_identifier": SYSTEM,
                "started": started,
                "finished": finished,
                "start_lsn": start,
                "stop_lsn": stop,
                "wal": WalRange(timeline, start, stop, SIZE, names, 0),
                **fields,
            }
        )
        self.repository.catalog.commit(manifest)
        self._date(BackupName(manifest.id, manifest.system_identifier).object_name, stored or finished)
        return manifest.id

    def wal(self, since: datetime, until: datetime, timeline: int = 1, system: int = SYSTEM) -> None:
        """WAL from one moment to another, with its index of times."""
        prefix = f"clusters/{system}/"
        for name in segments_between(timeline, lsn_at(since), lsn_at(until), SIZE):
            _, start = parse_segment_name(name, SIZE)
            came = _BIRTH + start // SIZE * HOUR
            places = [f"{prefix}wal/{name[:8]}/{name[8:16]}/{name}"]
            if start % (GROUP_SEGMENTS * SIZE) == (GROUP_SEGMENTS - 1) * SIZE:
                group = segment_name(timeline, start - (GROUP_SEGMENTS - 1) * SIZE, SIZE)
                places.append(f"{prefix}times/{group[:8]}/{group[8:16]}/{group}")
            for place in places:
                self.repository.store.put(place, [b"WAL"])
                self._date(place, came)

    def history(self, history: TimelineHistory, came: datetime) -> None:
        """A timeline's history file."""
        archive = self.repository.wal(SYSTEM)
        name = history_name(history.timeline)
        archive.put(name, format_history(history).encode())
        self._date(archive.object_name(name), came)

    def segments(self, timeline: int = 1) -> set[int]:
        """The numbers of the WAL segments that are there, counted from LSN 0."""
        names = (info.name for info in self._list("wal", timeline))
        return {parse_segment_name(name.rpartition("/")[2], SIZE)[1] // SIZE for name in names if "history" not in name}

    def groups(self, timeline: int = 1) -> set[int]:
        """The same of the index of times, by each group's first segment."""
        names = (info.name.rpartition("/")[2] for info in self._list("times", timeline))
        return {parse_segment_name(name, SIZE)[1] // SIZE for name in names}

    def ids(self) -> list[str]:
        """The backups that are there."""
        return [name.id for name in self.repository.catalog.names()]

    def damage(self, name: str) -> None:
        """Cut an object's last byte off."""
        path = self.directory / name
        data, came = path.read_bytes(), path.stat().st_mtime
        # not in place: copies share the file
        path.unlink()
        path.write_bytes(data[:-1])
        os.utime(path, (came, came))

    def expect_sound(self) -> None:
        """Every backup has its WAL, from start to stop."""
        for manifest in self.repository.catalog.read_all():
            there = {name for name, _ in self.repository.wal(manifest.system_identifier).names(manifest.timeline)}
            assert set(manifest.wal.segments) <= there, f"{manifest.id} lacks WAL"

    def _list(self, kind: str, timeline: int) -> Iterator[ObjectInfo]:
        yield from self.repository.store.list(f"clusters/{SYSTEM}/{kind}/{timeline:08X}/")

    def _date(self, name: str, moment: datetime) -> None:
        os.utime(self.directory / name, (moment.timestamp(), moment.timestamp()))
