"""``pgkeep compare``: a restored cluster held against the live one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgkeep.cli.backup_cmd import SizeType
from pgkeep.cli.options import Context, cluster_option, common_options, examples
from pgkeep.cli.verify_cmd import DurationType
from pgkeep.errors import DamageError, StoreError, UsageError
from pgkeep.units import format_duration

if TYPE_CHECKING:
    from pgkeep.config import Cluster
    from pgkeep.drill.compare import ComparisonRequest
    from pgkeep.drill.fingerprint import SourceFingerprints
    from pgkeep.drill.record import Comparison

__all__ = ["command", "comparison_document", "print_comparison"]


@click.command(
    "compare",
    short_help="Hold a restored cluster against the live one, row for row.",
    epilog=examples(
        "pgkeep compare --begin moment.json",
        "pgkeep compare --moment moment.json --restored 'host=/tmp/restored port=5433 user=postgres'",
        "pgkeep compare --begin moment.json --table public.accounts --no-lock",
    ),
)
@common_options
@cluster_option
@click.option(
    "--begin",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Mark a moment on the source, and write what its tables hold then.",
)
@click.option(
    "--moment",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    metavar="FILE",
    help="What --begin wrote: compare with that.",
)
@click.option("--restored", metavar="DSN", help="The server that was recovered to the moment.")
@click.option("--database", "databases", multiple=True, metavar="NAME", help="Only this database; may be repeated.")
@click.option("--table", "tables", multiple=True, metavar="SCHEMA.TABLE", help="Only this table; may be repeated.")
@click.option(
    "--lock-timeout",
    type=DurationType(),
    default="500ms",
    show_default=True,
    help="The longest that a writer may wait.",
)
@click.option("--no-lock", is_flag=True, help="Lock nothing: what is written around the moment is not compared then.")
@click.option(
    "--sample-above",
    type=SizeType(),
    default="8GiB",
    show_default=True,
    help="Read about this much of a table that is larger.",
)
@click.option(
    "--jobs", type=click.IntRange(1, 64), help="Sessions at once. Default: one for each processor, 8 at most."
)
@click.option(
    "--examples",
    "shown",
    type=click.IntRange(0, 1000),
    default=5,
    show_default=True,
    help="Rows shown of a table that differs.",
)
def command(
    context: Context,
    cluster: str | None,
    begin: Path | None,
    moment: Path | None,
    restored: str | None,
    databases: tuple[str, ...],
    tables: tuple[str, ...],
    lock_timeout: float,
    no_lock: bool,
    sample_above: int,
    jobs: int | None,
    shown: int,
) -> None:
    """Say whether a restored cluster holds what the live one held at the same moment, table by table.

    First --begin: it marks the moment in the WAL with a restore point. Then restore to that point, and compare with --moment and
    --restored. Ends with 8 where something differs.
    """
    from pgkeep.drill.compare import ComparisonRequest, compare
    from pgkeep.drill.fingerprint import decode_fingerprints
    from pgkeep.drill.fingerprint_moment import LockRules

    settings = context.config().cluster(cluster)
    if begin is not None and moment is None and restored is None:
        request = ComparisonRequest(
            databases=databases or None,
            tables=tables or None,
            lock=not no_lock,
            rules=LockRules(timeout=lock_timeout),
            most_bytes=sample_above,
            jobs=jobs,
        )
        _begin(context, settings, request, begin)
        return
    if begin is not None or moment is None or restored is None:
        raise UsageError(
            "a comparison has two steps: --begin FILE, then --moment FILE with --restored DSN",
            hint="pgkeep compare --begin moment.json, which prints what comes next",
        )
    found = decode_fingerprints(_read(moment))
    with context.progress() as progress:
        comparison = compare(found, restored, source=settings.dsn, examples=shown, jobs=jobs, progress=progress)
    print_comparison(context, comparison)
    context.output.document({"cluster": settings.name, "moment": found.id, **comparison_document(comparison)})
    if not comparison.equal:
        context.exit(DamageError.exit_code)


def print_comparison(context: Context, comparison: Comparison) -> None:
    """Tables that differ, with rows of theirs; then the sum of it."""
    output = context.output
    for table in comparison.tables:
        if not table.equal:
            output.line(f"{table.name} differs: {table.detail}", "bold red")
            for each in table.differences:
                output.line(f"  {each.key}")
                output.line(f"    live      {each.live or 'no such row'}")
                output.line(f"    restored  {each.restored or 'no such row'}")
    rows = sum(table.rows for table in comparison.tables)
    different = sum(not table.equal for table in comparison.tables)
    what = f"{len(comparison.tables)} tables with {rows} rows"
    if not comparison.tables:
        output.line("nothing was compared: there is no table to compare", "bold red")
    elif different:
        output.line(f"{different} of {what} differ at {comparison.lsn}", "bold red")
    else:
        how = (
            "are the same" if comparison.mode == "exact" else "are the same, as far as that can be told without locks,"
        )
        output.line(f"{what} {how} at {comparison.lsn}", "green")
    sampled = [table for table in comparison.tables if table.sampled < 1]
    if sampled:
        output.line(f"sampled: {', '.join(f'{table.name} ({table.sampled:.0%})' for table in sampled)}")
    if comparison.detail:
        output.line(f"note: {comparison.detail}", "yellow" if comparison.mode == "tolerance" else "")


def comparison_document(comparison: Comparison) -> dict[str, object]:
    """For ``--json``."""
    import msgspec

    document = msgspec.to_builtins(comparison)
    assert isinstance(document, dict)
    return document


def _begin(context: Context, settings: Cluster, request: ComparisonRequest, path: Path) -> None:
    from pgkeep.drill.compare import begin_comparison
    from pgkeep.drill.fingerprint import encode_fingerprints

    with context.progress() as progress:
        found = begin_comparison(settings.dsn, request, progress)
    try:
        path.write_bytes(encode_fingerprints(found))
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}", hint="name another file") from None
    output = context.output
    output.line(f"{len(found.tables)} tables of cluster {settings.name} are marked, and written to {path}", "green")
    output.fields(
        [
            ("lsn", str(found.lsn)),
            ("time", found.time.isoformat(sep=" ")),
            ("mode", found.mode),
            ("rows", str(sum(table.rows for table in found.tables))),
            ("locked for", f"{found.held * 1000:.1f} ms, attempt {found.attempts}"),
            ("took", format_duration(found.seconds)),
        ]
    )
    for note in found.notes:
        output.line(f"note: {note}", "yellow")
    output.line(f"next: pgkeep restore --target-dir DIRECTORY {target_options(found)} --start")
    output.line(f"then: pgkeep compare --moment {path} --restored DSN, where the restore says how to connect")
    output.document(
        {
            "cluster": settings.name,
            "moment": found.id,
            "file": str(path),
            "mode": found.mode,
            "lsn": str(found.lsn),
            "restore_point": found.restore_point,
            "time": found.time,
            "tables": len(found.tables),
            "rows": sum(table.rows for table in found.tables),
            "locked_seconds": found.held,
            "attempts": found.attempts,
            "notes": found.notes,
        }
    )


def target_options(found: SourceFingerprints) -> str:
    """What a restore to the moment is told."""
    return f"--to-name {found.restore_point}" if found.restore_point else f"--to-lsn {found.lsn} --exclusive"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}", hint="pgkeep compare --begin FILE") from None
