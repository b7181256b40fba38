"""Settings for a restored data directory: read, quote and rewrite files of the form of ``postgresql.conf``.

The form is that of PostgreSQL's src/backend/utils/misc/guc-file.l: ``name = value`` or ``name value``, names without
regard to case, values bare or in single quotes, ``#`` comments, the last line of a name wins. Text is str; callers read
and write files with ``errors="surrogateescape"``, since such files have no encoding of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = [
    "ARCHIVE_PARAMETERS",
    "RECOVERY_DEFAULTS",
    "SettingLine",
    "format_settings",
    "parse_settings",
    "quote_setting",
    "rewrite_settings",
]

RECOVERY_DEFAULTS: Mapping[str, str] = {
    "archive_cleanup_command": "",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "recovery_end_command": "",
    "recovery_min_apply_delay": "0",
    "recovery_target": "",
    "recovery_target_action": "pause",
    "recovery_target_inclusive": "on",
    "recovery_target_lsn": "",
    "recovery_target_name": "",
    "recovery_target_time": "",
    "recovery_target_timeline": "latest",
    "recovery_target_xid": "",
    "restore_command": "",
}
"""Every parameter that steers recovery, with PostgreSQL's default. Written into ``postgresql.auto.conf``, which is read
last, these also undo what stands in ``postgresql.conf``."""

ARCHIVE_PARAMETERS: Mapping[str, str] = {
    "archive_mode": "off",
    "archive_command": "",
    "archive_library": "",
    "synchronous_standby_names": "",
}
"""What makes a copy harmless: it must not archive over its origin's WAL, nor wait for the origin's standbys."""

_LINE = re.compile(
    r"""\s*
    (?P<name>[A-Za-z_\x80-\U0010ffff][\w$\x80-\U0010ffff]*(?:\.[A-Za-z_\x80-\U0010ffff][\w$\x80-\U0010ffff]*)?)
    (?:\s*=\s*|\s+)
    (?P<value>'(?:[^'\\]|\\.|'')*' | [^\s'\#=]+)
    \s*(?:\#.*)?""",
    re.VERBOSE,
)
_INCLUDES = frozenset({"include", "include_if_exists", "include_dir"})
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True, slots=True)
class SettingLine:
    """A line of a settings file: ``name`` in lower case, ``value`` without its quotes, ``number`` from 1.

    ``is_include`` marks include, include_if_exists and include_dir, whose value is a path.
    """

    number: int
    name: str
    value: str
    is_include: bool


def quote_setting(value: str) -> str:
    """The value in single quotes. Raises ValueError for a NUL, which no setting can hold."""
    if "\0" in value:
        raise ValueError("a setting cannot hold a NUL character")
    escaped = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def format_settings(settings: Mapping[str, str | int | bool]) -> str:
    """One ``name = 'value'`` line each; booleans as on and off."""
    return "".join(f"{name} = {quote_setting(_as_text(value))}\n" for name, value in settings.items())


def _as_text(value: str | int | bool) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def parse_settings(text: str) -> Iterator[SettingLine]:
    """The settings in order; comments, empty lines and lines that PostgreSQL would refuse are passed over."""
    for number, line in enumerate(text.split("\n"), start=1):
        match = _LINE.fullmatch(line)
        if match is not None:
            name = match["name"].lower()
            yield SettingLine(number, name, _unquote(match["value"]), name in _INCLUDES)


def _unquote(value: str) -> str:
    """As guc-file.l, DeescapeQuotedString."""
    if not value.startswith("'"):
        return value
    return re.sub(r"''|\\([0-7]{1,3}|.)", _unescape, value[1:-1])


def _unescape(match: re.Match[str]) -> str:
    escaped: str | None = match[1]
    if escaped is None:
        return "'"
    if escaped[0] in "01234567":
        return chr(int(escaped, 8) & 0xFF)
    return _ESCAPES.get(escaped, escaped)


def rewrite_settings(text: str, *, remove: Collection[str], add: Mapping[str, str | int | bool], comment: str) -> str:
    """The file's text without the parameters in ``remove`` and ``add``, and with a commented block of ``add`` at its end.

    Everything else stays as it is, byte for byte. ``comment`` is one line of words.
    """
    gone = {name.lower() for name in (*remove, *add)}
    dropped = {line.number for line in parse_settings(text) if line.name in gone and not line.is_include}
    kept = [line for number, line in enumerate(text.split("\n"), start=1) if number not in dropped]
    body = "\n".join(kept)
    if body and not body.endswith("\n"):
        body += "\n"
    return body + (f"# {comment}\n{format_settings(add)}" if add else "")
