"""Running a PostgreSQL server on a data directory: a throw-away one for tests, demo and drills, or a restored one.

The server listens on a Unix socket in a directory of its own, and on request on 127.0.0.1; never on another address, whatever
the settings in the data directory say. It runs as the account of ``pgkeep.postgres.account``, in a session of its own, so that a
Ctrl-C meant for us does not stop it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self

from pgkeep.errors import RecoveryError, ServerError, TargetError
from pgkeep.postgres.account import ServerAccount, give_to, server_account
from pgkeep.postgres.running import postmasters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from pgkeep.postgres.binaries import ServerBinaries

__all__ = ["Server", "StopMode", "ThrowawayServer"]

StopMode = Literal["smart", "fast", "immediate"]
LOOPBACK: Final = "127.0.0.1"
# sockaddr_un.sun_path holds 107 bytes on Linux, of which "/.s.PGSQL.65535" takes 15.
LONGEST_SOCKET_DIRECTORY: Final = 92
_STOP_SIGNALS: Final = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_POLL_SECONDS: Final = 0.02
# Lines of postmaster.pid, from 0 (src/include/utils/pidfile.h counts from 1).
_PID_LINE, _STATUS_LINE = 0, 7
_FIRST_PROCESS: Final = "1"
"""What a postmaster in a container knows itself by."""


class Server:
    """One PostgreSQL server on one data directory.

    As a context manager it stops the server at the end. ``detach`` lets it live on after us instead.
    """

    def __init__(
        self,
        data_directory: Path,
        binaries: ServerBinaries,
        *,
        socket_directory: Path | None = None,
        port: int = 5432,
        loopback: bool = False,
        log_file: Path | None = None,
    ) -> None:
        """Nothing is touched yet.

        ``socket_directory`` None: a fresh one under /tmp with each start, removed by stop. ``log_file`` None: beside the data
        directory, with ``.log`` appended to its name. ``loopback``: listen on 127.0.0.1 at ``port`` too.
        """
        self.data_directory = data_directory.absolute()
        self.binaries = binaries
        self.account: ServerAccount | None = server_account()
        self.port = port
        self.loopback = loopback
        self.log_file = log_file or self.data_directory.with_name(self.data_directory.name + ".log")
        self.socket_directory = socket_directory
        self._owns_socket_directory = socket_directory is None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop("immediate" if error else "fast")

    def initdb(
        self,
        *,
        checksums: bool = True,
        wal_segment_size: int = 16,
        locale: str = "C.UTF-8",
        user: str = "postgres",
        extra: Sequence[str] = (),
    ) -> None:
        """Create the data directory, encoded in UTF-8, with trust authentication; ``wal_segment_size`` is in MiB.

        It is not fsynced: such a cluster is for throwing away. Raises ServerError with initdb's own words.
        """
        self.data_directory.mkdir(mode=0o700, exist_ok=True)
        give_to(self.account, self.data_directory)
        switch = ["--data-checksums"] if checksums else ["--no-data-checksums"] if self.binaries.major >= 18 else []
        answer = self.binaries.run(
            "initdb",
            f"--pgdata={self.data_directory}",
            f"--username={user}",
            f"--wal-segsize={wal_segment_size}",
            f"--locale={locale}",
            "--encoding=UTF8",
            "--auth=trust",
            "--no-sync",
            *switch,
            *extra,
        )
        if answer.returncode != 0:
            raise ServerError(f"initdb failed for {self.data_directory}: {answer.stderr.strip()}")

    def start(
        self,
        settings: Mapping[str, str | int | bool] | None = None,
        *,
        wait: bool = True,
        timeout: float | None = 60,
    ) -> None:
        """Start the server; ``settings`` override those of the data directory for this run.

        With ``wait``, return once it accepts connections (a standby or a recovering server: read-only ones); see ``wait_ready``.
        Raises TargetError where a server runs here already, or where the socket directory's path is too long.
        """
        if self.is_running:
            raise TargetError(
                f"a server is already running on {self.data_directory}", hint="stop it first: pg_ctl stop"
            )
        sockets = self._prepare_socket_directory()
        forced = {
            "listen_addresses": LOOPBACK if self.loopback else "",
            "port": self.port,
            "unix_socket_directories": str(sockets),
            "logging_collector": False,
            "log_destination": "stderr",
        }
        options = [f"--{name}={_setting(value)}" for name, value in {**(settings or {}), **forced}.items()]
        with self.log_file.open("ab") as log:
            give_to(self.account, self.log_file)
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self.binaries.command("postgres", "-D", self.data_directory, *options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self.binaries.identity(),
            )
        if wait:
            self.wait_ready(timeout)

    def wait_ready(self, timeout: float | None = 60) -> None:
        """Return once the server accepts connections, at least read-only ones.

        Raises RecoveryError with the end of the log where the server ends instead, or is not ready after ``timeout`` seconds
        (None: any time); it is left running then.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.status() not in ("ready", "standby"):
            if not self.is_running:
                raise RecoveryError(self._with_log(f"the server on {self.data_directory} did not start"))
            if deadline is not None and time.monotonic() > deadline:
                raise RecoveryError(
                    self._with_log(f"the server on {self.data_directory} was not ready after {timeout:.0f} s")
                )
            time.sleep(_POLL_SECONDS)

    def status(self) -> str | None:
        """``starting``, ``ready`` (accepts connections), ``standby`` (recovers, accepts none), ``stopping``; None: not running.

        From ``postmaster.pid``, as pg_ctl does it (src/bin/pg_ctl/pg_ctl.c, wait_for_postmaster_start).
        """
        if not self.is_running:
            return None
        lines = self._pid_file()
        # A file that another server left behind, or that ours has not finished, says nothing yet.
        known_as = _FIRST_PROCESS if self.binaries.in_container else str(self.process_id)
        if len(lines) <= _STATUS_LINE or lines[_PID_LINE].strip() != known_as:
            return "starting"
        return lines[_STATUS_LINE].strip() or "starting"

    @property
    def process_id(self) -> int | None:
        """Of the postmaster that runs on the data directory, whoever started it; None where none runs."""
        if self.binaries.in_container:
            # our child is the engine's client
            return next(iter(postmasters(self.data_directory)), None)
        if self._process is not None:
            return self._process.pid if self._process.poll() is None else None
        try:
            pid = int(self._pid_file()[_PID_LINE])
            # A postmaster's working directory is its data directory: a number that another process took over is not ours.
            at_home = Path(f"/proc/{pid}/cwd").readlink() == self.data_directory.resolve()
        except (OSError, ValueError, IndexError):
            return None
        return pid if at_home else None

    @property
    def is_running(self) -> bool:
        """Whether a postmaster runs on the data directory, ready or not, whoever started it."""
        if self.binaries.in_container and self._process is not None and self._process.poll() is None:
            # its container is being made, or is not gone yet
            return True
        return self.process_id is not None

    def stop(self, mode: StopMode = "fast", timeout: float = 120) -> None:
        """Stop the server, by its process id, and wait for its end; nothing to do where none runs.

        ``fast`` ends sessions and writes a checkpoint, ``smart`` waits for sessions, ``immediate`` leaves crash recovery to the
        next start. Raises ServerError after ``timeout`` seconds; the server is still stopping then.
        """
        deadline = time.monotonic() + timeout
        while (pid := self.process_id) is None and self.is_running and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)  # its container is being made
        if pid is not None:
            os.kill(pid, _STOP_SIGNALS[mode])
        self._wait_for_end(timeout)
        self._forget()

    def kill(self) -> None:
        """Crash the server: SIGKILL for the postmaster and its children, and wait until all are gone, so that it can restart."""
        pid = self.process_id
        if pid is not None:
            os.kill(pid, signal.SIGSTOP)  # so that it starts no child that we do not see
            children = _children(pid)
            os.kill(pid, signal.SIGKILL)
            for child in children:
                _send(child, signal.SIGKILL)
            self._wait_for_end(30)
            while any(_alive(child) for child in children):
                time.sleep(_POLL_SECONDS)
        self._forget()

    @property
    def log_start(self) -> int:
        """Where in the log file the words of the latest start begin, in bytes."""
        return self._log_start

    def detach(self) -> None:
        """Let the server live on after us: the context manager no longer stops it."""
        if self._process is not None:
            # Popen warns of a child that it never saw end; this one is meant to outlive us.
            self._process.returncode = 0
        self._process = None

    def dsn(self, dbname: str = "postgres", user: str = "postgres", **parameters: str) -> str:
        """A libpq connection string that reaches this server by its socket; ``parameters`` override and add to it."""
        words = {"host": str(self.socket_directory or ""), "port": str(self.port), "dbname": dbname, "user": user}
        return " ".join(f"{name}={_quoted(value)}" for name, value in {**words, **parameters}.items())

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that the server logged since this object started it."""
        try:
            with self.log_file.open("rb") as log:
                log.seek(self._log_start)
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def _with_log(self, message: str) -> str:
        return f"{message}; the end of {self.log_file}:\n{self.log_tail()}"

    def _pid_file(self) -> list[str]:
        try:
            return (self.data_directory / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _prepare_socket_directory(self) -> Path:
        if self.socket_directory is None:
            self.socket_directory = Path(tempfile.mkdtemp(prefix="pgkeep-"))
            give_to(self.account, self.socket_directory)
        if len(os.fsencode(self.socket_directory)) > LONGEST_SOCKET_DIRECTORY:
            raise TargetError(
                f"the path of the socket directory {self.socket_directory} is longer than {LONGEST_SOCKET_DIRECTORY} bytes",
                hint="name a shorter one, such as a directory in /tmp",
            )
        return self.socket_directory

    def _wait_for_end(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self.is_running:
            if time.monotonic() > deadline:
                raise ServerError(
                    self._with_log(f"the server on {self.data_directory} did not stop in {timeout:.0f} s")
                )
            time.sleep(_POLL_SECONDS)

    def _forget(self) -> None:
        self._process = None
        if self._owns_socket_directory and self.socket_directory is not None:
            shutil.rmtree(self.socket_directory, ignore_errors=True)
            self.socket_directory = None


class ThrowawayServer(Server):
    """A server in a fresh temporary directory, which goes away with it: for tests, the demo and drills."""

    def __init__(self, binaries: ServerBinaries, *, loopback: bool = False, parent: Path | None = None) -> None:
        """Make ``directory`` below ``parent`` (default: the system's temporary directory), which the account must be able to enter."""
        self.directory = Path(tempfile.mkdtemp(prefix="pgkeep-", dir=parent))
        sockets = self.directory / "s"
        sockets.mkdir(mode=0o700)
        give_to(server_account(), self.directory, sockets)
        super().__init__(
            self.directory / "data",
            binaries,
            socket_directory=sockets,
            port=_free_port() if loopback else 5432,
            loopback=loopback,
            log_file=self.directory / "server.log",
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def configure(self, text: str = "", *, hba: str | None = None) -> None:
        """Append lines to ``postgresql.conf``, and replace ``pg_hba.conf`` where ``hba`` is given; the next start reads them."""
        with (self.data_directory / "postgresql.conf").open("a") as configuration:
            configuration.write(f"{text}\n")
        if hba is not None:
            (self.data_directory / "pg_hba.conf").write_text(hba)

    def remove(self) -> None:
        """Stop the server and delete its directory."""
        self.stop("immediate")
        shutil.rmtree(self.directory)


def _setting(value: str | int | bool) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _quoted(value: str) -> str:
    """A value of a connection string (PostgreSQL documentation, "Connection Strings")."""
    if value and not set(value) & set(" '\\\t\n"):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the program's name: state, parent, ...; empty where the process is gone (proc(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _children(pid: int) -> list[int]:
    candidates = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [candidate for candidate in candidates if _stat_fields(candidate)[1:2] == [str(pid)]]


def _alive(pid: int) -> bool:
    return _stat_fields(pid)[:1] not in ([], ["Z"])
