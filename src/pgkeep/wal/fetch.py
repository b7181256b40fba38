"""`restore_command`: its text, its exit codes, and a file brought to its place without a prefetcher.

PostgreSQL (src/backend/access/transam/xlogarchive.c, RestoreArchivedFile; src/common/wait_error.c) takes 0 for "there it is",
1 to 125 for "absent", which ends recovery and may promote, and all above, or a death by signal, for a failure that stops the
server. So 1 is said only of what is absent from every repository, and an error has 200 more than its usual exit code.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pgkeep.errors import Interrupted, PgkeepError
from pgkeep.wal import thin_fetch
from pgkeep.wal.fetch_files import FileFolder
from pgkeep.wal.fetch_sources import Fetched, WalSources

__all__ = [
    "ABSENT",
    "ERROR_BASE",
    "PREFETCH_FOLDER",
    "SOCKET",
    "Answer",
    "answer_of",
    "exit_code_of",
    "fetch_file",
    "restore_command",
]

PREFETCH_FOLDER = "pgkeep.prefetch"
"""In ``pg_wal``: segments that are ready, the prefetcher's socket, lock and log."""

SOCKET = f"pg_wal/{PREFETCH_FOLDER}/socket"
"""Where a prefetcher listens, seen from the data directory, which is where `restore_command` runs."""

ERROR_BASE = 200


class Answer(NamedTuple):
    """What a request for a file came to: an exit code for PostgreSQL, and words for its log."""

    code: int
    message: str = ""


ABSENT = Answer(1)


def exit_code_of(error: BaseException) -> int:
    """Above 125 for every error: 200 and its own exit code; 130 and 143 stay."""
    code = error.exit_code if isinstance(error, PgkeepError) else PgkeepError.exit_code
    return code if code > 125 else ERROR_BASE + code


def answer_of(error: Exception) -> Answer:
    """An error as an answer."""
    if isinstance(error, PgkeepError):
        hint = f" (hint: {error.hint})" if error.hint else ""
        return Answer(exit_code_of(error), f"{error}{hint}")
    return Answer(exit_code_of(error), f"unexpected {type(error).__name__}: {error}")


def restore_command(fallback: Sequence[str]) -> str:
    """The value of `restore_command` that asks the prefetcher by the thin client.

    ``fallback`` is the command line of the full program, absolute, up to where NAME and PATH follow (``[…, "wal", "fetch"]``);
    it does the work where no prefetcher answers. Where it is empty, that is an error. The value has still to be quoted for
    the file that it goes into (`pgkeep.postgres.recovery_settings.quote_setting`).
    """
    thin = [sys.executable, "-I", "-S", os.path.abspath(thin_fetch.__file__), SOCKET]
    # without exec, the shell would stay between the server and the client, and so between a signal and its target
    return f'exec {_quoted(thin)} %f "%p"' + (f" {_quoted(fallback)}" if fallback else "")


def _quoted(words: Sequence[str]) -> str:
    return shlex.join(words).replace("%", "%%")


def fetch_file(
    sources: WalSources, name: str, path: Path, still_wanted: Callable[[], bool] = lambda: True
) -> Fetched | None:
    """Bring a file to its place; None, and nothing is touched, where it is absent from every repository.

    ``still_wanted`` is asked last: a server that was stopped and started again must not find the file of an older request.
    Raises what `WalSources.fetch` raises, and Interrupted where it is not wanted any more.
    """
    folder = FileFolder(path.absolute().parent)
    folder.remove_leftovers()
    fetched = sources.fetch(name, folder)
    if fetched is None:
        return None
    if not still_wanted():
        fetched.file.discard()
        raise Interrupted("who asked for the file is gone", signal_number=signal.SIGTERM)
    fetched.file.move(folder, path.name)
    return fetched
