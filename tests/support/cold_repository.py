"""A repository whose backups are of any age, each of files of its own or of another's."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from pgkeep.backup.assembler import FileAssembler
from pgkeep.cold.needs import packs_of
from pgkeep.cold.plan import ColdPlan, KeptAt, make_cold_plan
from pgkeep.cold.prices import CLASSES
from pgkeep.cold.rto import ColdRule
from pgkeep.postgres.wal import segment_name
from pgkeep.progress import Silent
from pgkeep.receiver.frames import FileFacts
from pgkeep.repository import Repository, open_store
from pgkeep.repository.contents import Parameters
from pgkeep.repository.manifests import Manifest, WalRange
from support.jobs import KEY
from support.manifests import plain_manifest
from support.simulated_glacier import SimulatedClasses

__all__ = ["DAY", "NOW", "SEGMENT", "SYSTEM", "ColdRepository"]

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SEGMENT = 1 << 20
_LARGE = 200_000
SYSTEM = 7


@dataclass
class ColdRepository:
    """``files`` of a backup are numbers; each is a pack of its own where it is new, and shared where a backup had it before."""

    directory: Path
    repository: Repository = field(init=False)
    classes: SimulatedClasses = field(init=False)

    def __post_init__(self) -> None:
        parameters = Parameters(page_size=512, cell_size=256 << 10, pack_size=64 << 10)
        self.repository = Repository.create(open_store(str(self.directory)), KEY, parameters)
        self.classes = SimulatedClasses(self.repository.store)

    def backup(
        self,
        age: float,
        *files: int,
        size: int = _LARGE,
        system: int = SYSTEM,
        start: int = 0,
        wal: tuple[str, ...] = (),
    ) -> Manifest:
        """A backup that was finished so many days ago."""
        finished = NOW - age * DAY
        repository = self.repository
        with repository.writer() as writer, FileAssembler(writer, repository.parameters, jobs=1) as assembler:
            for number in files:
                data = random.Random(number).randbytes(size)
                assembler.begin(FileFacts(b"base/5/%d" % number, len(data), 0o600, 0))
                assembler.cell(data.__bytes__, len(data))
                assembler.end()
            assembler.drain()
            tree, count = list(assembler.tree()), assembler.files
        manifest = plain_manifest(
            id=f"{finished:%Y%m%dT%H%M%S}.000Z-{system:08x}",
            cluster=f"cluster{system}",
            system_identifier=system,
            started=finished,
            finished=finished,
            start_lsn=start or int((finished - NOW + 1000 * DAY) / DAY * SEGMENT) // SEGMENT * SEGMENT,
            page_size=512,
            block_size=512,
            directories=tree,
            files=count,
            wal=WalRange(1, 0, 0, SEGMENT, list(wal), 0),
        )
        manifest = msgspec.structs.replace(manifest, stop_lsn=manifest.start_lsn + 100)
        repository.catalog.commit(manifest)
        return manifest

    def packs(self, manifest: Manifest) -> set[str]:
        """Of a backup."""
        return packs_of(self.repository, manifest)

    def wal(self, number: int, age: float, size: int = _LARGE) -> str:
        """A segment of timeline 1 that came so many days ago; the object's name."""
        name = self.repository.wal(SYSTEM).object_name(segment_name(1, number * SEGMENT, SEGMENT))
        self.repository.store.put(name, [random.Random(number).randbytes(size)])
        self.date(name, age)
        return name

    def times(self, group: int) -> None:
        """The index of the times of the group that begins with a segment."""
        name = segment_name(1, group * SEGMENT, SEGMENT)
        self.repository.store.put(f"clusters/{SYSTEM}/times/{name[:8]}/{name[8:16]}/{name}", [b"times"])

    def date(self, name: str, age: float) -> None:
        """When an object came."""
        moment = (NOW - age * DAY).timestamp()
        os.utime(self.directory / name, (moment, moment))

    def plan(self, *rules: tuple[float, str], kept_at: KeptAt | None = None) -> ColdPlan:
        """By rules of days and classes."""
        return make_cold_plan(
            self.repository,
            self.classes,
            [ColdRule(days * 86400, name) for days, name in rules],
            CLASSES[self.classes.scheme],
            NOW,
            Silent(),
            kept_at,
        )

    def moved(self, plan: ColdPlan) -> dict[str, set[str]]:
        """Classes, and the names that go there."""
        return {name: {info.name for info in infos} for name, infos in plan.moves.items()}
