"""``pgkeep check``: everything that a backup needs, tested."""

from __future__ import annotations

import click

from pgkeep.cli.findings import show_findings
from pgkeep.cli.options import Context, cluster_option, common_options, examples

__all__ = ["command"]


@click.command(
    "check",
    epilog=examples("pgkeep check", "pgkeep check --cluster auth --json"),
)
@common_options
@cluster_option
def command(context: Context, cluster: str | None) -> None:
    """Test the server, its settings and the repositories of a cluster.

    One line for each test, with the command or setting that mends it. Ends with 0 where a backup can be taken, even with
    warnings; else with the exit code of the first failure.
    """
    from pgkeep.checks import check_cluster, first_failure

    settings = context.config().cluster(cluster)
    report = check_cluster(context.config(), settings)
    show_findings(context.output, report.findings)
    failure = first_failure(report.findings)
    context.output.document(
        {
            "cluster": settings.name,
            "ok": failure is None,
            "findings": [finding.document() for finding in report.findings],
        }
    )
    if failure is not None:
        context.exit(failure.exit_code)
