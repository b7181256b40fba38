"""Expiry and collection in a bucket behind a line that breaks: nothing that is kept is lost, and what is to go is gone."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from pgkeep.collection import CollectRequest, run_collect
from pgkeep.policy import ExpireRequest, run_expire
from pgkeep.repository import Repository, open_store
from pgkeep.repository.parameters import Parameters
from support.fault_proxy import RandomFaults
from support.jobs import KEY
from support.tiny_backups import contents_of, make_backup, page

if TYPE_CHECKING:
    from support.fault_proxy import FaultProxy
    from support.seaweed import S3Bucket

pytestmark = pytest.mark.deletes


_SEED = int(os.environ.get("PGKEEP_KILL_SEED", "20261123"))
_REQUEST = CollectRequest(grace=timedelta(0), live_share=0.9)


def test_what_goes_goes_and_what_stays_is_whole_over_a_line_that_breaks(
    s3_bucket: S3Bucket, fault_proxy: FaultProxy
) -> None:
    """Resets, half answers, errors and flipped bits, on every fifth request."""
    url = s3_bucket.url_at(fault_proxy.endpoint)
    repository = Repository.create(open_store(url), KEY, Parameters(pack_size=40_000))
    files = {f"f{number}".encode(): page(f"{number}") * 4 for number in range(8)}
    first = make_backup(repository, 1, files)
    entries = [file.entry for file in repository.tree(first).files()]
    make_backup(repository, 1, {b"new": page("new")}, entries[:2])
    fault_proxy.plan = RandomFaults(_SEED, rate=0.2)

    run_expire(ExpireRequest(rules=None, remove=[first.id]), Repository.open(open_store(url), KEY))
    for _ in range(2):
        report = run_collect(_REQUEST, Repository.open(open_store(url), KEY))

    assert fault_proxy.count() > 10
    fault_proxy.plan = None
    kept = Repository.open(open_store(s3_bucket.url), KEY)
    assert report.refused == []
    assert report.deleted > 0
    (name,) = kept.catalog.names()
    whole = contents_of(kept, kept.catalog.read(name))
    assert whole.keys() == {b"f0", b"f1", b"new"}
    assert (whole[b"f0"], whole[b"f1"]) == (files[b"f0"], files[b"f1"])
    assert sum(info.size for info in kept.store.list("packs/data/")) < sum(map(len, files.values())) / 3
