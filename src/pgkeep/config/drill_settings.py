"""The settings of drills."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pgkeep.config.values import AbsolutePath, Seconds, Settings, as_tuple

__all__ = ["DRILL_CHECKS", "DrillAssertion", "DrillCheck", "DrillPlan", "DrillScenario", "DrillSettings"]


class DrillAssertion(Settings):
    """``[[cluster.NAME.drill.assert]]``: what ``query`` must return in ``database``; None: the one that the DSN names.

    ``expect`` is the first value of the first row, or a comparison with it, see `pgkeep.drill.expectation`.
    """

    name: Annotated[str, Field(min_length=1)]
    query: Annotated[str, Field(min_length=1)]
    expect: bool | int | float | str = True
    database: str | None = None
    timeout: Seconds = 300.0


DrillCheck = Literal["server checksums", "amcheck", "visibility map", "tables", "extensions", "sequences"]
DRILL_CHECKS: tuple[DrillCheck, ...] = (
    "tables", "extensions", "sequences", "visibility map", "amcheck", "server checksums",
)  # fmt: skip


DrillScenario = Literal[
    "table-dropped", "bad-migration", "server-lost", "region-lost", "key-from-paper", "newest-damaged"
]


class DrillPlan(Settings):
    """``[[cluster.NAME.drill.plan]]``: a drill that is to pass at least once in ``every`` seconds; its options are those of the command."""

    name: Annotated[str, Field(min_length=1)]
    every: Seconds
    scenario: DrillScenario | None = None
    random: bool = False
    compare: bool = False
    full: bool = False


class DrillSettings(Settings):
    """``drill = { … }``: where drills restore to, and what they check.

    ``port`` only names the socket. ``sample_for`` is how long each check may take that can be done in part, in seconds. ``settings`` are
    the server's, for the copy. ``wal_wait`` is how long a drill waits for WAL of a moment that it has made itself. ``offsite`` is the
    repository that is left when a region is lost; None: the last one of the cluster. ``every``: at least once in so many seconds any
    drill must have passed, None for whenever; ``plans`` are drills with a rhythm of their own. ``image`` is the container image that the
    copy's server runs in, with ``{major}`` for the version; None: a server of this machine, see `pgkeep.drill.programs`.
    """

    directory: AbsolutePath | None = None
    port: Annotated[int, Field(ge=1, le=65535)] = 54329
    checks: Annotated[tuple[DrillCheck, ...], BeforeValidator(as_tuple)] = DRILL_CHECKS
    sample_for: Seconds = 120.0
    jobs: Annotated[int, Field(ge=1, le=256)] | None = None
    settings: dict[str, str] = Field(default_factory=dict)
    wal_wait: Seconds = 120.0
    compare: bool = False
    offsite: str | None = None
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@{}-]*$")] | None = None
    every: Seconds | None = None
    plans: Annotated[tuple[DrillPlan, ...], BeforeValidator(as_tuple), Field(alias="plan")] = ()
    assertions: Annotated[tuple[DrillAssertion, ...], BeforeValidator(as_tuple), Field(alias="assert")] = ()
