"""The bench's own set-up: as root on Debian and its kin, the peers' programs are installed where they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess

from bench.contenders.pgbackrest import PROGRAM
from bench.dataset import MAJOR
from pgkeep.errors import NotFoundError
from pgkeep.postgres.binaries import find_binaries


def missing_packages() -> list[str]:
    wanted = {"zstd": "zstd", PROGRAM: "pgbackrest", "barman": "barman"}
    packages = [package for program, package in wanted.items() if shutil.which(program) is None]
    try:
        find_binaries(MAJOR)
    except NotFoundError:
        packages.append(f"postgresql-{MAJOR}")
    return packages


def install_missing() -> None:
    """Install what is missing, one package at a time, since not every release has all; what stays missing, a contender says."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    packages = missing_packages()
    if packages:
        subprocess.run(["apt-get", "update", "-qq"], check=False)
    for package in packages:
        print(f"installing {package}", flush=True)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package],
            check=False,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
