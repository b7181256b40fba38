"""What a backup needs, tested by name: for ``pgkeep init``, for ``pgkeep check``, and as the gate before a backup."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pgkeep.errors import PgkeepError, RepositoryError, ServerError, ServerSettingError, StoreError
from pgkeep.findings import Finding, failed, first_failure
from pgkeep.opening import read_secret
from pgkeep.postgres.connection import connect_sql, open_replication, quote_role
from pgkeep.postgres.dsn import endpoint_of, parse_dsn
from pgkeep.postgres.facts import MAX_KNOWN_VERSION, ServerFacts, Sql, server_facts
from pgkeep.repository import Repository, exists, open_store
from pgkeep.units import format_size, utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from pgkeep.config import Cluster, Config, RepositorySettings

__all__ = [
    "Finding",
    "ServerReport",
    "check_cluster",
    "check_repository",
    "check_server",
    "first_failure",
    "raise_first_failure",
]

NEEDED_WAL_SENDERS = 2
"""One connection for the base backup, one for the WAL beside it."""

MAX_CLOCK_DIFFERENCE = 30.0
"""Seconds; more than this and times in backups and recovery targets mean different things on both hosts."""

EXPECTED_COMPRESSION = 4
"""The first backup of a cluster may shrink by this much, hardly by more."""


@dataclass(frozen=True, slots=True)
class ServerReport:
    """What was found out about a server; ``facts`` is None where it could not be asked."""

    findings: list[Finding]
    facts: ServerFacts | None


def raise_first_failure(findings: Iterable[Finding]) -> None:
    """Raise the error of the first check that failed, if any did: the gate before a backup."""
    error = first_failure(findings)
    if error is not None:
        raise error


def check_cluster(config: Config, cluster: Cluster) -> ServerReport:
    """All checks of a configured cluster: its settings, its server, its repositories."""
    report = check_server(cluster.dsn)
    findings = [*_check_settings(config, cluster), *report.findings]
    for repository in config.repositories_of(cluster):
        findings.extend(check_repository(repository, report.facts))
    return ServerReport(findings, report.facts)


def _check_settings(config: Config, cluster: Cluster) -> list[Finding]:
    findings = [Finding("configuration", "ok", "read from " + str(config.path or "the environment"))]
    if config.path is not None and "password" in parse_dsn(cluster.dsn) and _others_can_read(config.path):
        findings = [
            Finding(
                "configuration",
                "warning",
                f"{config.path} holds a password and others can read it",
                f"chmod 600 {config.path}",
            )
        ]
    for repository in config.repositories_of(cluster):
        path = repository.key.path
        if path is not None and _others_can_read(path):
            findings.append(
                Finding(f"key of {repository.name}", "warning", f"others can read {path}", f"chmod 600 {path}")
            )
    return findings


def _others_can_read(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & 0o077)
    except OSError:
        return False


def check_server(dsn: str) -> ServerReport:
    """Connect for SQL and for replication, and look at everything that a backup needs there.

    Raises ConfigError for a DSN that is none; all else is a finding.
    """
    with ExitStack() as stack:
        sql, sql_error = _attempt(lambda: connect_sql(dsn))
        if sql is not None:
            stack.callback(sql.close)
        replication, replication_error = _attempt(lambda: open_replication(dsn))
        if replication is not None:
            stack.callback(replication.finish)
        if sql is None and replication_error is not None:
            return ServerReport([failed("connection", replication_error)], None)
        try:
            facts = server_facts(replication, sql)
        except ServerError as error:
            name = "server version" if isinstance(error, ServerSettingError) else "connection"
            return ServerReport([failed(name, error)], None)
        return ServerReport(_judge(dsn, facts, sql, sql_error, replication_error), facts)


T = TypeVar("T")


def _attempt(connect: Callable[[], T]) -> tuple[T | None, ServerError | None]:
    try:
        return connect(), None
    except ServerError as error:
        return None, error


def _judge(
    dsn: str,
    facts: ServerFacts,
    sql: Sql | None,
    sql_error: ServerError | None,
    replication_error: ServerError | None,
) -> list[Finding]:
    endpoint = endpoint_of(dsn)
    kind = "standby" if facts.in_recovery else "primary"
    findings = [Finding("connection", "ok", f"{kind} at {endpoint}, as role {endpoint.user!r}")]
    if sql_error is not None:
        findings.append(Finding("SQL session", "unknown", f"sizes and roles stay unknown: {sql_error}", sql_error.hint))
    findings += _role_findings(facts, replication_error)
    findings += [check(facts) for check in _FACT_CHECKS]
    if sql is not None:
        findings.append(_clock(sql))
    return findings


def _role_findings(facts: ServerFacts, replication_error: ServerError | None) -> list[Finding]:
    findings = []
    if facts.role_replication is False and not facts.role_superuser:
        findings.append(
            failed(
                "replication role",
                ServerSettingError(
                    f"role {facts.role!r} has no REPLICATION privilege",
                    hint=f"ALTER ROLE {quote_role(facts.role)} WITH REPLICATION;",
                ),
            )
        )
    elif facts.role_replication is not None:
        findings.append(Finding("replication role", "ok", f"role {facts.role!r} may replicate"))
    if replication_error is None:
        findings.append(Finding("replication connection", "ok", "pg_hba.conf lets it in"))
    elif "REPLICATION privilege" not in str(replication_error) or not findings:
        findings.append(failed("replication connection", replication_error))
    return findings


def _version(facts: ServerFacts) -> Finding:
    name, text = "server version", f"PostgreSQL {facts.version}"
    if facts.major_version > MAX_KNOWN_VERSION:
        return Finding(
            name,
            "warning",
            f"{text} is newer than {MAX_KNOWN_VERSION}, the newest that this version was tested with",
            "pip install --upgrade pgkeep",
        )
    if 170000 <= facts.version_num <= 170010 or 180000 <= facts.version_num <= 180004:
        return Finding(
            name,
            "warning",
            f"{text} leaves visibility map changes out of incremental backups, and pg_basebackup --incremental "
            "believes it; pgkeep always reads these maps whole",
            f"update to the newest minor release of PostgreSQL {facts.major_version}",
        )
    return Finding(name, "ok", text)


def _wal_level(facts: ServerFacts) -> Finding:
    if facts.wal_level == "minimal":
        return failed(
            "wal_level",
            ServerSettingError(
                "wal_level is minimal, which leaves out what recovery needs",
                hint="ALTER SYSTEM SET wal_level = 'replica'; -- then restart the server",
            ),
        )
    return Finding("wal_level", "ok", facts.wal_level)


def _wal_senders(facts: ServerFacts) -> Finding:
    free = facts.max_wal_senders - (facts.wal_senders_in_use or 0)
    wanted = max(10, facts.max_wal_senders - free + 2 * NEEDED_WAL_SENDERS)
    if free < NEEDED_WAL_SENDERS:
        return failed(
            "max_wal_senders",
            ServerSettingError(
                f"{free} of {facts.max_wal_senders} WAL senders are free, and a backup needs {NEEDED_WAL_SENDERS}",
                hint=f"ALTER SYSTEM SET max_wal_senders = {wanted}; -- then restart the server",
            ),
        )
    if facts.wal_senders_in_use is None:
        return Finding("max_wal_senders", "unknown", f"{facts.max_wal_senders}; how many are in use cannot be seen")
    return Finding("max_wal_senders", "ok", f"{free} of {facts.max_wal_senders} are free")


def _full_page_writes(facts: ServerFacts) -> Finding:
    if facts.full_page_writes:
        return Finding("full_page_writes", "ok", "on")
    return Finding(
        "full_page_writes",
        "warning",
        "off: a crash can tear pages, and a standby cannot be backed up",
        "ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf();",
    )


def _fsync(facts: ServerFacts) -> Finding:
    if facts.fsync:
        return Finding("fsync", "ok", "on")
    return Finding(
        "fsync",
        "warning",
        "off: a crash of the host can destroy the cluster",
        "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();",
    )


def _incrementals(facts: ServerFacts) -> Finding:
    name = "incremental backups"
    if facts.major_version < 17:
        return Finding(
            name,
            "ok",
            f"PostgreSQL {facts.major_version} does not tell what changed: a backup over the network reads everything,"
            " and stores what changed",
        )
    if not facts.summarize_wal:
        return Finding(
            name,
            "warning",
            "summarize_wal is off: a backup over the network reads everything, and stores what changed",
            "ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf();",
        )
    if facts.server_encoding is None:
        return Finding(
            name, "warning", "they take an SQL session, and there is none: a backup over the network reads everything"
        )
    return Finding(name, "ok", "summarize_wal is on: only what changed is read")


def _data_checksums(facts: ServerFacts) -> Finding:
    if facts.data_checksums:
        return Finding("data checksums", "ok", "on")
    directory = facts.data_directory or "DATA_DIRECTORY"
    return Finding(
        "data checksums",
        "warning",
        "off: pages that the disk damaged cannot be told from good ones",
        f"pg_checksums --enable -D {directory} -- with the server stopped",
    )


def _config_files(facts: ServerFacts) -> Finding:
    name = "configuration files"
    if facts.config_files_outside is None:
        return Finding(
            name,
            "unknown",
            "the role may not see where they are; those outside the data directory are in no backup",
            f"GRANT pg_read_all_settings TO {quote_role(facts.role)};",
        )
    if facts.config_files_outside:
        files = " ".join(facts.config_files_outside)
        return Finding(name, "warning", f"outside the data directory, so in no backup: {files}", "copy them yourself")
    return Finding(name, "ok", "in the data directory, so in every backup")


_FACT_CHECKS: tuple[Callable[[ServerFacts], Finding], ...] = (
    _version,
    _wal_level,
    _wal_senders,
    _full_page_writes,
    _fsync,
    _incrementals,
    _data_checksums,
    _config_files,
)


def _clock(sql: Sql) -> Finding:
    before = utc_now()
    ((there,),) = sql.execute("SELECT clock_timestamp()").fetchall()
    after = utc_now()
    # The answer was given somewhere between the question and its arrival.
    apart = max((before - there).total_seconds(), (there - after).total_seconds(), 0.0)
    if apart > MAX_CLOCK_DIFFERENCE:
        return Finding(
            "clock",
            "warning",
            f"the server's clock and this host's are {apart:.0f} s apart",
            "run an NTP client on both",
        )
    return Finding("clock", "ok", "agrees with this host's")


def check_repository(settings: RepositorySettings, facts: ServerFacts | None) -> list[Finding]:
    """Whether a repository is there, opens with its key, can be written, and has room."""
    name = f"repository {settings.name}"
    try:
        store = open_store(settings.url)
        if not exists(store):
            raise RepositoryError(
                f"there is no repository at {settings.url}", hint="pgkeep init DSN --repository URL makes one"
            )
        repository = Repository.open(store, read_secret(settings.key))
        _try_writing(repository)
    except PgkeepError as error:
        return [failed(name, error)]
    sealing = "encrypted" if repository.encrypted else "not encrypted"
    if not repository.keys.opens_boxes:
        sealing = "encrypted in sealed mode: this key adds and does not read data or WAL back"
    opens = Finding(name, "ok", f"{settings.url} opens and can be written, format {repository.format}, {sealing}")
    return [opens, _room(f"room in {settings.name}", repository, facts)]


def _try_writing(repository: Repository) -> None:
    with repository.lease(f"check-{os.getpid()}") as lease:
        if lease.took_over:
            # Whoever removes a dead writer's lease is the only one to know that it may have left packs behind.
            repository.adopt_orphans()


def _room(name: str, repository: Repository, facts: ServerFacts | None) -> Finding:
    free = repository.store.free_bytes()
    if free is None:
        return Finding(name, "ok", "the store has no limit")
    if facts is None or facts.size is None:
        return Finding(name, "unknown", f"{format_size(free)} free; the cluster's size is not known")
    text = f"{format_size(free)} free for a cluster of {format_size(facts.size)}"
    if free >= facts.size:
        return Finding(name, "ok", text)
    remedy = f"free room at {repository.store.url}, or give the repository another place"
    is_first = facts.system_identifier not in repository.clusters()
    if is_first and free < facts.size // EXPECTED_COMPRESSION:
        return failed(name, StoreError(f"{text}: the first backup will not fit", hint=remedy))
    return Finding(name, "warning", text, remedy)
