"""Where drills restore to, and who is at it: a directory for each, which goes with its drill, or with the next one after a kill.

A drill holds an exclusive lock (flock(2)) on its directory's file ``lock`` for as long as it lives; the kernel lets go of it however the
process ends. So a directory whose lock can be had belongs to a drill that died: servers that run there are killed, and it is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pgkeep.config import Cluster
from pgkeep.errors import ConfigError, TargetError
from pgkeep.postgres.account import can_run, give_to, server_account
from pgkeep.postgres.dsn import endpoint_of
from pgkeep.postgres.running import locate_server, postmasters
from pgkeep.repository import Repository
from pgkeep.units import utc_now

__all__ = ["DrillPlace", "clear_dead_drills", "drill_place", "refuse_source"]

_LOCK, _FACTS, _REGISTER = "lock", "drill.json", ".register"
_DRILL = re.compile(r"[0-9]{8}T[0-9]{6}\.[0-9]{3}Z-[0-9a-f]{8}")
_SOCKETS = "pgkeep-drill-"
_PATIENCE = 30.0
"""Seconds for a server that was killed to be gone; only an uninterruptible disk takes longer."""


@dataclass(frozen=True)
class DrillPlace:
    """One drill's directories. ``sockets`` has a short path, as sockets need; none but the server's account can enter it."""

    root: Path
    sockets: Path

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.root / "data"

    def tablespace(self, oid: int) -> Path:
        """Where a tablespace goes."""
        return self.root / f"tablespace-{oid}"


@contextmanager
def drill_place(
    directory: Path, drill: str, cluster: str, *, keep: bool, note: Callable[[str], None]
) -> Iterator[DrillPlace]:
    """A place for a drill, gone at the end with all that runs there; what dead drills have left is cleared first.

    ``keep``: the data stays, and nobody clears it away; its server does not. Raises TargetError.
    """
    _make_directory(directory)
    clear_dead_drills(directory, note)
    root = directory / drill
    place = DrillPlace(root, Path(tempfile.gettempdir()) / f"{_SOCKETS}{drill.rpartition('-')[2]}")
    facts = {
        "drill": drill,
        "cluster": cluster,
        "pid": os.getpid(),
        "begun": utc_now().isoformat(),
        "sockets": str(place.sockets),
    }
    with ExitStack() as stack:
        with _registering(directory):
            root.mkdir(mode=0o755)
            root.chmod(0o755)
            lock = stack.enter_context((root / _LOCK).open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_facts(root, {**facts, "kept": False})
        try:
            place.sockets.mkdir(mode=0o700)
            give_to(server_account(), place.sockets)
            yield place
        finally:
            kill_servers(place.data)
            shutil.rmtree(place.sockets, ignore_errors=True)
            if keep and place.data.exists():
                _write_facts(root, {**facts, "kept": True})
            else:
                _remove(root)


def clear_dead_drills(directory: Path, note: Callable[[str], None]) -> list[str]:
    """Kill and remove what drills left that were killed; returns their ids. A drill that is at work is left alone."""
    cleared = []
    with ExitStack() as stack:
        with _registering(directory):
            dead = [root for root in sorted(directory.iterdir()) if root.is_dir() and _take_over(root, stack)]
        for root in dead:
            sockets = str(_facts(root).get("sockets", ""))
            kill_servers(root / "data")
            if Path(sockets).name.startswith(_SOCKETS):
                shutil.rmtree(sockets, ignore_errors=True)
            _remove(root)
            cleared.append(root.name)
            note(f"drill {root.name} was killed; what it left running and on disk is cleared away")
    return cleared


def kill_servers(data_directory: Path) -> None:
    """Kill every server that works in a drill's own directory, and wait until they are gone. Raises TargetError where they stay."""
    deadline = time.monotonic() + _PATIENCE
    number = signal.SIGQUIT
    while found := postmasters(data_directory):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if time.monotonic() > deadline:
            raise TargetError(
                f"processes {', '.join(map(str, found))} of a drill in {data_directory} cannot be killed",
                hint="see what they wait for: ps -o pid,stat,wchan,args -p " + ",".join(map(str, found)),
            )
        time.sleep(0.05)
        if time.monotonic() > deadline - _PATIENCE / 2:
            number = signal.SIGKILL


