"""A collector's reckoning with very many packs, simulated: an index of packs that are not there, of which every third is needed in part.

``PGKEEP_SIMULATED_PACKS=1000000`` for the whole of it.
"""

from __future__ import annotations

import os
import sys
import time
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np

from pgkeep.collection.live import LiveContents
from pgkeep.collection.references import References
from pgkeep.repository import index as index_module
from pgkeep.repository.parameters import Parameters
from support.jobs import new_repository

if TYPE_CHECKING:
    from pathlib import Path

PACKS = int(os.environ.get("PGKEEP_SIMULATED_PACKS", "20000"))
CONTENTS = 10
"""Of a pack; real ones have some hundred, cells of a megabyte."""


def test_very_many_simulated_packs_are_reckoned_up_in_bounded_memory(tmp_path: Path) -> None:
    repository = new_repository(tmp_path / "repository", Parameters())
    chance = np.random.default_rng(1)
    ids = np.sort(np.frombuffer(chance.bytes(32 * PACKS * CONTENTS), "S32"))
    places = np.empty((len(ids), 5), "<u4")
    places[:, 0] = chance.permutation(len(ids)) % PACKS
    places[:, 1:] = (44, 1000, 3000, 1)
    digests = chance.bytes(32 * PACKS)
    packs = [index_module._PACK.pack(digests[32 * number : 32 * number + 32], 1) for number in range(PACKS)]
    index_module._write(repository.store, repository.keys, packs, len(ids), ids.tobytes(), places.tobytes())
    needed = ids[places[:, 0] % 3 == 0][::2]

    tracemalloc.start()
    begun = time.monotonic()
    live = LiveContents(repository, references=References(repository))
    for first in range(0, len(needed), 100_000):
        live._waiting.append(needed[first : first + 100_000])
        live._mark()
    uses = live.packs()
    took = time.monotonic() - begun
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(uses) == PACKS
    assert sum(use.live for use in uses.values()) == 1000 * len(needed)
    assert sum(not use.live for use in uses.values()) >= PACKS * 2 // 3 - 1
    sys.stdout.write(f"{PACKS} packs, {len(ids)} contents: {took:.1f} s, {peak >> 20} MiB\n")
    # the bytes a pack's name and numbers take, and those of a content's mark; the index itself is mapped
    assert peak < PACKS * 1500 + len(ids) * 30 + (8 << 20)
