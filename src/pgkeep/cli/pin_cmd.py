"""``pgkeep pin``: keep a backup whatever the rules say."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.errors import NotFoundError, UsageError
from pgkeep.units import format_time, parse_duration, utc_now

if TYPE_CHECKING:
    from pgkeep.repository import Repository
    from pgkeep.repository.manifests import Manifest

__all__ = ["command", "find_everywhere"]

_CALENDAR = re.compile(r"\s*(\d{1,4})\s*(y|years?|mo|months?)\s*", re.IGNORECASE)

_DAY = re.compile(r"\s*\d{4}-\d{2}-\d{2}\s*")


@click.command(
    "pin",
    short_help="Keep a backup whatever the rules say, for a reason.",
    epilog=examples(
        'pgkeep pin latest --reason "before the migration" --for 90d',
        'pgkeep pin 20261123T03 --reason "case 4711" --for 7y',
        'pgkeep pin 20261123T03 --reason "case 4711" --until 2033-12-31',
    ),
)
@common_options
@repository_options
@click.argument("backup")
@click.option("--reason", required=True, help="Why: for whoever asks in years.")
@click.option(
    "--until", metavar="TIME", help="It ends with this day, or at this time, written as for restores. Default: never."
)
@click.option("--for", "for_", metavar="DURATION", help="It ends after this: 90d, 6mo, 7y.")
def command(context: Context, chosen: Chosen, backup: str, reason: str, until: str | None, for_: str | None) -> None:
    """Pin a backup in every repository that has it, so that no expiry removes it before the pin's end.

    BACKUP is an id, an unambiguous beginning of one, or latest. The backup keeps the WAL that makes it consistent. A pin is never
    changed: pin again for longer; pgkeep unpin takes all of a backup's pins back.
    """
    from pgkeep.policy.expire import pin_lease
    from pgkeep.repository.manifests import BackupName

    if not reason.strip() or not reason.isprintable():
        raise UsageError("the reason is empty, or not one line of text", hint='--reason "case 4711"')
    end = _end(context, chosen, until, for_)
    pinned = []
    for repository, manifest in find_everywhere(chosen, backup):
        with pin_lease(repository, manifest.system_identifier) as lease:
            if lease.took_over:
                repository.adopt_orphans()
            pin = repository.pins.add(BackupName(manifest.id, manifest.system_identifier), reason.strip(), end)
        pinned.append((repository, manifest, pin))
        until_text = "for ever" if end is None else f"until {format_time(end)}"
        context.output.line(f"{manifest.id} is pinned {until_text} in {repository.store.url}", "green")
    context.output.document(
        {
            "backup": pinned[0][1].id,
            "reason": reason.strip(),
            "until": end,
            "repositories": [repository.store.url for repository, _, _ in pinned],
        }
    )


def find_everywhere(chosen: Chosen, reference: str) -> list[tuple[Repository, Manifest]]:
    """The backup in each of the cluster's repositories that has it. Raises NotFoundError where none has."""
    repositories = chosen.open_all()
    found: list[tuple[Repository, Manifest]] = []
    missing: NotFoundError | None = None
    for repository in repositories:
        try:
            # what `latest` means, the first one says
            wanted = found[0][1].id if found else reference
            found.append((repository, repository.catalog.find(wanted, chosen.cluster)))
        except NotFoundError as error:
            missing = missing or error
    if not found:
        assert missing is not None
        raise missing
    return found


def _end(context: Context, chosen: Chosen, until: str | None, for_: str | None) -> datetime | None:
    from pgkeep.cli.target_options import cluster_settings
    from pgkeep.restore.target import parse_moment

    if until is not None and for_ is not None:
        raise UsageError("--until and --for exclude each other", hint="give one of them")
    now = utc_now()
    if until is not None:
        cluster = cluster_settings(context, chosen)
        # a day is held to its end
        moment = f"{until.strip()} 23:59:59" if _DAY.fullmatch(until) else until
        end = parse_moment(moment, None if cluster is None else cluster.time_zone)
    elif for_ is not None:
        end = _after(now, for_)
    else:
        return None
    if end <= now:
        raise UsageError(f"{format_time(end)} is over", hint="name a time to come")
    return end


def _after(now: datetime, text: str) -> datetime:
    """So much later: years and months by the calendar."""
    match = _CALENDAR.fullmatch(text)
    try:
        if match is None:
            return now + parse_duration(text)
        months = int(match[1]) * (12 if match[2].lower().startswith("y") else 1) + now.month - 1
        year, month = now.year + months // 12, months % 12 + 1
        for day in range(now.day, 0, -1):
            try:
                return now.replace(year=year, month=month, day=day)
            except ValueError:
                if not 1 <= year <= 9999:
                    raise
        raise AssertionError
    except (ValueError, OverflowError):
        raise UsageError(f"not a duration: {text!r}", hint="write it like 90d, 6mo or 7y") from None
