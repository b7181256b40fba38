"""``pgkeep wal receive``: WAL from the server into the repositories, as it is written."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import click

from pgkeep.cli.options import Context, cluster_option, common_options, examples
from pgkeep.units import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from pgkeep.config import Cluster, Config
    from pgkeep.postgres.lsn import LSN
    from pgkeep.wal.events import Event
    from pgkeep.wal.receive import WalReceiver

from contextlib import contextmanager

__all__ = ["command"]


class LsnType(click.ParamType["LSN"]):
    """A position in the WAL, as PostgreSQL prints it."""

    name = "lsn"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> LSN:
        """The LSN."""
        from pgkeep.postgres.lsn import LSN

        try:
            return LSN.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class DurationType(click.ParamType[float]):
    """A duration: ``30s``, ``5min``."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        try:
            return value if isinstance(value, float) else parse_duration(str(value)).total_seconds()
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(
    "receive",
    short_help="Stream WAL from the server into the repositories, until stopped.",
    epilog=examples(
        "pgkeep wal receive",
        "pgkeep wal receive --cluster auth --json",
        "pgkeep wal receive --until-lsn 0/5000060",
    ),
)
@common_options
@cluster_option
@click.option("--until-lsn", type=LsnType(), metavar="LSN", help="End once WAL up to there is in every repository.")
@click.option(
    "--no-base-backup",
    is_flag=True,
    help="After a gap in the WAL only raise the alarm; without this, a new backup is taken by itself.",
)
@click.option(
    "--wait",
    type=DurationType(),
    metavar="DURATION",
    default="10s",
    show_default=True,
    help="How long to wait at the start for a replication slot that another receiver uses.",
)
def command(context: Context, cluster: str | None, until_lsn: LSN | None, no_base_backup: bool, wait: float) -> None:
    """Receive WAL through a replication slot, make it durable here, acknowledge it, and ship it to every repository.

    Finished segments are shipped at once, and what is new of the open one every `ship_every`. Runs until SIGTERM or
    SIGINT; it ships the rest then, for ten seconds at most, and ends with 0. Whatever fails is told on standard error, and
    tried again for ever.
    """
    from pgkeep.errors import StoreError
    from pgkeep.policy.heartbeat import beating
    from pgkeep.wal.receive import WalReceiver

    config = context.config()
    settings = config.cluster(cluster)
    receiver = WalReceiver(
        config,
        settings,
        on_gap=None if no_base_backup else _base_backups(config, settings),
        on_event=_print_json if context.json else _print_line,
        until_lsn=until_lsn,
        slot_wait=wait,
    )
    tell = _print_json if context.json else _print_line
    with (
        _signals_stop(receiver),
        beating(settings.dsn, settings.objectives.heartbeat, lambda text: tell(_no_heartbeat(text))),
    ):
        receiver.run()
    status = receiver.status()
    context.output.document({key: status[key] for key in ("cluster", "timeline", "durable_lsn", "repositories")})
    if until_lsn is not None and status["durable_lsn"] is not None and not receiver.has_shipped(until_lsn):
        failing = next((shipper for shipper in receiver.shippers if shipper.last_error is not None), None)
        raise StoreError(
            f"WAL up to {until_lsn} is not in every repository"
            + (f": {failing.name}: {failing.last_error}" if failing is not None else ""),
            hint="the spool keeps it: pgkeep wal receive goes on",
        )


def _base_backups(config: Config, cluster: Cluster) -> Callable[[str], None]:
    """A call that takes a new backup of the cluster into all of its repositories."""

    def take(_reason: str) -> None:
        from functools import partial

        from pgkeep.backup import BackupRequest, run_backup_everywhere
        from pgkeep.opening import open_repository

        request = BackupRequest(
            cluster=cluster.name,
            dsn=cluster.dsn,
            label="after a gap in the WAL",
            jobs=cluster.backup.jobs,
            rate=cluster.backup.rate,
            mode=cluster.backup.mode,
            data_directory=None if cluster.server.data_directory is None else str(cluster.server.data_directory),
            deep_check=cluster.backup.deep_check,
        )
        # one that is down gets it with the next backup
        run_backup_everywhere(
            request, [(each.name, partial(open_repository, each)) for each in config.repositories_of(cluster)]
        )

    return take


def _no_heartbeat(text: str) -> Event:
    from pgkeep.units import utc_now
    from pgkeep.wal.events import Event

    return Event(utc_now(), "warning", "heartbeat", text, None)


def _print_line(event: Event) -> None:
    from pgkeep.cli.output import clean
    from pgkeep.units import format_time

    text = f"{format_time(event.time)}  {event.level}: {clean(event.message)}"
    print(text + (f" (hint: {clean(event.hint)})" if event.hint else ""), file=sys.stderr, flush=True)


def _print_json(event: Event) -> None:
    from pgkeep.cli.output import to_json

    line = {
        "event": event.level,
        "kind": event.kind,
        "time": event.time,
        "message": event.message,
        "hint": event.hint,
    }
    print(to_json(line, indent=None), file=sys.stderr, flush=True)


@contextmanager
def _signals_stop(receiver: WalReceiver) -> Iterator[None]:
    """Within it, the first SIGINT or SIGTERM ends the receiver in order; a second one ends the process."""

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        receiver.stop()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
