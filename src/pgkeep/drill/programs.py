"""Which programs a drill's server is run with: those of this machine, or those of a container image."""

from __future__ import annotations

from collections.abc import Callable

from pgkeep.config import DrillSettings
from pgkeep.drill.places import DrillPlace
from pgkeep.errors import ConfigError, NotFoundError
from pgkeep.postgres.binaries import ServerBinaries, find_binaries
from pgkeep.postgres.container import ENGINE_VARIABLE, FETCH_SCRIPT, ContainerBinaries, Engine, Mount, find_engine
from pgkeep.wal.by_files import SCRIPT

__all__ = ["copy_programs"]

_IMAGE = "postgres:{major}"
"""PostgreSQL's official image; taken unasked where it is on this machine, and never brought there unasked."""


def copy_programs(drill: DrillSettings, place: DrillPlace, major: int, note: Callable[[str], None]) -> ServerBinaries:
    """The programs of PostgreSQL ``major`` for a drill in this place.

    They are the image's where the settings name one, which is brought here where it is not. Else they are this machine's, and where it has none
    those of the official image, if that is here. Raises NotFoundError, and ConfigError for an image of another major version.
    """
    if drill.image is not None:
        return _of_image(drill.image.replace("{major}", str(major)), place, major, note)
    try:
        return find_binaries(major)
    except NotFoundError as error:
        image = _IMAGE.replace("{major}", str(major))
        engine = find_engine()
        if engine is not None and engine.has(image):
            note(f"{error}; the drill runs in a container of image {image}")
            return _programs(engine, image, place, major)
        raise NotFoundError(
            str(error),
            hint=f"{error.hint}; or let a container have it: "
            + (f"{engine.name} pull {image}" if engine is not None else "install Podman or Docker"),
        ) from None


def _of_image(image: str, place: DrillPlace, major: int, note: Callable[[str], None]) -> ContainerBinaries:
    engine = find_engine()
    if engine is None:
        raise NotFoundError(
            f"drills are to run in image {image}, and no container engine answers on this machine",
            hint=f"install Podman or Docker, or name one in {ENGINE_VARIABLE}; or take drill.image out of the configuration",
        )
    if not engine.has(image):
        note(f"image {image} is not on this machine; {engine.name} brings it")
        engine.pull(image)
    return _programs(engine, image, place, major)


def _programs(engine: Engine, image: str, place: DrillPlace, major: int) -> ContainerBinaries:
    found = engine.binaries(image, [Mount(place.root), Mount(place.sockets), Mount(SCRIPT, FETCH_SCRIPT)])
    if found.major != major:
        raise ConfigError(
            f"image {image} has PostgreSQL {found.version_text}, and the backup is of PostgreSQL {major}",
            hint='let its name follow the version: drill = { image = "postgres:{major}" }',
        )
    return found
