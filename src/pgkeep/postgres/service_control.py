"""Stopping and starting an operator's own server on this machine: a systemd unit, commands, or ``pg_ctl``.

Whoever does it, the end is the same: a server counts as stopped when no process of it works in its data directory any more, and
as started when its ``postmaster.pid`` says that it accepts connections.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pgkeep.errors import ConfigError, ServerError
from pgkeep.postgres.account import ServerAccount, give_to, process_identity, run_as
from pgkeep.postgres.binaries import ServerBinaries, find_binaries
from pgkeep.postgres.running import owner_of, postmasters, server_status

__all__ = ["ServiceControl", "started_with"]

_POLL = 0.05
_COMMAND_LIMIT = 900.0
"""Seconds for a command to come back: systemd gives a start 90 s unless told otherwise, and a stop may write a checkpoint."""
_GRACE = 3.0
"""Seconds from the end of a start command to the first sight of a server."""
_QUOTED_WORD = re.compile(r'"([^"]*)"')
_UNIT = re.compile(r"[^/]+\.service$", re.MULTILINE)


class ServiceControl:
    """How one server is stopped and started.

    ``unit`` is systemd's; ``start`` and ``stop`` are commands for the shell. With neither it is ``pg_ctl``, as the owner of the
    data directory, with the options that the server was last started with, and ``log_file`` for its first words. A running
    server that is the main process of a systemd unit is controlled through that unit even where nobody names it: systemd
    would start it again behind our back. Raises ConfigError where only one of the commands is given.
    """

    def __init__(
        self,
        data_directory: Path,
        *,
        major: int,
        unit: str | None = None,
        start: str | None = None,
        stop: str | None = None,
        options: Sequence[str] | None = None,
        log_file: Path | None = None,
    ) -> None:
        if (start is None) != (stop is None):
            raise ConfigError(
                f"server.{'stop' if stop else 'start'} is set, and its opposite is not",
                hint="set server.start and server.stop, or server.unit, or neither",
            )
        self.data_directory = data_directory
        self._major = major
        self._start, self._stop = start, stop
        pid = server_status(data_directory).pid
        self.unit = unit if unit or start or pid is None else _unit_of(pid)
        self.options = list(started_with(data_directory) if options is None else options)
        self.log_file = log_file or (pid and _log_of(pid)) or data_directory.with_name(data_directory.name + ".log")
        self._binaries = _programs_of(pid, major) if pid is not None else None
        self._log_start = 0

    @property
    def stop_command(self) -> str:
        """What stops it, as one would type it."""
        return self._shown("stop", self._stop)

    @property
    def start_command(self) -> str:
        """What starts it, as one would type it."""
        return self._shown("start", self._start)

    def stop(self, timeout: float = 600) -> None:
        """Stop the server and wait until its last process is gone; nothing to do where none runs.

        Raises ServerError with the command's own words, or after ``timeout`` seconds; it may still be stopping then.
        """
        if server_status(self.data_directory).pid is not None:
            self._run("stop", self._stop)
        deadline = time.monotonic() + timeout
        while postmasters(self.data_directory):
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the server on {self.data_directory} did not stop in {timeout:.0f} s: {self.stop_command}",
                    hint=f"its log says why; at once, without a checkpoint: pg_ctl -D {self.data_directory} stop -m immediate",
                )
            time.sleep(_POLL)

    def start(self, timeout: float = 600) -> None:
        """Start the server and wait until it accepts connections, at least read-only ones.

        Raises ServerError where it ends instead, or is not ready after ``timeout`` seconds.
        """
        self._run("start", self._start)
        begun = time.monotonic()
        while (status := server_status(self.data_directory)).state not in {"ready", "standby"}:
            waited = time.monotonic() - begun
            if status.pid is None and waited > _GRACE:
                raise ServerError(
                    f"the server on {self.data_directory} did not start: {self.start_command}{self._log_tail()}",
                    hint="its log says why" + (f": journalctl -u {self.unit}" if self.unit else ""),
                )
            if waited > timeout:
                raise ServerError(
                    f"the server on {self.data_directory} was not ready after {timeout:.0f} s: {self.start_command}",
                    hint="it may still be starting; its log says what it does",
                )
            time.sleep(_POLL)

    def _run(self, verb: str, command: str | None) -> None:
        words, account = self._words(verb, command), None
        if command is None and self.unit is None:
            account = _acting_as(self.data_directory)
            if verb == "start" and not self.log_file.exists():
                self.log_file.touch(0o600)
                give_to(account, self.log_file)
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        try:
            answer = _call(words, account)
        except OSError as error:
            raise ServerError(
                f"{words[0]} cannot be run: {error.strerror}",
                hint="set server.start and server.stop to commands that can",
            ) from None
        except subprocess.TimeoutExpired:
            raise ServerError(
                f"the command to {verb} the server did not end in {_COMMAND_LIMIT:.0f} s: {shlex.join(words)}",
                hint="one that starts a server must not wait for the server's end",
            ) from None
        if answer:
            raise ServerError(
                f"the command to {verb} the server failed: {self._shown(verb, command)}: {answer}{self._log_tail()}",
                hint="run it by hand to see what it wants"
                + ("; without root it may need sudo" if self.unit and os.geteuid() != 0 else ""),
            )

    def _words(self, verb: str, command: str | None) -> list[str]:
        if command is not None:
            return ["/bin/sh", "-c", command]
        if self.unit is not None:
            return ["systemctl", verb, self.unit]
        binaries = self._binaries or find_binaries(self._major)
        words = [str(binaries.path("pg_ctl")), verb, "-D", str(self.data_directory), "-s", "-W"]
        if verb == "stop":
            return [*words, "-m", "fast"]
        words += ["-l", str(self.log_file)]
        return [*words, "-o", shlex.join(self.options)] if self.options else words

    def _shown(self, verb: str, command: str | None) -> str:
        if command is not None:
            return command
        words = shlex.join(self._words(verb, command))
        owner = owner_of(self.data_directory)
        return words if self.unit or owner is None or owner.uid == os.geteuid() else f"sudo -u {owner.name} {words}"

    def _log_tail(self) -> str:
        try:
            with self.log_file.open("rb") as log:
                log.seek(self._log_start)
                lines = log.read().decode(errors="replace").splitlines()[-10:]
        except OSError:
            return ""
        return f"\nthe end of {self.log_file}:\n" + "\n".join(lines) if lines else ""


def started_with(data_directory: Path) -> list[str]:
    """The options that the server was last started with, but for the data directory's name; empty where nobody knows.

    From ``postmaster.opts``: the program, then each word in double quotes (src/backend/postmaster/postmaster.c,
    CreateOptsFile).
    """
    try:
        words = _QUOTED_WORD.findall((data_directory / "postmaster.opts").read_text(errors="surrogateescape"))
    except OSError:
        return []
    options: list[str] = []
    skip = False
    for word in words:
        if not skip and not word.startswith("-D"):
            options.append(word)
        skip = word == "-D"
    return options


def _acting_as(data_directory: Path) -> ServerAccount | None:
    """Whom ``pg_ctl`` runs as: None for ourselves. Raises ServerError where we may not."""
    owner = owner_of(data_directory)
    if owner is None or owner.uid == os.geteuid():
        return None
    if os.geteuid() != 0 or owner.uid == 0:
        raise ServerError(
            f"{data_directory} belongs to {owner.name}, and only that account can control its server",
            hint=f"run pgkeep as {owner.name} or as root" if owner.uid else "a server does not run as root: chown it",
        )
    return owner


def _call(words: list[str], account: ServerAccount | None) -> str:
    """Run a command; what it said where it failed, or nothing.

    Its output goes through a file: a server that it leaves behind would keep a pipe open.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
            timeout=_COMMAND_LIMIT,
            start_new_session=True,
            **process_identity(account),
        )
        if process.returncode == 0:
            return ""
        output.seek(0)
        said = " ".join(output.read().decode(errors="replace").split())
        return f"exit code {process.returncode}" + (f", {said}" if said else "")


def _unit_of(pid: int) -> str | None:
    """The systemd unit whose main process this is."""
    try:
        match = _UNIT.search(Path(f"/proc/{pid}/cgroup").read_text())
    except OSError:
        return None
    if match is None:
        return None
    try:
        answer = run_as(None, ["systemctl", "show", "--property=MainPID", "--value", match[0]], timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return match[0] if answer.stdout.strip() == str(pid) else None


def _log_of(pid: int) -> Path | None:
    """The file that a running server's standard error goes to."""
    try:
        link = Path(f"/proc/{pid}/fd/2")
        return link.readlink() if stat.S_ISREG(link.stat().st_mode) and link.readlink().exists() else None
    except OSError:
        return None


def _programs_of(pid: int, major: int) -> ServerBinaries | None:
    """The installation that a running server comes from, which may not be the first that is found."""
    try:
        directory = Path(f"/proc/{pid}/exe").readlink().parent
    except OSError:
        return None
    return ServerBinaries(directory, major * 10000) if (directory / "pg_ctl").is_file() else None
