"""An expiry on a real S3 server whose network breaks, or whose bucket forbids it: backups stay whole, and what is left is ended later."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from pgkeep.errors import StoreError
from pgkeep.policy import ExpireRequest, Rules, run_expire
from pgkeep.postgres.wal import segment_name
from pgkeep.repository import Repository, open_store
from pgkeep.repository.manifests import BackupName, WalRange
from pgkeep.repository.object_store import ObjectStore
from pgkeep.repository.object_store_address import ObjectAddress
from pgkeep.repository.object_store_client import Patience
from pgkeep.units import utc_now
from support.fault_proxy import Fault, FaultProxy, RandomFaults
from support.jobs import KEY
from support.manifests import plain_manifest

if TYPE_CHECKING:
    from support.fault_proxy import Message
    from support.seaweed import S3Bucket, SeaweedServer

pytestmark = pytest.mark.deletes


_SEED = int(os.environ.get("PGKEEP_FAULT_SEED", "20261123"))
SYSTEM = 7123
SIZE = 16 << 20
HASTE = Patience(connect=2, small=0.5, transfer=5, stall=0.5, retry_for=20, first=5, wait_least=0.01, wait_most=0.1)
"""For a store that is on this machine."""
GIVES_UP = Patience(connect=2, small=0.5, transfer=5, stall=0.5, retry_for=1, first=1, wait_least=0.01, wait_most=0.1)
IDS = [f"2026112{day}T030000.000Z-00000000" for day in range(6)]


@pytest.fixture
def archive(s3_bucket: S3Bucket) -> Repository:
    """Six backups, each with two segments of WAL of its own and eight behind."""
    repository = Repository.create(open_store(s3_bucket.url), KEY)
    for number, id_ in enumerate(IDS):
        moment = utc_now() - timedelta(minutes=10 - number)
        start = (number * 10 + 1) * SIZE
        names = [segment_name(1, start + SIZE * segment, SIZE) for segment in range(10)]
        for name in names:
            repository.wal(SYSTEM).put(name, b"WAL")
        repository.catalog.commit(
            plain_manifest(
                id=id_,
                cluster="auth",
                system_identifier=SYSTEM,
                started=moment,
                finished=moment,
                start_lsn=start,
                stop_lsn=start + SIZE + 1,
                wal=WalRange(1, start, start + SIZE + 1, SIZE, names[:2], 0),
            )
        )
    repository.pins.add(BackupName(IDS[1], SYSTEM), "case 4711", None)
    return repository


def through(url: str, patience: Patience = HASTE) -> Repository:
    return Repository.open(ObjectStore(ObjectAddress.parse(url), patience), KEY)


def expire(repository: Repository) -> None:
    """All but the last two and the pinned one; the store's times are in whole seconds."""
    rules = Rules(minimum=2, grace=timedelta(0))
    run_expire(ExpireRequest(rules=rules, now=utc_now() + timedelta(seconds=2)), repository)


def expect_sound(repository: Repository) -> None:
    there = {name for name, _ in repository.wal(SYSTEM).names()}
    for manifest in repository.catalog.read_all():
        assert set(manifest.wal.segments) <= there, f"{manifest.id} lacks WAL"


def expect_ended(repository: Repository) -> None:
    assert [name.id for name in repository.catalog.names()] == [IDS[1], *IDS[4:]]
    # of the pinned one and the last but one their own, and all behind the last
    assert len(list(repository.wal(SYSTEM).names())) == 2 + 2 + 10
    assert list(repository.store.list("leases/")) == []
    expect_sound(repository)


def test_it_ends_its_work_whatever_happens_to_its_requests(
    archive: Repository, s3_bucket: S3Bucket, fault_proxy: FaultProxy
) -> None:
    fault_proxy.plan = RandomFaults(_SEED, rate=0.3)

    expire(through(s3_bucket.url_at(fault_proxy.endpoint)))

    expect_ended(archive)
    assert len({fault for _, _, fault in fault_proxy.requests}) > 3


@pytest.mark.parametrize("after", [1, 5])
def test_a_network_that_is_gone_after_some_deletions_leaves_whole_backups(
    archive: Repository, s3_bucket: S3Bucket, fault_proxy: FaultProxy, after: int
) -> None:
    done = 0

    def gone(message: Message) -> Fault:
        nonlocal done
        done += message.method == "DELETE"
        return Fault.RESET if done > after else Fault.NONE

    fault_proxy.plan = gone
    with pytest.raises(StoreError):
        expire(through(s3_bucket.url_at(fault_proxy.endpoint), GIVES_UP))
    expect_sound(archive)

    for lease in archive.store.list("leases/"):
        # of a job of this very process, which lives on
        archive.store.delete(lease.name)
    expire(archive)
    expect_ended(archive)


def test_credentials_that_cannot_delete_expire_nothing(
    archive: Repository, s3_bucket: S3Bucket, s3_server: SeaweedServer
) -> None:
    """The writer's: whoever has stolen them makes nothing go by the program either."""
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:DeleteObject"],
        "Resource": [f"arn:aws:s3:::{s3_bucket.name}/*"],
    }
    body = json.dumps({"Version": "2012-10-17", "Statement": [statement]}).encode()
    assert s3_bucket.request("PUT", "", query={"policy": ""}, body=body).status == 204
    writer = {"credentials_file": str(s3_server.credentials_file), "profile": "writer"}
    before = {info.name for info in archive.store.list("clusters/")}

    with pytest.raises(StoreError, match="access denied") as caught:
        expire(through(s3_bucket.url_at(s3_server.endpoint, **writer)))

    assert "s3:DeleteObject" in (caught.value.hint or "")
    assert before <= {info.name for info in archive.store.list("clusters/")}
    expect_sound(archive)
