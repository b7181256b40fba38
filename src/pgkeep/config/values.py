"""The values of settings: durations, sizes, paths, keys; and the table that they stand in."""

from __future__ import annotations

import os
import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from pgkeep.errors import ConfigError
from pgkeep.units import parse_duration, parse_size

__all__ = [
    "AbsolutePath",
    "Dsn",
    "Duration",
    "Key",
    "KeyReference",
    "Limit",
    "Seconds",
    "Settings",
    "Share",
    "Size",
    "SlotCap",
    "Url",
    "Zone",
    "as_tuple",
    "state_directory",
]

_OBJECT_STORES = ("s3://", "gs://", "az://")


def state_directory() -> Path:
    """Where this user's WAL waits (for root as in the Filesystem Hierarchy Standard, else XDG Base Directory Specification)."""
    if os.geteuid() == 0:
        return Path("/var/spool/pgkeep")
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state") / "pgkeep"


class KeyReference(BaseModel):
    """Where a repository's secret is kept: ``kind``, and the absolute path of a file or whose key it is; neither for "none".

    ``name`` is an OpenPGP recipient as gpg takes it, or the id, ARN or alias of a key of AWS KMS.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["file", "passphrase-file", "gpg", "aws-kms", "none"]
    path: Path | None = None
    name: str | None = None

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}:{self.value}"

    @property
    def value(self) -> str | None:
        """The path or the name."""
        return str(self.path) if self.path is not None else self.name

    @classmethod
    def parse(cls, text: str, directory: Path | None = None) -> KeyReference:
        """From a setting's text; a relative path is relative to ``directory``, or to the current one. Raises ValueError."""
        if text == "none":
            return cls(kind="none")
        kind, _, value = text.partition(":")
        if value and kind in {"file", "passphrase-file"}:
            path = Path(os.path.normpath((directory or Path.cwd()) / Path(value).expanduser()))
            return cls(kind=cast("Literal['file', 'passphrase-file']", kind), path=path)
        # a dash would be taken for an option by the program that is given it
        if value.strip() and not value.startswith("-") and kind in {"gpg", "aws-kms"}:
            return cls(kind=cast("Literal['gpg', 'aws-kms']", kind), name=value.strip())
        raise ValueError(
            f'{text!r} is none of "file:/path", "passphrase-file:/path", "gpg:RECIPIENT", "aws-kms:KEY_ID" and "none"'
        )


def _parse_key(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    return KeyReference.parse(value, (info.context or {}).get("directory"))


def _parse_url(value: str, info: ValidationInfo) -> str:
    options = _store_options(info)
    if value.startswith(_OBJECT_STORES):
        # late: it brings a whole room with it, which the reader of a configuration may not need
        from pgkeep.repository.object_store_address import ObjectAddress

        try:
            return str(ObjectAddress.parse(value, options))
        except ConfigError as error:
            raise ValueError(f"{error}{f' ({error.hint})' if error.hint else ''}") from None
    if options:
        raise ValueError(f"{value!r} is no object store, and takes no {next(iter(options))}")
    if value.startswith("file://"):
        path = value.removeprefix("file://")
        if not path.startswith("/"):
            raise ValueError(f"{value!r} needs an absolute path: file:///path")
        return value
    if re.match(r"[a-z][a-z0-9+.-]*:", value):
        raise ValueError(
            f"{value!r} is of a kind that this version does not know (it knows file:///path, s3://, gs:// and az://)"
        )
    return _absolute(value, info).as_uri()


def _store_options(info: ValidationInfo) -> dict[str, str]:
    """The keys that stand beside ``url``, as options of the address."""
    found = {name: value for name, value in info.data.items() if name not in {"name", "key"} and value is not None}
    return {name: ("false", "true")[value] if isinstance(value, bool) else str(value) for name, value in found.items()}


def _parse_limit(value: object) -> object:
    if isinstance(value, str):
        parse_duration(value)
    return value


def _absolute(path: str, info: ValidationInfo) -> Path:
    """Relative paths are relative to the configuration file, so that it means the same from everywhere."""
    directory = (info.context or {}).get("directory", Path.cwd())
    return Path(os.path.normpath(directory / Path(path).expanduser()))


def _parse_size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


def _parse_duration(value: object) -> object:
    return parse_duration(value).total_seconds() if isinstance(value, str) else value


def _parse_slot_cap(value: object) -> object:
    return None if value == "none" else _parse_size(value)


def _parse_share(value: object) -> object:
    """``"1/30"``, or a number."""
    if not isinstance(value, str):
        return value
    try:
        return float(Fraction(value))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f'{value!r} is no share (write it like "1/30"; 0 for none)') from None


def as_tuple(value: object) -> object:
    """A list of the file as a tuple; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def _parse_path(value: object, info: ValidationInfo) -> object:
    return _absolute(value, info) if isinstance(value, str) else value


def _parse_zone(value: object) -> object:
    if isinstance(value, str):
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{value!r} is not a time zone of this machine (like Asia/Seoul)") from None
    return value


Size = Annotated[int, Field(gt=0), BeforeValidator(_parse_size)]
Seconds = Annotated[float, Field(gt=0), BeforeValidator(_parse_duration)]
AbsolutePath = Annotated[Path, BeforeValidator(_parse_path)]
Duration = Annotated[float, Field(ge=0), BeforeValidator(_parse_duration)]
"""Seconds, of which there may be none."""
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_parse_share)]
SlotCap = Annotated[int | None, BeforeValidator(_parse_slot_cap)]
Zone = Annotated[str, BeforeValidator(_parse_zone)]
Limit = Annotated[str, BeforeValidator(_parse_limit)]
Url = Annotated[str, Field(min_length=1), AfterValidator(_parse_url)]


def _check_dsn(value: str) -> str:
    from pgkeep.postgres.dsn import parse_dsn

    parse_dsn(value)
    return value


Dsn = Annotated[str, Field(min_length=1), AfterValidator(_check_dsn)]
Key = Annotated[KeyReference, BeforeValidator(_parse_key)]


class Settings(BaseModel):
    """A table of the file: a key that is not among the fields is a mistake."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, serialize_by_alias=True
    )
