"""``pgkeep init``: check a server, create its repository, key and configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgkeep.cli.findings import show_findings
from pgkeep.cli.options import Context, common_options, examples
from pgkeep.errors import UsageError

if TYPE_CHECKING:
    from pgkeep.config import KeyReference
    from pgkeep.setup_cluster import SetupResult

__all__ = ["command"]


@click.command(
    "init",
    epilog=examples(
        "pgkeep init 'host=db.example user=replication_user dbname=auth_db'",
        "pgkeep init postgresql://replication_user@db.example/auth_db --name auth --repository /backups/auth",
        "pgkeep init 'host=db.example user=replication_user' --passphrase-file /etc/pgkeep/passphrase --yes",
        "pgkeep init 'host=db.example user=replication_user' --repository s3://bucket/auth",
        "pgkeep init 'host=db.example user=replication_user' --repository 's3://bucket/auth?endpoint=https://minio:9000'",
    ),
)
@click.argument("dsn")
@common_options
@click.option("--name", metavar="NAME", help="What the cluster is called from now on.  [default: main]")
@click.option(
    "--repository",
    "repositories",
    metavar="URL",
    multiple=True,
    help="Where backups go: file:///path, a path, or s3://, gs:// or az://bucket/prefix.",
)
@click.option("--key-file", metavar="FILE", help="Use this key file; it is created where there is none.")
@click.option("--passphrase-file", metavar="FILE", help="Use the passphrase in this file.")
@click.option("--no-encryption", is_flag=True, help="Store everything readable for whoever can read the repository.")
@click.option(
    "--sealed",
    is_flag=True,
    help="Let this machine's key add only: data and WAL can be read with the recovery key alone.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(
    context: Context,
    dsn: str,
    name: str | None,
    repositories: tuple[str, ...],
    key_file: str | None,
    passphrase_file: str | None,
    no_encryption: bool,
    sealed: bool,
    yes: bool,
) -> None:
    """Check the server at DSN, and create its repository, key and configuration.

    DSN is a connection string of PostgreSQL: a URI, or key=value pairs. A password belongs in ~/.pgpass or PGPASSWORD; one
    in the DSN is moved to a file of its own. Run it again at any time: what exists is used, never overwritten.
    """
    from pgkeep.checks import check_server, first_failure
    from pgkeep.setup_cluster import carry_out, plan_setup

    if sealed and no_encryption:
        raise UsageError("--sealed and --no-encryption exclude each other", hint="leave one out")
    key = _key_reference(key_file, passphrase_file, no_encryption=no_encryption)
    plan = plan_setup(dsn, config_path=context.config_path, name=name, urls=repositories, key=key, sealed=sealed)
    report = check_server(dsn)
    show_findings(context.output, report.findings)
    failure = first_failure(report.findings)
    if failure is not None:
        context.output.document(
            {"ok": False, "cluster": plan.cluster, "findings": [finding.document() for finding in report.findings]}
        )
        context.output.line("Nothing was created. Mend what failed, and run this again.")
        context.exit(failure.exit_code)
    context.output.line()
    for line in plan.describe():
        context.output.line(f"* {line}")
    if not yes and not context.json and sys.stdin.isatty():
        click.confirm("Go on?", default=True, abort=True)
    result = carry_out(plan, report.facts)
    context.output.document(
        {
            "ok": first_failure(result.findings) is None,
            "cluster": plan.cluster,
            "config": plan.config_path,
            "repositories": [
                {
                    "name": planned.settings.name,
                    "url": planned.settings.url,
                    "key": str(planned.settings.key),
                    "created": not planned.exists,
                    "recovery_key": result.recovery_keys.get(planned.settings.name),
                }
                for planned in plan.repositories
            ],
            "password_file": plan.password_file,
            "created": list(result.created),
            "findings": [finding.document() for finding in (*report.findings, *result.findings)],
        }
    )
    show_findings(context.output, result.findings)
    _show_recovery_keys(context, result)
    failure = first_failure(result.findings)
    if failure is not None:
        context.exit(failure.exit_code)
    context.output.line()
    context.output.line(f"Cluster {plan.cluster!r} is ready: pgkeep backup", "bold")


def _key_reference(key_file: str | None, passphrase_file: str | None, *, no_encryption: bool) -> KeyReference | None:
    from pgkeep.config import KeyReference

    if sum((key_file is not None, passphrase_file is not None, no_encryption)) > 1:
        raise UsageError(
            "--key-file, --passphrase-file and --no-encryption exclude each other", hint="leave all but one out"
        )
    if key_file is not None:
        return KeyReference(kind="file", path=Path(key_file).expanduser().absolute())
    if passphrase_file is not None:
        return KeyReference(kind="passphrase-file", path=Path(passphrase_file).expanduser().absolute())
    return KeyReference(kind="none") if no_encryption else None


def _show_recovery_keys(context: Context, result: SetupResult) -> None:
    for planned in result.plan.repositories:
        key = result.recovery_keys.get(planned.settings.name)
        if key is None:
            continue
        context.output.line()
        context.output.line(f"Recovery key of repository {planned.settings.name!r}, shown only this once:", "bold")
        context.output.line(f"  {key}")
        alone = (
            "It alone reads them: if it is lost, nobody can ever restore them."
            if result.plan.sealed
            else f"If {planned.settings.key.path} and this key are both lost, nobody can ever restore them."
        )
        context.output.line(
            "Keep it away from this host, on paper or in a password manager. Whoever has it can read the backups. "
            + alone
        )
        if result.plan.sealed:
            context.output.line(
                "To restore: --key-file FILE, with the recovery key in the file. A second key that reads:"
            )
            context.output.line("  pgkeep key add KEY --key-file FILE")
