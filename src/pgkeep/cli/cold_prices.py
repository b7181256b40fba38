"""Hints about thawing with the hours and prices of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pgkeep.errors import PgkeepError

if TYPE_CHECKING:
    from pgkeep.cli.repositories import Chosen

__all__ = ["priced"]


@contextmanager
def priced(chosen: Chosen) -> Iterator[None]:
    """Whatever refuses cold storage within says what thawing takes by the user's own table, where there is one."""
    try:
        yield
    except PgkeepError as error:
        from pgkeep.cold.needs import ColdBackup, thaw_hint

        if isinstance(error, ColdBackup) and error.need is not None:
            from pgkeep.cold.from_settings import class_facts

            settings = chosen.settings()
            facts = None if settings is None else class_facts(settings)
            if facts is not None:
                error.need.facts = facts
                error.hint = thaw_hint(error.backup, error.need)
        raise
