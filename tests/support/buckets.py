"""Repositories in buckets, set up as an operator does it: by the program, with a configuration of their own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgkeep.cli.main import execute
from pgkeep.postgres.account import give_to, server_account
from pgkeep.repository import KeyFile, Repository, open_store
from support.wal import Setup

if TYPE_CHECKING:
    from pgkeep.repository.parameters import Parameters
    from support.seaweed import SeaweedServer

__all__ = ["BucketProgram", "QuickProgram", "give_credentials"]


@dataclass
class BucketProgram:
    """``pgkeep`` in processes of their own; `init` or `prepare` make the configuration, the key and the repository."""

    directory: Path
    dsn: str
    url: str

    @property
    def config(self) -> Path:
        """Its configuration."""
        return self.directory / "pgkeep.toml"

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start a command in a session of its own, with a JSON document for its answer."""
        command = [sys.executable, "-m", "pgkeep", "--config", self.config, *words, "--json"]
        return subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str | Path) -> tuple[int, dict[str, Any]]:
        """Run a command to its end: exit code and document."""
        process = self.start(*words)
        output, errors = process.communicate(timeout=120)
        assert output, errors
        return process.returncode, json.loads(output)

    def succeed(self, *words: str | Path) -> dict[str, Any]:
        """The document of a command that must succeed."""
        code, document = self.run(*words)
        assert code == 0, document
        return document

    def init(self) -> dict[str, Any]:
        """Set up a cluster ``auth`` whose repository is the bucket's, as an operator does it; what the program says."""
        self.directory.mkdir(exist_ok=True)
        return self.succeed("init", self.dsn, "--name", "auth", "--repository", self.url, "--yes")

    def prepare(self, parameters: Parameters | None = None) -> Setup:
        """The same within a moment: nothing is probed and nothing is checked."""
        self.directory.mkdir(exist_ok=True)
        key = self.directory / "pgkeep.key"
        Repository.create(open_store(self.url), KeyFile.generate(key), parameters)
        settings = {"spool": str(self.directory / "spool"), "ship_every": "1s", "slot_cap": "none"}
        self.config.write_text(
            f'[repository.auth]\nurl = "{self.url}"\nkey = "file:{key}"\n'
            f"[cluster.auth]\ndsn = {json.dumps(self.dsn)}\n"
            f"wal = {{ {', '.join(f'{name} = {json.dumps(value)}' for name, value in settings.items())} }}\n"
        )
        return Setup(self.directory, self.config, ["auth"])


class QuickProgram(BucketProgram):
    """The same within the test's own process, which spares each command the start of another; `start` still takes one."""

    def run(self, *words: str | Path) -> tuple[int, dict[str, Any]]:
        """Run a command to its end: exit code and document."""
        with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as errors:
            code = execute([str(word) for word in ("--config", self.config, *words, "--json")])
        assert output.getvalue(), errors.getvalue()
        return code, json.loads(output.getvalue())


def give_credentials(server: SeaweedServer, directory: Path) -> Path:
    """The credentials file, copied to where the servers' account can read it and nobody else."""
    path = directory / "credentials"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(server.credentials_file.read_text())
    give_to(server_account(), path)
    return path
