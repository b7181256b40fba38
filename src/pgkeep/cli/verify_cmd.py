"""``pgkeep verify``: damage found before it is needed."""

from __future__ import annotations

import click

from pgkeep.cli.options import Context, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.errors import DamageError, UsageError
from pgkeep.units import format_size, parse_duration

__all__ = ["command"]


class DurationType(click.ParamType[float]):
    """A duration: ``7d``, ``12h``."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        try:
            return parse_duration(str(value)).total_seconds()
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(
    "verify",
    short_help="Check stored bytes and backups against damage.",
    epilog=examples(
        "pgkeep verify",
        "pgkeep verify latest",
        "pgkeep verify --all",
        "pgkeep verify --scrub --repository file:///mirror/auth_db",
    ),
)
@common_options
@repository_options
@click.argument("backup", required=False)
@click.option("--scrub", "scrub_only", is_flag=True, help="Only stored bytes; needs no key.")
@click.option("--content", "content_only", is_flag=True, help="Only the content of backups.")
@click.option(
    "--max-age",
    type=DurationType(),
    default="7d",
    show_default=True,
    help="Pass over what was found whole within this time.",
)
@click.option("--all", "everything", is_flag=True, help="Pass over nothing.")
@click.option("--jobs", type=click.IntRange(1, 256), help="Worker threads. Default: one for each processor.")
def command(
    context: Context,
    chosen: Chosen,
    backup: str | None,
    scrub_only: bool,
    content_only: bool,
    max_age: float,
    everything: bool,
    jobs: int | None,
) -> None:
    """Check every stored byte (scrub), and every backup as a restore would read it, with its pages and WAL (content).

    With BACKUP only the content of that one. Remembers what was found whole, and when.
    """
    from pgkeep.verify import VerifyRequest, run_verify

    if scrub_only and (content_only or backup):
        raise UsageError("--scrub checks objects, not backups: leave out --content and BACKUP")
    request = VerifyRequest(
        cluster=None if scrub_only else chosen.cluster,
        backup=backup,
        scrub=backup is None and not content_only,
        content=not scrub_only,
        max_age_seconds=0 if everything else max_age,
        jobs=jobs,
    )
    repository = None if scrub_only else chosen.open()
    with context.progress() as progress:
        report = run_verify(request, chosen.store(), repository, progress)
    context.output.fields(
        [
            ("objects scrubbed", f"{report.objects:,}, {format_size(report.object_bytes)}"),
            ("backups verified", ", ".join(report.backups) or "none"),
            ("files read", f"{report.files:,}, {format_size(report.file_bytes)}"),
            ("pages checked", f"{report.pages:,}"),
            ("checked lately", f"{report.remembered:,} (--all checks them again)"),
            ("half-written leftovers", format_size(report.leftovers)),
            ("damage", "none" if report.ok else str(len(report.damage))),
        ]
    )
    context.output.document(
        {
            "ok": report.ok,
            "objects": report.objects,
            "object_bytes": report.object_bytes,
            "backups": report.backups,
            "files": report.files,
            "file_bytes": report.file_bytes,
            "pages": report.pages,
            "remembered": report.remembered,
            "leftover_bytes": report.leftovers,
            "damage": [
                {"object": damage.object_name, "path": damage.path, "message": damage.message}
                for damage in report.damage
            ],
        }
    )
    for damage in report.damage:
        context.output.line(f"damaged: {damage.message}", "red")
    if not report.ok:
        if context.json:
            context.exit(DamageError.exit_code)
        raise DamageError(
            f"{len(report.damage)} findings of damage in {chosen.store().url}",
            hint=_remedy(chosen),
        )


def _remedy(chosen: Chosen) -> str:
    """Where the cluster has other repositories, they may have what is damaged here."""
    others = chosen.other_names()
    if not others:
        return "bring the objects named above back from a copy of the repository, or take a new backup now"
    return (
        f"{' or '.join(others)} may have them whole: pgkeep copy --from {others[0]} --to {chosen.name} --mend;"
        " or take a new backup now"
    )
