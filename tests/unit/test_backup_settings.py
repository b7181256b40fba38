from __future__ import annotations

from pathlib import Path

import pytest

from pgkeep.config import BackupSettings, parse_config
from pgkeep.errors import ConfigError

_TEXT = """
[repository.main]
url = "file:///backups"
key = "none"

[cluster.auth]
dsn = "host=db"
backup = { BACKUP }
"""


def settings(backup: str) -> BackupSettings:
    return parse_config(_TEXT.replace("BACKUP", backup), Path("/etc/pgkeep.toml")).cluster("auth").backup


@pytest.mark.parametrize(
    ("text", "share"),
    [('"1/30"', 1 / 30), ('"1/7"', 1 / 7), ("0", 0), ('"0"', 0), ("1", 1), ("0.5", 0.5), ('"0.25"', 0.25)],
)
def test_deep_check_is_a_share(text: str, share: float) -> None:
    assert settings(f"deep_check = {text}").deep_check == share


@pytest.mark.parametrize("text", ['"often"', '"1/0"', "2", "-1", '"3/2"', "true"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"backup\.deep_check"):
        settings(f"deep_check = {text}")


def test_pages_come_from_where_it_is_best_and_each_file_is_checked_in_thirty_backups() -> None:
    assert (settings("").mode, settings("").deep_check) == ("auto", 1 / 30)
    assert settings('mode = "local"').mode == "local"
