"""What is lost when a server dies together with its disk; ``python -m bench.loss`` measures the same two hundred times."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from bench.loss import Scenario, measure
from pgkeep.postgres.account import give_to, server_account

if TYPE_CHECKING:
    from pathlib import Path

_SHIP_EVERY = 1.0


def _scenario(major: int, *, synchronous: bool, kill_receiver: bool) -> Scenario:
    return Scenario(major, synchronous, kill_receiver, _SHIP_EVERY, random.uniform(1.2, 2.5))


@pytest.fixture
def place(work_dir: Path) -> Path:
    """An empty directory that belongs to the server's account."""
    give_to(server_account(), work_dir)
    return work_dir


@pytest.mark.parametrize(("major", "kill_receiver"), [(18, False), (15, True)])
def test_without_synchronous_less_than_ship_every_and_two_seconds_are_lost(
    place: Path, major: int, kill_receiver: bool
) -> None:
    """Even where the receiver dies with the server, spool and all, and only the repository is left."""
    loss = measure(_scenario(major, synchronous=False, kill_receiver=kill_receiver), place)

    assert loss.acknowledged > 5
    assert loss.seconds < _SHIP_EVERY + 2
    assert abs(loss.measured - loss.seconds) < 2, "what pgkeep says is lost, without the server, and what was"


@pytest.mark.parametrize(("major", "kill_receiver"), [(17, False), (18, True)])
def test_with_synchronous_no_acknowledged_commit_is_lost(place: Path, major: int, kill_receiver: bool) -> None:
    """The spool has what the repository has not; the next receiver ships it, though there is no server any more."""
    loss = measure(_scenario(major, synchronous=True, kill_receiver=kill_receiver), place)

    assert loss.acknowledged > 5
    assert loss.lost == 0
    assert loss.measured < 2
