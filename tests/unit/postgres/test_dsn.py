"""Connection strings: secrets stay hidden, and passwords move to a file that libpq reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from pgkeep.postgres.dsn import endpoint_of, parse_dsn, redact_dsn, with_password_file


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("host=db user=u", "host=db user=u"),
        ("host=db password=geheim user=u", "host=db password=*** user=u"),
        ("password = 'ge heim' user=u", "password = *** user=u"),
        (r"password='ge\'heim' user=u", "password=*** user=u"),
        (r"password=ge\ heim user=u", "password=*** user=u"),
        ("password=a&geheim user=u", "password=*** user=u"),
        ("password='geheim", "password=***"),
        ("postgresql://u@db/auth", "postgresql://u@db/auth"),
        ("postgresql://u:geheim@db:5433/auth", "postgresql://u:***@db:5433/auth"),
        ("postgres://u:ge@heim@db/auth", "postgres://u:***@db/auth"),
        ("postgresql://u:ge?heim@db/auth", "postgresql://u:***@db/auth"),
        (
            "postgresql://db/auth?user=u&password=geheim&sslmode=require",
            "postgresql://db/auth?user=u&password=***&sslmode=require",
        ),
        ("postgresql://db/auth?sslpassword=geheim", "postgresql://db/auth?sslpassword=***"),
    ],
)
def test_a_password_is_never_shown(dsn: str, shown: str) -> None:
    assert redact_dsn(dsn) == shown


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_any_password_that_libpq_quotes_is_hidden(password: str) -> None:
    dsn = make_conninfo("", host="db", password=password, user="u")
    assert redact_dsn(dsn) == "host=db password=*** user=u"


@pytest.mark.parametrize("dsn", ["host=db geheim", "postgresql://u:geheim@[db/auth", "host='db geheim"])
def test_a_broken_dsn_is_refused_without_quoting_it(dsn: str) -> None:
    with pytest.raises(ValueError, match="is not a connection string") as caught:
        parse_dsn(dsn)
    assert "geheim" not in str(caught.value)


def test_libpqs_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db")
    monkeypatch.setenv("PGPORT", "5433")
    endpoint = endpoint_of("user=u")
    assert (str(endpoint), endpoint.user, endpoint.database) == ("db:5433", "u", "u")


@pytest.mark.parametrize(
    ("dsn", "line"),
    [
        ("postgresql://u:p%3Aw@db/auth", r"db:5432:*:u:p\:w"),
        ("host=db port=6 user=u password='a\\\\b'", r"db:6:*:u:a\\b"),
        ("host=/run/postgresql user=u password=p", "*:*:*:u:p"),
        ("host=a,b port=1,2 user=u password=p", "*:*:*:u:p"),
    ],
)
def test_a_password_moves_to_a_passfile(dsn: str, line: str) -> None:
    moved, password_line = with_password_file(dsn, Path("/etc/pgkeep/main.pgpass"))
    assert password_line == line
    options = parse_dsn(moved)
    assert options["passfile"] == "/etc/pgkeep/main.pgpass"
    assert "password" not in options


def test_a_dsn_without_password_stays_as_it_is() -> None:
    assert with_password_file("host=db  user=u", Path("/x")) == ("host=db  user=u", None)
