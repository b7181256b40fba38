"""A service in miniature for restores in place: its own server, repository and settings, made by copying a template."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgkeep.config import Cluster
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.repository import Repository, open_store
from pgkeep.restore.in_place import InPlaceOutcome, InPlaceRequest, run_in_place
from pgkeep.restore.last_wal import save_running_wal
from pgkeep.restore.target import RecoveryTarget
from support.jobs import KEY, backup, new_repository, server_place
from support.servers import TEST_SETTINGS, sql

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgkeep.postgres.binaries import ServerBinaries

__all__ = ["Service", "at_lsn", "make_template", "run_killed"]

TOKENS = """
    CREATE TABLE users (id int PRIMARY KEY);
    CREATE TABLE token_blacklist (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id int REFERENCES users);
    INSERT INTO users SELECT generate_series(1, 100);
    INSERT INTO token_blacklist (user_id) SELECT generate_series(1, 10);
"""


@dataclass(frozen=True)
class Service:
    """A running server that nobody's child process is, its repository, and how pgkeep is configured for it."""

    server: ThrowawayServer
    repository: Repository
    settings: Cluster

    @property
    def data(self) -> Path:
        return self.server.data_directory

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        return sql(self.server.dsn(), query)

    def lsn(self) -> LSN:
        """Here and now: what is committed already lies before it."""
        return LSN.parse(str(self.sql("SELECT pg_current_wal_insert_lsn()::text")[0][0]))

    def configured(self, **settings: Any) -> Service:
        """With other settings of the cluster."""
        return replace(self, settings=Cluster.model_validate({**self.settings.model_dump(), **settings}))

    def restore(self, **options: Any) -> InPlaceOutcome:
        request = InPlaceRequest(cluster=self.settings.name, **options)
        return run_in_place(request, self.settings, [self.repository])

    def restore_wal(self) -> None:
        """Store in the repository what the running server has so far."""
        save_running_wal(self.settings.dsn, self.data, [self.repository])

    def write_config(self) -> Path:
        """A configuration file that says the same."""
        place = self.data.parent
        key = place / "pgkeep.key"
        key.write_text(KEY.text() + "\n")
        key.chmod(0o600)
        lines = [
            "[repository.main]",
            f'url = "file://{place / "repository"}"',
            f'key = "file:{key}"',
            "[cluster.test]",
            f'dsn = "{self.settings.dsn}"',
            f'server = {{ data_directory = "{self.data}" }}',
        ]
        path = place / "pgkeep.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def names(self) -> list[str]:
        """What lies beside the data directory, with the times taken out of names."""
        known = {"s", "repository", "data.log", self.server.log_file.name}
        return sorted(name.partition("-")[0] for name in os.listdir(self.data.parent) if name not in known)

    def count(self, table: str = "token_blacklist") -> int:
        return int(self.sql(f"SELECT count(*) FROM {table}")[0][0])


def make_template(binaries: ServerBinaries, parent: Path) -> Path:
    """A stopped cluster with tables, a tablespace and a backup in a repository, to be copied by `Service.copy`."""
    with ThrowawayServer(binaries, parent=parent) as server:
        place = server_place(server.directory / "tablespace")
        # small segments: each test copies the whole cluster
        server.initdb(wal_segment_size=1)
        server.start(TEST_SETTINGS)
        sql(server.dsn(), TOKENS)
        sql(server.dsn(), f"CREATE TABLESPACE apart LOCATION '{place}'")
        sql(server.dsn(), "CREATE TABLE far TABLESPACE apart AS SELECT generate_series(1, 500) AS id")
        backup(server.dsn(), new_repository(server.directory / "repository"))
        server.stop()
        template = parent / f"template-{binaries.major}"
        subprocess.run(["cp", "-a", server.directory, template], check=True)
    return template


def start_copy(server: ThrowawayServer, template: Path, settings: Mapping[str, str | int | bool]) -> Service:
    """The template's cluster in the server's own directory, running."""
    for name in ("data", "tablespace", "repository"):
        subprocess.run(["cp", "-a", template / name, server.directory / name], check=True)
    for link in (server.data_directory / "pg_tblspc").iterdir():
        link.unlink()
        link.symlink_to(server.directory / "tablespace")
    server.start({**TEST_SETTINGS, "work_mem": "7MB", **settings})
    server.detach()
    repository = Repository.open(open_store(str(server.directory / "repository")), KEY)
    cluster = {
        "name": "test",
        "dsn": server.dsn(),
        "repositories": ("main",),
        "server": {"data_directory": server.data_directory},
    }
    return Service(server, repository, Cluster.model_validate(cluster))


def at_lsn(lsn: LSN) -> RecoveryTarget:
    """Just before an LSN."""
    return RecoveryTarget(kind="lsn", value=str(lsn), exclusive=True)


_KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from pgkeep.progress import Silent
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.restore import in_place, journal, safety_copy, undo

state, phase, renames, is_undo, place, settings, request = pickle.loads(Path(sys.argv[1]).read_bytes())
def die():
    os.kill(os.getpid(), signal.SIGKILL)
enter, rename, renamed = journal.Journal.enter, safety_copy._rename, []
def dying_enter(self, entered):
    enter(self, entered)
    if entered == state:
        die()
def dying_rename(place, aside):
    rename(place, aside)
    renamed.append(place)
    if renames == len(renamed):
        die()
class Dying(Silent):
    def phase(self, name, total=None):
        if name == phase:
            die()
journal.Journal.enter = dying_enter
safety_copy._rename = dying_rename
if is_undo:
    undo.run_undo(settings)
else:
    repository = Repository.open(open_store(place), KeyFile(bytes(range(32))))
    in_place.run_in_place(request, settings, [repository], Dying())
"""


def run_killed(
    service: Service, state: str = "", *, phase: str = "", renames: int = 0, undo: bool = False, **options: Any
) -> None:
    """Run it in a process of its own that ends by SIGKILL: once it has entered ``state``, at a phase, or after so many renames."""
    request = InPlaceRequest(cluster=service.settings.name, **options)
    order = service.data.parent / "order"
    place = str(service.data.parent / "repository")
    order.write_bytes(pickle.dumps((state, phase, renames, undo, place, service.settings, request)))
    answer = subprocess.run(
        [sys.executable, "-c", _KILLED, order], capture_output=True, text=True, check=False, timeout=120
    )
    order.unlink()
    assert answer.returncode == -signal.SIGKILL, answer.stderr
