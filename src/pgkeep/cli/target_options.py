"""The options that say where a recovery is to stop, for every command that recovers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pgkeep.errors import ConfigError, PgkeepError, UsageError

if TYPE_CHECKING:
    from pgkeep.cli.options import Context
    from pgkeep.cli.repositories import Chosen
    from pgkeep.config import Cluster
    from pgkeep.repository import Repository
    from pgkeep.restore.target import Action, RecoveryPlan, RecoveryTarget

__all__ = ["AskedTarget", "cluster_settings", "open_repositories", "recovery_document", "target_options"]


class AskedTarget:
    """What the target options of a command line say."""

    def __init__(
        self,
        *,
        values: dict[str, str],
        timeline: str | None = None,
        exclusive: bool = False,
        action: Action | None = None,
        standby: bool = False,
    ) -> None:
        self._values = values
        self._timeline = timeline
        self._exclusive = exclusive
        self._action: Action | None = action
        self._standby = standby

    def options(self) -> list[str]:
        """Those that were given."""
        others = (
            ("--timeline", self._timeline is not None),
            ("--exclusive", self._exclusive),
            ("--action", self._action is not None),
            ("--standby", self._standby),
        )
        return [*self._values, *(name for name, given in others if given)]

    @property
    def written(self) -> str:
        """The target as it stands on the command line, "5min ago" still being that."""
        return " ".join(f"{option} {value}".strip() for option, value in self._values.items())

    def target(self, zone: str | None, *, backup_is_named: bool = False) -> RecoveryTarget | None:
        """The target, or None where no option says anything; ``zone`` is that of times without one. Raises UsageError."""
        import msgspec

        from pgkeep.restore import target as targets

        if len(self._values) > 1:
            raise UsageError(f"{' and '.join(self._values)} are several targets", hint="name one of them")
        if not self.options():
            return None
        for option, value in self._values.items():
            made = {
                "--to": lambda: targets.target_time(value, zone),  # noqa: B023 - called at once
                "--to-lsn": lambda: targets.target_lsn(value),  # noqa: B023
                "--to-xid": lambda: targets.target_xid(value),  # noqa: B023
                "--to-name": lambda: targets.target_name(value),  # noqa: B023
                "--latest": lambda: targets.latest,
                "--immediate": lambda: targets.immediate,
            }[option]()
            break
        else:
            made = self._implied(backup_is_named=backup_is_named)
        if self._standby and self._action is not None:
            raise UsageError("--standby and --action contradict each other", hint="a standby's recovery does not end")
        return msgspec.structs.replace(
            made,
            timeline=None if self._timeline is None else targets.target_timeline(self._timeline),
            exclusive=self._exclusive,
            action=self._action or "promote",
            standby=self._standby,
        )

    def _implied(self, *, backup_is_named: bool) -> RecoveryTarget:
        from pgkeep.restore.target import immediate, latest

        if backup_is_named and (self._timeline is not None or self._standby):
            raise UsageError(
                f"{self.options()[0]} does not say how far to go", hint="add --latest, or a target like --to TIME"
            )
        return immediate if backup_is_named else latest


_TARGETS = {
    "to": "--to",
    "to_lsn": "--to-lsn",
    "to_xid": "--to-xid",
    "to_name": "--to-name",
    "latest": "--latest",
    "immediate": "--immediate",
}


def target_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--to`` and its kin; the function gets them as ``asked: AskedTarget``."""

    @click.option("--to", metavar="TIME", help='To this time: "2025-06-01 03:15:00+09", or "5min ago".')
    @click.option("--to-lsn", metavar="LSN", help="To this position of the WAL, its record included.")
    @click.option("--to-xid", metavar="XID", help="To the end of this transaction.")
    @click.option("--to-name", metavar="NAME", help="To this restore point.")
    @click.option("--latest", is_flag=True, help="To the end of the WAL. The default where no backup is named.")
    @click.option("--immediate", is_flag=True, help="To the end of the backup. The default where one is named.")
    @click.option(
        "--timeline", metavar="N|latest", help="Along this timeline. Default: the newest that has the target."
    )
    @click.option("--exclusive", is_flag=True, help="Stop just before the target, not just after.")
    @click.option(
        "--action",
        type=click.Choice(["promote", "pause", "shutdown"]),
        help="What the server does at the target. Default: promote.",
    )
    @click.option("--standby", is_flag=True, help="Go on as a standby, and never end recovery.")
    @functools.wraps(function)
    def with_asked(
        *arguments: Any,
        timeline: str | None,
        exclusive: bool,
        action: Action | None,
        standby: bool,
        **options: Any,
    ) -> Any:
        given = {name: options.pop(parameter) for parameter, name in _TARGETS.items()}
        values = {name: "" if value is True else value for name, value in given.items() if value not in {None, False}}
        asked = AskedTarget(values=values, timeline=timeline, exclusive=exclusive, action=action, standby=standby)
        return function(*arguments, asked=asked, **options)

    return with_asked


def cluster_settings(context: Context, chosen: Chosen) -> Cluster | None:
    """The cluster's settings; None where a repository is named by its address, and no configuration knows the cluster."""
    name = chosen.cluster
    if name is None:
        return None
    try:
        return context.config().clusters.get(name)
    except ConfigError:
        # only where an address stands for the configuration: the name came from there otherwise
        return None


def open_repositories(context: Context, chosen: Chosen) -> list[Repository]:
    """The repositories to read from, in the order of the configuration; those that cannot be opened are told of, and passed over.

    Raises what the first one did where none opens.
    """
    failures = []
    opened = []
    for open_it in chosen.openers():
        try:
            opened.append(open_it())
        except PgkeepError as error:
            failures.append(error)
    if not opened:
        raise failures[0]
    for failure in failures:
        context.output.line(f"note: not every repository can be opened: {failure}", "yellow")
    return opened


def recovery_document(plan: RecoveryPlan) -> dict[str, object]:
    """A planned recovery, with the keys that docs/reference/json.md promises."""
    target = plan.target
    return {
        "target": {
            "kind": target.kind,
            "value": target.value or None,
            "written": target.written or None,
            "exclusive": target.exclusive,
            "timeline": target.timeline,
            "action": target.action,
            "standby": target.standby,
        },
        "timeline": plan.path.timeline,
        "timelines": list(plan.path.timelines),
        "start_lsn": str(plan.start_lsn),
        "consistent_lsn": str(plan.consistent_lsn),
        "stop_lsn": str(plan.stop_lsn),
        "stop_timeline": plan.stop_timeline,
        "stop_is_exact": not plan.open_ended,
        "last_transaction": plan.stop_time,
        "next_transaction": plan.next_time,
        "wal_bytes": plan.wal_bytes,
        "settings": plan.settings,
        "signal_file": plan.signal,
    }
