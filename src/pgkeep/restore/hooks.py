"""What an operator wants done on a recovered server before anybody else can reach it: ``[[cluster.NAME.after_restore]]``.

Hooks run in the order of the configuration, one at a time, while the server listens on a private socket only. The first that
fails ends the run: nothing of what comes after it, and no client, may count on it. What they say goes to a log of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgkeep.config import RestoreHook
from pgkeep.errors import RecoveryError
from pgkeep.postgres.account import process_identity
from pgkeep.progress import Progress
from pgkeep.units import format_duration, format_time, utc_now

__all__ = ["HookContext", "HookError", "HookResult", "run_hooks"]

_SHOWN_ROWS = 20
_TAIL = 2000


class HookError(RecoveryError):
    """A hook failed; ``hook`` is its name."""

    def __init__(self, message: str, *, hint: str | None = None, hook: str = "") -> None:
        super().__init__(message, hint=hint)
        self.hook = hook


@dataclass(frozen=True, slots=True)
class HookContext:
    """What hooks run on: ``dsn`` reaches the server as a superuser, ``facts`` become variables ``PGKEEP_<NAME>`` of commands.

    ``log_file`` takes all that hooks say; it is appended to.
    """

    dsn: str
    log_file: Path
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HookResult:
    """A hook that went well."""

    name: str
    kind: Literal["sql", "command"]
    seconds: float


def run_hooks(
    hooks: Sequence[RestoreHook],
    context: HookContext,
    progress: Progress,
    *,
    done: Collection[str] = (),
    finished: Callable[[HookResult], None] = lambda _result: None,
) -> list[HookResult]:
    """Run all hooks but those named in ``done``; ``finished`` is called after each. Raises HookError at the first that fails."""
    results = []
    for hook in hooks:
        if hook.name in done:
            continue
        progress.phase(f"hook {hook.name}")
        begun = time.monotonic()
        with context.log_file.open("ab", buffering=0) as log:
            os.fchmod(log.fileno(), 0o600)
            log.write(f"-- {format_time(utc_now())} hook {hook.name}\n".encode())
            if hook.sql is not None:
                _run_sql(hook, hook.sql, context, log)
            else:
                assert hook.command is not None
                _run_command(hook, hook.command, context, log)
            result = HookResult(hook.name, "sql" if hook.sql is not None else "command", time.monotonic() - begun)
            log.write(f"-- done in {format_duration(result.seconds)}\n".encode())
        results.append(result)
        finished(result)
    return results


def _run_sql(hook: RestoreHook, sql: str, context: HookContext, log: BinaryIO) -> None:
    """One or several statements; several are one transaction, as PostgreSQL has it for a query of many."""

    def notice(diagnostic: psycopg.errors.Diagnostic) -> None:
        log.write(f"{diagnostic.severity}: {diagnostic.message_primary}\n".encode())

    limit = f"-c statement_timeout={round(hook.timeout * 1000)}"
    try:
        with psycopg.connect(
            make_conninfo(
                context.dsn, dbname=hook.database, options=limit, application_name=f"pgkeep hook {hook.name}"
            ),
            autocommit=True,
        ) as connection:
            connection.add_notice_handler(notice)
            cursor = connection.execute(sql.encode())
            while True:
                log.write(f"{cursor.statusmessage or ''}\n".encode())
                if cursor.description:
                    rows = ("\t".join(map(str, row)) for row in cursor.fetchmany(_SHOWN_ROWS))
                    log.writelines(f"{row}\n".encode("utf-8", "replace") for row in rows)
                if not cursor.nextset():
                    break
    except psycopg.errors.QueryCanceled:
        raise _failed(hook, f"was not done after {format_duration(hook.timeout)}", context, log) from None
    except psycopg.Error as error:
        raise _failed(hook, f"failed: {' '.join(str(error).split())}", context, log) from None


def _run_command(hook: RestoreHook, command: str, context: HookContext, log: BinaryIO) -> None:
    begun = os.lseek(log.fileno(), 0, os.SEEK_END)
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        **process_identity(None, _environment(hook, context)),
    )
    try:
        code = process.wait(hook.timeout)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise _failed(hook, f"was not done after {format_duration(hook.timeout)}", context, log) from None
        raise
    if code != 0:
        how = f"ended with {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
        said = _said(context.log_file, begun)
        raise _failed(hook, f"{how}{': ' + said if said else ''}", context, log)


def _environment(hook: RestoreHook, context: HookContext) -> dict[str, str]:
    """The variables of libpq, so that a plain ``psql`` in a command reaches the recovered server, and what is known of it."""
    words = conninfo_to_dict(context.dsn)
    facts = {f"PGKEEP_{name.upper()}": value for name, value in context.facts.items()}
    return {
        "PGHOST": str(words.get("host") or ""),
        "PGPORT": str(words.get("port") or "5432"),
        "PGUSER": str(words.get("user") or ""),
        "PGDATABASE": hook.database,
        "PGKEEP_HOOK": hook.name,
        **facts,
    }


def _said(log_file: Path, begun: int) -> str:
    with log_file.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(begun, size - _TAIL))
        return " ".join(log.read().decode("utf-8", "replace").split())


def _failed(hook: RestoreHook, what: str, context: HookContext, log: BinaryIO) -> HookError:
    log.write(f"-- {what}\n".encode("utf-8", "replace"))
    return HookError(f"after_restore hook {hook.name!r} {what}", hint=f"its log: {context.log_file}", hook=hook.name)
