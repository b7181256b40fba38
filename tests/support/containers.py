"""A container engine with a store of its own, and an image of a PostgreSQL server, made of what this machine has.

The image holds what PostgreSQL's own images hold: a shell, a few small programs, the server's programs, and no Python.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeep.postgres.container import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from pgkeep.postgres.binaries import ServerBinaries

__all__ = ["make_image", "own_engine"]

_SHELL = ("sh", "sleep", "mv", "rm", "readlink")
_NOT_NEEDED = frozenset({"include", "doc", "man"})
_INSIDE = "usr/local/pgsql"
_LOCALE = Path("/usr/lib/locale/C.utf8")
# runc on a machine with two kinds of control groups, and limits that nobody may raise
_CONTAINERS = """
[containers]
cgroups = "no-conmon"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
"""
_STORAGE = """
[storage]
driver = "vfs"
graphroot = "{place}/images"
runroot = "{place}/run"
"""


def own_engine(place: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Podman, with images in ``place``; for this process and those that it starts."""
    place.mkdir(parents=True, exist_ok=True)
    for variable, text in (("CONTAINERS_CONF", _CONTAINERS), ("CONTAINERS_STORAGE_CONF", _STORAGE)):
        path = place / f"{variable.lower()}.toml"
        path.write_text(text.format(place=place))
        monkeypatch.setenv(variable, str(path))
    program = shutil.which("podman")
    assert program is not None, "the tests need Podman: apt-get install podman runc"
    return Engine(program)


def make_image(engine: Engine, name: str, binaries: ServerBinaries | None) -> None:
    """An image of this name with these programs, on its path; None: with a shell alone."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path, inside in _files(binaries):
            archive.add(path, inside, recursive=False)
    answer = subprocess.run(
        [engine.program, "import", "--quiet", f"--change=ENV PATH=/{_INSIDE}/bin:/bin", "-", name],
        input=content.getvalue(),
        capture_output=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr.decode()


def _files(binaries: ServerBinaries | None) -> Iterator[tuple[Path, str]]:
    """Files of this machine, and where they are in the image."""
    programs = {name: Path(shutil.which(name) or name).resolve() for name in _SHELL}
    linked = set(programs.values())
    for name, program in programs.items():
        yield program, f"bin/{name}"
    if binaries is not None:
        root = binaries.bindir.parent
        for folder, folders, files in os.walk(root):
            folders[:] = [each for each in folders if each not in _NOT_NEEDED]
            for name in files:
                path = Path(folder, name)
                yield path.resolve() if path.is_symlink() else path, f"{_INSIDE}/{path.relative_to(root)}"
        yield from ((path, str(path).lstrip("/")) for path in _LOCALE.rglob("*") if path.is_file())
        linked |= {binaries.path(name).resolve() for name in ("postgres", "pg_dump")}
        linked |= {library.resolve() for library in (root / "lib").glob("libpq.so.*")}
    for library in sorted({library for program in linked for library in _libraries(program)}):
        # those that came with the programs are found where all programs look
        of_machine = library.is_relative_to("/lib64") or library.is_relative_to("/lib")
        yield library.resolve(), str(library).lstrip("/") if of_machine else f"usr/lib/{library.name}"


def _libraries(program: Path) -> Iterator[Path]:
    answer = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True)
    return (Path(word) for word in answer.stdout.split() if word.startswith("/"))
