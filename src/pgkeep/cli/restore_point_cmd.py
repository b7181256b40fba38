"""``pgkeep restore-point``: a name for this moment."""

from __future__ import annotations

import click

from pgkeep.cli.options import Context, cluster_option, common_options, examples
from pgkeep.errors import StoreError

__all__ = ["command"]


@click.command(
    "restore-point",
    short_help="Name this moment, so that a restore can go back to it.",
    epilog=examples(
        "pgkeep restore-point before-migration-42 && ./migrate",
        "pgkeep restore-point before-migration-42 --wait 0",
        "pgkeep restore --in-place --to-name before-migration-42",
    ),
)
@common_options
@cluster_option
@click.argument("name")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=60.0,
    metavar="SECONDS",
    help="How long to wait until the repositories hold it. Default: 60.",
)
def command(context: Context, cluster: str | None, name: str, wait: float) -> None:
    """Create a restore point NAME on the server, and wait until it is safe in the repositories.

    Ends with 9 where it was created, but is not there in time; with --wait 0 nobody waits, and that is no failure.
    """
    from pgkeep.opening import open_repository
    from pgkeep.restore.restore_point import check_restore_point_name, create_restore_point

    check_restore_point_name(name)
    settings = context.config().cluster(cluster)
    repositories = [(each.name, open_repository(each)) for each in context.config().repositories_of(settings)]
    with context.progress() as progress:
        point = create_restore_point(name, settings, repositories, wait=wait, progress=progress)
    output = context.output
    output.line(f"restore point {point.name} is created", "green")
    output.fields(
        [
            ("lsn", str(point.lsn)),
            ("time", point.time.isoformat(sep=" ")),
            ("timeline", str(point.timeline)),
            *((f"in {where}", "yes" if there else "not yet") for where, there in point.durable.items()),
        ]
    )
    for note in point.notes:
        output.line(f"note: {note}", "yellow")
    if point.kept:
        output.line(f"next: pgkeep restore --in-place --to-name {point.name} --plan shows the way back")
    else:
        output.line("it cannot be restored to before its WAL is in the repositories: pgkeep wal status", "bold red")
    output.document(
        {
            "cluster": settings.name,
            "name": point.name,
            "lsn": str(point.lsn),
            "time": point.time,
            "timeline": point.timeline,
            "durable": point.durable,
            "kept": point.kept,
            "notes": point.notes,
        }
    )
    if not point.kept and wait > 0:
        context.exit(StoreError.exit_code)
