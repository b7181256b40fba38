"""``pgkeep restore --in-place``: its options, put together and handed on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pgkeep.cli.target_options import open_repositories
from pgkeep.errors import UsageError

if TYPE_CHECKING:
    from pgkeep.cli.options import Context
    from pgkeep.cli.repositories import Chosen
    from pgkeep.cli.target_options import AskedTarget
    from pgkeep.config import Cluster
    from pgkeep.restore.in_place_plan import InPlaceRequest
    from pgkeep.restore.target import RecoveryTarget

__all__ = ["InPlaceOptions"]


@dataclass(frozen=True, kw_only=True)
class InPlaceOptions:
    """What a command line says of a restore in place."""

    asked: AskedTarget
    backup: str | None = None
    tablespaces: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    carry: list[str] = field(default_factory=list)
    carry_until: str | None = None
    work_directory: str | None = None
    jobs: int | None = None
    rollback: bool = True

    def given(self) -> list[str]:
        """The options that were given."""
        others = (
            ("BACKUP", self.backup is not None),
            ("--tablespace", self.tablespaces),
            ("--set", self.settings),
            ("--carry", self.carry),
            ("--carry-until", self.carry_until is not None),
            ("--work-dir", self.work_directory is not None),
            ("--jobs", self.jobs is not None),
            ("--no-rollback", not self.rollback),
        )
        return [*self.asked.options(), *(name for name, given in others if given)]

    def restore(self, context: Context, chosen: Chosen, *, plan_only: bool) -> None:
        """Plan, or do it, and show what came of it."""
        from pgkeep.cli.in_place_output import show_in_place, show_in_place_plan
        from pgkeep.restore.in_place import plan_in_place, run_in_place

        cluster = _cluster(context, chosen)
        request = self._request(cluster)
        repositories = open_repositories(context, chosen)
        if plan_only:
            show_in_place_plan(context, plan_in_place(request, cluster, repositories))
            return
        with context.progress() as progress:
            outcome = run_in_place(request, cluster, repositories, progress)
        show_in_place(context, outcome)

    def undo(self, context: Context, chosen: Chosen, *, plan_only: bool) -> None:
        """Put back what the last restore in place set aside. Needs no repository."""
        from pgkeep.cli.in_place_output import show_undo, show_undo_plan
        from pgkeep.restore.undo import plan_undo, run_undo

        cluster = _cluster(context, chosen)
        if plan_only:
            show_undo_plan(context, plan_undo(cluster))
            return
        with context.progress() as progress:
            outcome = run_undo(cluster, progress)
        show_undo(context, outcome)

    def _request(self, cluster: Cluster) -> InPlaceRequest:
        from pgkeep.restore.in_place_plan import InPlaceRequest

        if not self.carry:
            for name, value in (("--carry-until", self.carry_until), ("--work-dir", self.work_directory)):
                if value is not None:
                    raise UsageError(f"{name} goes with --carry", hint="name the table: --carry TABLE")
        return InPlaceRequest(
            cluster=cluster.name,
            backup=self.backup,
            recovery=self.asked.target(cluster.time_zone, backup_is_named=self.backup is not None),
            tablespaces=self.tablespaces,
            settings=self.settings,
            carry=self.carry,
            carry_until=None if self.carry_until is None else _time_or_lsn(self.carry_until, cluster.time_zone),
            work_directory=self.work_directory,
            jobs=self.jobs,
            rollback=self.rollback,
            written=" ".join(word for word in (self.asked.written, self.carry_until) if word),
        )


def _time_or_lsn(text: str, zone: str | None) -> RecoveryTarget:
    from pgkeep.restore.target import target_lsn, target_time

    return target_lsn(text) if "/" in text and ":" not in text else target_time(text, zone)


def _cluster(context: Context, chosen: Chosen) -> Cluster:
    """The server's own settings are needed, wherever the repository is named."""
    return context.config().cluster(chosen.cluster)