def refuse_source(cluster: Cluster, repositories: Sequence[Repository], *, ask: bool = True) -> None:
    """A drill may not come near what it is to prove; ``ask`` the live server where its data is. Raises ConfigError where its directory or its port are the source's own."""
    drills = cluster.drill_directory.resolve()
    endpoint = endpoint_of(cluster.dsn)
    if endpoint.port == str(cluster.drill.port):
        raise ConfigError(
            f"drills of cluster {cluster.name} would use port {cluster.drill.port}, which is the source's own",
            hint=f"give them another one: [cluster.{cluster.name}] drill = {{ port = {cluster.drill.port + 1} }}",
        )
    for place in _source_places(cluster, ask=ask):
        if drills == place or place in drills.parents or drills in place.parents:
            raise ConfigError(
                f"drills in {drills} would lie with the source's own data in {place}",
                hint=f'name another place: [cluster.{cluster.name}] drill = {{ directory = "/srv/drills" }}',
            )
    for repository in repositories:
        scheme, _, path = repository.store.url.partition("://")
        root = Path(unquote(path)).resolve()
        if scheme == "file" and (drills == root or root in drills.parents or drills in root.parents):
            raise ConfigError(
                f"drills in {drills} would lie with the repository in {root}",
                hint=f'name another place: [cluster.{cluster.name}] drill = {{ directory = "/srv/drills" }}',
            )


def _source_places(cluster: Cluster, *, ask: bool) -> list[Path]:
    """The source's data directory and tablespaces, as far as anybody knows them; on another machine they do no harm."""
    data = cluster.server.data_directory
    if data is None:
        if not ask:
            return []
        try:
            data = locate_server(cluster.dsn, None).data_directory
        except ConfigError:
            return []
    data = data.resolve()
    links = data / "pg_tblspc"
    try:
        return [data, *(link.resolve() for link in links.iterdir() if link.is_symlink())]
    except OSError:
        return [data]


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TargetError(
            f"{directory}, where drills restore to, cannot be made: {error.strerror}",
            hint='name another place: drill = { directory = "/srv/drills" }',
        ) from None
    account = server_account()
    if account is not None and not can_run(account, ["test", "-x", directory]):
        raise TargetError(
            f"PostgreSQL's account {account.name} cannot enter {directory}, where drills restore to",
            hint=f"chmod o+x {directory} and the directories above it, or name another: drill = {{ directory = … }}",
        )


@contextmanager
def _registering(directory: Path) -> Iterator[None]:
    """Nobody takes a drill for dead that is just being begun."""
    with (directory / _REGISTER).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _take_over(root: Path, stack: ExitStack) -> bool:
    """Whether a directory's drill is dead and not to be kept; its lock is held until the stack ends then."""
    if _DRILL.fullmatch(root.name) is None:
        return False
    if not (root / _LOCK).exists():
        # killed between two steps of its beginning, or of its end
        return not any(root.iterdir())
    try:
        lock = stack.enter_context((root / _LOCK).open("r+"))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return False
    return not _facts(root).get("kept")


def _facts(root: Path) -> dict[str, object]:
    try:
        found = json.loads((root / _FACTS).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_facts(root: Path, facts: dict[str, object]) -> None:
    new = root / f"{_FACTS}.new"
    new.write_text(json.dumps(facts) + "\n")
    new.replace(root / _FACTS)


def _remove(root: Path) -> None:
    """The lock goes last: a removal that breaks off is gone on with by the next drill."""
    for path in root.iterdir():
        if path.name == _LOCK:
            continue
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    (root / _LOCK).unlink(missing_ok=True)
    root.rmdir()
