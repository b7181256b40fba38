"""``pgkeep copy``: backups and WAL from one repository into another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgkeep.cli.backup_cmd import SizeType
from pgkeep.cli.options import Context, cluster_option, common_options, examples
from pgkeep.cli.repositories import Chosen
from pgkeep.errors import UsageError
from pgkeep.units import format_size

if TYPE_CHECKING:
    from pgkeep.copies import CopyPlan, CopyReport, MendReport
    from pgkeep.copies.wal import Wanted
    from pgkeep.repository import Repository

__all__ = ["command"]


@click.command(
    "copy",
    short_help="Copy backups and WAL from one repository into another.",
    epilog=examples(
        "pgkeep copy --from local --to offsite",
        "pgkeep copy --from local --to offsite --all --wal --rate 20MB",
        "pgkeep copy --from offsite --to /srv/mirror --to-key-file mirror.key latest",
        "pgkeep copy --from offsite --to local --mend",
    ),
)
@common_options
@cluster_option
@click.argument("backups", metavar="[BACKUP]...", nargs=-1)
@click.option("--from", "source", required=True, metavar="NAME|ADDRESS", help="The repository to copy from.")
@click.option("--to", "destination", required=True, metavar="NAME|ADDRESS", help="The repository to copy into.")
@click.option("--from-key-file", type=click.Path(dir_okay=False, path_type=Path), help="The key of the first.")
@click.option("--to-key-file", type=click.Path(dir_okay=False, path_type=Path), help="The key of the second.")
@click.option("--all", "everything", is_flag=True, help="Every backup that the second lacks, old ones too.")
@click.option(
    "--wal", is_flag=True, help="And all WAL that it lacks and its rules keep, not only what the backups need."
)
@click.option("--mend", is_flag=True, help="Bring back what is damaged or gone in the second, instead.")
@click.option("--rate", type=SizeType(), help="At most this much a second: 20MB.")
@click.option("--jobs", type=click.IntRange(1, 256), help="Objects at once. Default: what the stores make use of.")
@click.option("--dry-run", is_flag=True, help="Say what would be copied, and copy nothing.")
def command(
    context: Context,
    cluster: str | None,
    backups: tuple[str, ...],
    source: str,
    destination: str,
    from_key_file: Path | None,
    to_key_file: Path | None,
    everything: bool,
    wal: bool,
    mend: bool,
    rate: int | None,
    jobs: int | None,
    dry_run: bool,
) -> None:
    """Copy backups and WAL, so that either repository alone can bring the cluster back.

    Without BACKUP, those newer than the newest in the second repository; into an empty one, the newest. Where the two share their
    keys, packs are copied as they are; where not, contents are sealed anew. Run it again at any time: it goes on where it was.
    """
    from pgkeep.copies import CopyRequest, plan_copy, run_copy

    if backups and everything:
        raise UsageError("--all means every backup", hint="leave --all or the backups' ids out")
    if mend and (backups or wal or everything or dry_run):
        raise UsageError(
            "--mend looks at everything that is there", hint="leave the backups, --wal, --all and --dry-run out"
        )
    here = Chosen(context, cluster, source, from_key_file, None)
    there = Chosen(context, cluster, destination, to_key_file, None)
    request = CopyRequest(cluster=cluster, backups=backups, everything=everything, wal=wal, rate=rate, jobs=jobs)
    opened = here.open(), there.open()
    if mend:
        from pgkeep.copies import run_mend

        with context.progress() as progress:
            mended = run_mend(request, *opened, progress)
        _show_mended(context, mended)
        return
    if dry_run:
        _show_plan(context, plan_copy(request, *opened, wanted_wal=_wanted(there, opened[1])))
        return
    with context.progress() as progress:
        report = run_copy(request, *opened, progress, wanted_wal=_wanted(there, opened[1]))
    _show_report(context, report)


def _wanted(there: Chosen, repository: Repository) -> Wanted | None:
    """Which WAL the second repository's rules keep; None where it has none."""
    from pgkeep.policy import Rules
    from pgkeep.policy.retention_copies import wanted_wal

    rules = there.retention()
    return None if rules is None else wanted_wal(repository, Rules.of(rules))


def _show_plan(context: Context, plan: CopyPlan) -> None:
    at_most = "" if plan.same_keys else "at most "
    context.output.fields(
        [
            (
                "keys",
                "shared: packs are copied as they are" if plan.same_keys else "not shared: contents are sealed anew",
            ),
            ("backups to copy", ", ".join(manifest.id for manifest in plan.backups) or "none"),
            ("there already", str(plan.there)),
            ("to move", f"{at_most}{format_size(plan.size)}" + (f", {plan.packs:,} packs" if plan.same_keys else "")),
            ("WAL to move", f"{plan.wal_files:,} files, {format_size(plan.wal_size)}"),
        ]
    )
    context.output.document(
        {
            "same_keys": plan.same_keys,
            "backups": [manifest.id for manifest in plan.backups],
            "there": plan.there,
            "packs": plan.packs if plan.same_keys else None,
            "bytes": plan.size,
            "wal_files": plan.wal_files,
            "wal_bytes": plan.wal_size,
        }
    )


def _show_report(context: Context, report: CopyReport) -> None:
    from pgkeep.errors import DamageError

    for copied in report.backups:
        context.output.line(f"backup {copied.manifest.id} is copied: {format_size(copied.new_size)} added", "green")
    if not report.backups and not report.failures:
        context.output.line("every backup that was asked for is there already")
    if report.wal.files:
        context.output.line(f"{report.wal.files:,} files of WAL are copied: {format_size(report.wal.size)}", "green")
    for backup_id, error in report.failures:
        context.output.line(f"not copied: backup {backup_id}: {error}", "red")
    for error in report.wal.damage:
        context.output.line(f"not copied: {error}", "red")
    context.output.document(
        {
            "ok": report.ok,
            "same_keys": report.same_keys,
            "copied": [{"id": each.manifest.id, "new_bytes": each.new_size} for each in report.backups],
            "there": report.there,
            "wal_files": report.wal.files,
            "wal_bytes": report.wal.size,
            "failures": [
                *({"id": backup_id, "object": e.object_name, "message": str(e)} for backup_id, e in report.failures),
                *({"id": None, "object": e.object_name, "message": str(e)} for e in report.wal.damage),
            ],
        }
    )
    if not report.ok:
        if context.json:
            context.exit(DamageError.exit_code)
        raise DamageError(
            f"{len(report.failures)} backups and {len(report.wal.damage)} files of WAL could not be copied",
            hint="what is named above is damaged where it was to be read: pgkeep verify, and pgkeep copy --mend",
        )


def _show_mended(context: Context, report: MendReport) -> None:
    from pgkeep.errors import DamageError

    for name in report.mended:
        context.output.line(f"mended: {name}", "green")
    for name, reason in report.failures:
        context.output.line(f"not mended: {name}: {reason}", "red")
    context.output.fields([("objects looked at", f"{report.objects:,}, {format_size(report.size)}")])
    if not report.mended and not report.failures:
        context.output.line("nothing is damaged, and nothing is gone")
    context.output.document(
        {
            "ok": not report.failures,
            "objects": report.objects,
            "object_bytes": report.size,
            "mended": report.mended,
            "failures": [{"object": name, "message": reason} for name, reason in report.failures],
        }
    )
    if report.failures:
        if context.json:
            context.exit(DamageError.exit_code)
        raise DamageError(
            f"{len(report.failures)} objects could not be mended",
            hint="pgkeep verify names the backups that need them; a new backup stores what it needs anew",
        )
