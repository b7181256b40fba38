"""The settings that a configuration file holds, as typed models; `pgkeep.config.loading` reads them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pgkeep.config.drill_settings import DrillSettings
from pgkeep.config.values import AbsolutePath, Dsn, Seconds, Settings, Share, Size, SlotCap, Zone, state_directory

__all__ = ["BackupSettings", "Cluster", "Objectives", "RestoreHook", "ServerControl", "WalSettings"]

# MAX_RATE of BASE_BACKUP: 32 kB/s to 1 GB/s (PostgreSQL: basebackup.h, MAX_RATE_LOWER and MAX_RATE_UPPER).
MIN_RATE, MAX_RATE = 32 << 10, 1 << 30


class BackupSettings(Settings):
    """``backup = { … }`` of a cluster. ``rate`` is bytes a second; None means no limit, or our own choice.

    ``deep_check`` is the share of files that an incremental reads whole. ``policy`` says when a backup has succeeded: stored in all
    repositories, or in the first that takes it, the others catching up.
    """

    mode: Literal["auto", "stream", "local"] = "auto"
    deep_check: Share = 1 / 30
    policy: Literal["all", "first"] = "all"
    label: str | None = None
    jobs: Annotated[int, Field(ge=1, le=256)] | None = None
    rate: Annotated[Size, Field(ge=MIN_RATE, le=MAX_RATE)] | None = None


class WalSettings(Settings):
    """``wal = { … }`` of a cluster: how its WAL reaches the repositories.

    ``ship_every`` is seconds between pieces of the open segment. ``slot`` None: ``pgkeep_`` and the cluster's name.
    ``slot_cap`` is the most WAL in bytes that the slot may hold back on the server, None for no limit. ``spool`` None: see
    `Cluster.spool`; ``spool_limit`` is the most that waits there for a repository. ``policy`` says when a pushed segment is
    safe: in all repositories, or in the first one that takes it, the others catching up.
    """

    stream: bool = True
    ship_every: Seconds = 10.0
    synchronous: bool = False
    slot: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,63}$")] | None = None
    slot_cap: SlotCap = 32 << 30
    spool: AbsolutePath | None = None
    spool_limit: Size = 8 << 30
    policy: Literal["all", "first"] = "all"
    push_ahead: Annotated[int, Field(ge=0, le=64)] = 4
    prefetch: Annotated[int, Field(ge=0, le=256)] = 16


class Objectives(Settings):
    """``objectives = { … }``: the most that may be lost, and the longest that a recovery may take, in seconds.

    ``rto_span``: to every moment of the last so many seconds; None: to the newest backup and what follows.
    ``heartbeat`` is how often a receiver commits a heartbeat, None for never.
    """

    rpo: Seconds = 300.0
    rto: Seconds = 900.0
    rto_span: Seconds | None = None
    heartbeat: Seconds | None = None


class ServerControl(Settings):
    """``server = { … }``: where the server lives on this machine, and how it is stopped and started there.

    Either ``unit`` (of systemd), or ``start`` and ``stop`` (commands for the shell); with neither, ``pg_ctl`` does it.
    """

    data_directory: AbsolutePath | None = None
    unit: str | None = None
    start: str | None = None
    stop: str | None = None


class RestoreHook(Settings):
    """``[[cluster.NAME.after_restore]]``: ``sql`` in ``database``, or ``command`` for the shell; run once recovery has ended."""

    name: str
    sql: str | None = None
    database: str = "postgres"
    command: str | None = None
    timeout: Seconds = 600.0

    @model_validator(mode="after")
    def _one_of_two(self) -> RestoreHook:
        if (self.sql is None) == (self.command is None):
            raise ValueError("needs either sql or command")
        return self


class Cluster(Settings):
    """``[cluster.NAME]``: ``repositories`` are names of repositories, the first being the one that is read from.

    ``time_zone`` is that of times without one; None means this machine's. ``lang`` is the language of reports.
    """

    name: str
    dsn: Dsn
    repositories: tuple[str, ...]
    backup: BackupSettings = BackupSettings()
    wal: WalSettings = WalSettings()
    objectives: Objectives = Objectives()
    server: ServerControl = ServerControl()
    after_restore: tuple[RestoreHook, ...] = ()
    drill: DrillSettings = DrillSettings()
    time_zone: Zone | None = None
    lang: Literal["en", "ko"] = "en"

    @property
    def slot(self) -> str:
        """The name of the replication slot."""
        return self.wal.slot or "pgkeep_" + re.sub(r"[^a-z0-9_]", "_", self.name.lower())

    @property
    def spool(self) -> Path:
        """Where WAL waits on this machine: ``/var/spool/pgkeep/<name>`` as root, else below the user's state directory."""
        return self.wal.spool or state_directory() / self.name

    @property
    def drill_directory(self) -> Path:
        """Where drills restore to: ``/var/lib/pgkeep/drills`` as root, else below the user's state directory."""
        if self.drill.directory is not None:
            return self.drill.directory
        return Path("/var/lib/pgkeep/drills") if os.geteuid() == 0 else state_directory() / "drills"

    @property
    def push_socket(self) -> Path:
        """Where a running receiver takes files from ``archive_command``: beside the spool, which is closed to others."""
        return self.spool.with_name(self.spool.name + ".sock")
