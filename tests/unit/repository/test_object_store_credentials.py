"""Where keys for S3 come from, in Amazon's order."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pgkeep.errors import ConfigError
from pgkeep.repository.object_store_address import ObjectAddress
from pgkeep.repository.object_store_credentials import profile_provider, profile_region

Home = Callable[..., None]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Write files below a home of one's own, with no variable of Amazon's set."""
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()

    def write(**files: str) -> None:
        for name, text in files.items():
            (tmp_path / ".aws" / name).write_text(text)

    return write


def key_of(address: str) -> str | None:
    """Whose key is used; None where it is left to obstore."""
    provider = profile_provider(ObjectAddress.parse(address))
    return None if provider is None else provider()["access_key_id"]


def keys(name: str) -> str:
    return f"aws_access_key_id = {name}\naws_secret_access_key = s\n"


def test_the_default_profile_is_used_where_nothing_else_is_there(home: Home) -> None:
    assert key_of("s3://bucket/a") is None
    home(credentials=f"[default]\n{keys('D')}[other]\n{keys('O')}")
    assert key_of("s3://bucket/a") == "D"


def test_what_comes_first_wins(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address, the environment's keys, the environment's profile, the default."""
    home(credentials=f"[default]\n{keys('D')}[other]\n{keys('O')}[third]\n{keys('T')}")
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert key_of("s3://bucket/a") == "O"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "E")
    assert key_of("s3://bucket/a") is None
    assert key_of("s3://bucket/a?profile=third") == "T"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")
    assert key_of("s3://bucket/a") is None


def test_both_files_are_read_and_the_credentials_win(home: Home, tmp_path: Path) -> None:
    home(config=f"[profile p]\nregion = eu-west-1\n{keys('C')}[default]\nregion = eu-north-1\n")
    assert key_of("s3://bucket/a?profile=p") == "C"
    home(credentials=f"[p]\n{keys('F')}")
    assert key_of("s3://bucket/a?profile=p") == "F"
    assert profile_region(ObjectAddress.parse("s3://bucket/a?profile=p")) == "eu-west-1"
    assert profile_region(ObjectAddress.parse("s3://bucket/a")) == "eu-north-1"
    (tmp_path / "mine").write_text(f"[default]\n{keys('M')}")
    assert key_of(f"s3://bucket/a?credentials_file={tmp_path}/mine") == "M"


def test_the_environments_region_comes_before_the_profiles(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home(config="[default]\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert profile_region(ObjectAddress.parse("s3://bucket/a")) is None


def test_keys_of_a_session_have_its_token_and_are_read_again_in_time(home: Home) -> None:
    home(credentials=f"[default]\n{keys('D')}aws_session_token = t\n")
    provider = profile_provider(ObjectAddress.parse("s3://bucket/a"))
    assert provider is not None
    given = provider()
    assert given["token"] == "t"
    expires = given["expires_at"]
    assert expires is not None
    assert 0 < (expires - datetime.now(UTC)).total_seconds() < 3600
    home(credentials=f"[default]\n{keys('N')}")
    assert provider()["access_key_id"] == "N"


@pytest.mark.parametrize(
    ("credentials", "message"),
    [
        (None, "there is no profile 'p' in"),
        ("[p]\nregion = x\n", "the profile 'p' has no credentials"),
        ("[p]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = y\n", "the profile 'p' gives no credentials: .*y"),
        ("no section\n", "is not a file of profiles"),
    ],
)
def test_a_profile_that_is_named_and_no_use_is_an_error(home: Home, credentials: str | None, message: str) -> None:
    if credentials is not None:
        home(credentials=credentials)
    with pytest.raises(ConfigError, match=message) as caught:
        key_of("s3://bucket/a?profile=p")
    assert caught.value.hint


def test_a_role_needs_amazons_own_library(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home(credentials="[p]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = default\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="takes a role or single sign-on") as caught:
        key_of("s3://bucket/a?profile=p")
    assert "pgkeep[aws]" in str(caught.value.hint)


def test_a_file_that_is_named_and_cannot_be_read_is_an_error(home: Home, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*directory: Is a directory"):
        key_of(f"s3://bucket/a?credentials_file={tmp_path}/directory")
