"""Files of the form of postgresql.conf: what PostgreSQL reads in them is what we read and write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.postgres.recovery_settings import (
    ARCHIVE_PARAMETERS,
    RECOVERY_DEFAULTS,
    format_settings,
    parse_settings,
    quote_setting,
    rewrite_settings,
)


def values(text: str) -> list[tuple[str, str]]:
    return [(line.name, line.value) for line in parse_settings(text)]


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("port = 5432", "port", "5432"),
        ("port 5432", "port", "5432"),
        ("  Port=5432   # comment", "port", "5432"),
        ("restore_command = 'cp ''/a b/%f'' %p'", "restore_command", "cp '/a b/%f' %p"),
        (r"restore_command = 'a\'b\\c\td\101'", "restore_command", "a'b\\c\tdA"),
        ("archive_command = 'echo # %p' # not this", "archive_command", "echo # %p"),
        ("log_line_prefix = ''", "log_line_prefix", ""),
        ("my.Extension_setting = on", "my.extension_setting", "on"),
        ("shared_buffers=128MB#x", "shared_buffers", "128MB"),
    ],
)
def test_a_line_is_read_as_postgresql_reads_it(line: str, name: str, value: str) -> None:
    assert values(line) == [(name, value)]


@pytest.mark.parametrize("line", ["", "# port = 5432", "port", "port = ", "= 5432", "port = 'x", "port = 1 2"])
def test_what_is_no_setting_is_passed_over(line: str) -> None:
    assert values(line) == []


@pytest.mark.parametrize("name", ["include", "include_if_exists", "include_dir"])
def test_includes_are_marked(name: str) -> None:
    (line,) = parse_settings(f"{name} 'conf.d'")
    assert (line.is_include, line.value) == (True, "conf.d")


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_value_survives_writing_and_reading(value: str) -> None:
    assert values(format_settings({"restore_command": value})) == [("restore_command", value)]


def test_a_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        quote_setting("a\0b")


def test_booleans_and_numbers_are_written_as_postgresql_writes_them() -> None:
    assert (
        format_settings({"hot_standby": True, "fsync": False, "port": 1})
        == "hot_standby = 'on'\nfsync = 'off'\nport = '1'\n"
    )


def test_rewriting_keeps_everything_else_as_it_is() -> None:
    text = "# Do not edit\nwork_mem = '4MB'\nPRIMARY_CONNINFO = 'host=old'\n  restore_command 'x'\n"
    new = rewrite_settings(
        text,
        remove={"primary_conninfo"},
        add={"restore_command": "pgkeep wal fetch %f %p"},
        comment="Written by pgkeep",
    )
    assert new == ("# Do not edit\nwork_mem = '4MB'\n# Written by pgkeep\nrestore_command = 'pgkeep wal fetch %f %p'\n")


def test_a_file_without_a_last_line_end_gets_one() -> None:
    assert rewrite_settings("a = 1", remove=(), add={"b": 2}, comment="c") == "a = 1\n# c\nb = '2'\n"


def test_rewriting_twice_changes_nothing_more() -> None:
    settings = {**RECOVERY_DEFAULTS, **ARCHIVE_PARAMETERS}
    once = rewrite_settings("work_mem = 1MB\n", remove=(), add=settings, comment="c")
    again = rewrite_settings(once, remove=(), add=settings, comment="c")
    assert values(again) == values(once)


def test_what_is_removed_only_leaves_no_comment_behind() -> None:
    assert rewrite_settings("a = 1\nb = 2\n", remove={"a"}, add={}, comment="c") == "b = 2\n"
