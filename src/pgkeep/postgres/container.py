"""PostgreSQL's programs out of a container image, by an engine on this machine: Podman or Docker, called by their command lines.

A program runs in a container of its own, without a network, without capabilities, on a read-only image, as the account that a server would
have outside. It sees its data and its sockets at the paths that they have outside, and nothing else of this machine. Its first process is
the program itself, so that nothing of it outlives that.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgkeep.errors import ConfigError, NotFoundError
from pgkeep.postgres.account import ProcessIdentity, process_identity, run_as, server_account
from pgkeep.postgres.binaries import ServerBinaries, parse_version

__all__ = ["ENGINE_VARIABLE", "FETCH_SCRIPT", "ContainerBinaries", "Engine", "Mount", "find_engine"]

ENGINE_VARIABLE = "PGKEEP_CONTAINER_ENGINE"
FETCH_SCRIPT = "/pgkeep/thin_fetch.sh"
"""Where a container has `pgkeep.wal.by_files.SCRIPT`."""

_ENGINES = ("podman", "docker")
_ANSWER_SECONDS = 60.0
_PULL_SECONDS = 3600.0
_APART = (
    "--rm",
    "--network=none",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    # the files keep the labels that they have
    "--security-opt=label=disable",
    "--read-only",
    "--tmpfs=/tmp",
    # parallel queries share memory by files in /dev/shm, of which engines give 64 MiB
    "--shm-size=1g",
    # all that it says goes to us
    "--log-driver=none",
    "--pull=never",
)
_LOOK = 'program=$(command -v postgres) && program=$(readlink -f "$program") && echo "${program%/*}" && exec "$program" --version'


@dataclass(frozen=True)
class Mount:
    """A directory or file of this machine, and where a container has it; None: at the same place, to be written."""

    outside: Path
    read_only_at: str | None = None

    def __str__(self) -> str:
        """As both engines read it: a line of CSV."""
        inside = self.read_only_at or os.fspath(self.outside)
        fields = [
            "type=bind",
            f"source={self.outside}",
            f"target={inside}",
            *(["readonly"] if self.read_only_at else []),
        ]
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(fields)
        return line.getvalue()


@dataclass(frozen=True)
class ContainerBinaries(ServerBinaries):
    """Programs in an image; ``bindir`` is there. ``mounts`` is what of this machine they may use."""

    engine: Engine
    image: str
    mounts: tuple[Mount, ...]

    in_container = True

    @property
    def place(self) -> str:
        """For people: where the programs are from."""
        return f"image {self.image} ({self.engine.name})"

    def path(self, name: str) -> Path:
        """Where the program is in the image."""
        return self.bindir / name

    def command(self, name: str, *words: str | os.PathLike[str]) -> list[str]:
        """The engine's command line that runs it."""
        mounts = [f"--mount={mount}" for mount in self.mounts]
        entry = f"--entrypoint={self.path(name)}"
        return [*self.engine.run(), *mounts, entry, self.image, *(os.fspath(word) for word in words)]

    def identity(self) -> ProcessIdentity:
        """The engine is called as ourselves: it is the engine that makes the program the server account's."""
        return process_identity(None)


@dataclass(frozen=True)
class Engine:
    """A container engine that answers."""

    program: str

    @property
    def name(self) -> str:
        """``podman`` or ``docker``."""
        return Path(self.program).name

    def run(self) -> list[str]:
        """The words of a container that is kept apart, up to its mounts; its processes are the server account's."""
        account = server_account()
        uid, gid = (os.geteuid(), os.getegid()) if account is None else (account.uid, account.gid)
        # without it, a user's own Podman would make its files another's
        same = ["--userns=keep-id"] if self.name == "podman" and os.geteuid() != 0 else []
        return [self.program, "run", *_APART, *same, f"--user={uid}:{gid}"]

    def has(self, image: str) -> bool:
        """Whether the image is on this machine."""
        return self._ask("image", "inspect", image).returncode == 0

    def pull(self, image: str) -> None:
        """Bring an image onto this machine. Raises NotFoundError with the engine's own words."""
        answer = self._ask("pull", "--quiet", image, timeout=_PULL_SECONDS)
        if answer.returncode != 0:
            raise NotFoundError(
                f"there is no image {image}: {_last_line(answer.stderr)}",
                hint=f"see what is wrong: {self.name} pull {image}",
            )

    def binaries(self, image: str, mounts: Sequence[Mount] = ()) -> ContainerBinaries:
        """The programs in an image on this machine. Raises NotFoundError where it has no PostgreSQL server and shell, or does not run."""
        try:
            answer = run_as(None, [*self.run(), "--entrypoint=/bin/sh", image, "-c", _LOOK], timeout=_ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            raise NotFoundError(f"{self.name} did not run image {image} within {_ANSWER_SECONDS:.0f} s") from None
        lines = answer.stdout.splitlines()
        version = parse_version(lines[-1]) if answer.returncode == 0 and len(lines) == 2 else None
        if version is None:
            reason = _last_line(answer.stderr) or "it has no program postgres on its path"
            raise NotFoundError(
                f"image {image} gives no PostgreSQL server: {reason}",
                hint=f"it needs /bin/sh and PostgreSQL's programs; try: {self.name} run --rm {image} postgres --version",
            )
        return ContainerBinaries(Path(lines[0]), version, self, image, tuple(mounts))

    def _ask(self, *words: str, timeout: float = _ANSWER_SECONDS) -> subprocess.CompletedProcess[str]:
        try:
            return run_as(None, [self.program, *words], timeout=timeout)
        except (OSError, subprocess.TimeoutExpired) as error:
            return subprocess.CompletedProcess(words, 1, "", str(error))

    @property
    def answers(self) -> bool:
        """Whether it works at all: Docker's client is often there without its daemon."""
        return self._ask("info").returncode == 0


def find_engine() -> Engine | None:
    """The engine that PGKEEP_CONTAINER_ENGINE names, else Podman, else Docker; None where none answers.

    Raises ConfigError where the one that is named does not.
    """
    wanted = os.environ.get(ENGINE_VARIABLE)
    for name in (wanted,) if wanted else _ENGINES:
        program = shutil.which(name)
        if program is not None and Engine(program).answers:
            return Engine(program)
    if wanted:
        raise ConfigError(
            f"the container engine {wanted} of {ENGINE_VARIABLE} does not answer", hint=f"see why: {wanted} info"
        )
    return None


def _last_line(text: str) -> str:
    """An engine's words without what its log puts before them."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^(Error|docker): ", "", lines[-1]) if lines else ""
