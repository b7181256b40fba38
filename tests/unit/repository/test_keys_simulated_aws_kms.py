"""Keys of AWS KMS open repositories. The service is simulated: a stand-in on loopback speaks its API to Amazon's own library."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from pgkeep.errors import KeyFailure
from pgkeep.repository import KeyFile, Repository
from pgkeep.repository.keys.aws_kms import AwsKmsKey
from pgkeep.repository.keys.slots import read_slot
from pgkeep.repository.packs import PackKind
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.records import write_record
from support.simulated_kms import SimulatedKms, simulated_kms

KEY = KeyFile(bytes(range(32)))


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedKms]:
    """The one that this process asks, with the keys alias/backups and alias/other."""
    with simulated_kms() as service:
        service.new_key("alias/backups")
        service.new_key("alias/other")
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        yield service


def test_a_simulated_kms_key_opens_what_it_has_wrapped_by_each_of_its_names(
    store: PosixStore, kms: SimulatedKms
) -> None:
    repository = Repository.create(store, AwsKmsKey("alias/backups"))
    with repository.writer() as writer:
        content = writer.put(PackKind.DATA, b"rows").id
    arn = read_slot(store, repository.slots.own.name).whose
    assert arn.startswith("arn:aws:kms:eu-central-1:")
    for named in ("alias/backups", arn, arn.rpartition("/")[2]):
        assert Repository.open(store, AwsKmsKey(named)).reader().get(content) == b"rows"


def test_another_simulated_kms_key_opens_nothing(store: PosixStore, kms: SimulatedKms) -> None:
    repository = Repository.create(store, AwsKmsKey("alias/backups"))
    with pytest.raises(KeyFailure, match="this key of AWS KMS does not open the repository"):
        Repository.open(store, AwsKmsKey("alias/other"))
    repository.slots.add(AwsKmsKey("alias/other"))
    assert Repository.open(store, AwsKmsKey("alias/other")).slots.root_keys == 1


def test_a_simulated_kms_slot_opens_its_own_repository_alone(store: PosixStore, kms: SimulatedKms) -> None:
    """The encryption context names the repository, for policies and for the service's log."""
    first = Repository.create(store, AwsKmsKey("alias/backups"))
    second = Repository.create(PosixStore(f"{store.root}-second"), KEY)
    fields = {name: value for name, value in first.slots.own.fields.items() if name != "check"}
    write_record(second.store, "keys/00000000.json", fields)
    with pytest.raises(KeyFailure, match="this key of AWS KMS does not open the repository"):
        Repository.open(second.store, AwsKmsKey("alias/backups"))
    families = [first.keys.family.hex(), second.keys.family.hex()]
    assert kms.calls == [("GenerateDataKey", {"pgkeep": families[0]}), ("Decrypt", {"pgkeep": families[1]})]


def test_a_simulated_kms_key_that_was_disabled_says_so_and_other_slots_open(
    store: PosixStore, kms: SimulatedKms
) -> None:
    arn = kms.new_key("alias/disabled")
    Repository.create(store, AwsKmsKey(arn)).slots.add(KEY)
    kms.disabled.add(arn)
    with pytest.raises(KeyFailure, match=f"AWS KMS refuses the key {arn}: DisabledException") as caught:
        Repository.open(store, AwsKmsKey(arn))
    assert "aws sts get-caller-identity" in str(caught.value.hint)
    assert Repository.open(store, KEY).slots.root_keys == 1


def test_a_simulated_kms_key_that_is_not_there_is_an_error_that_names_it(store: PosixStore, kms: SimulatedKms) -> None:
    with pytest.raises(KeyFailure, match="AWS KMS refuses the key alias/none: NotFoundException"):
        Repository.create(store, AwsKmsKey("alias/none"))


def test_credentials_of_a_simulated_kms_that_may_wrap_and_not_unwrap_add_a_slot_for_others(
    store: PosixStore, kms: SimulatedKms
) -> None:
    kms.denied.add("Decrypt")
    slots = Repository.create(store, KEY).slots
    slots.add(AwsKmsKey("alias/backups"))
    assert "AccessDeniedException" in str(slots.unproven)
    with pytest.raises(KeyFailure, match="AccessDeniedException"):
        Repository.open(store, AwsKmsKey("alias/backups"))
    kms.denied.clear()
    assert Repository.open(store, AwsKmsKey("alias/backups")).slots.root_keys == 1


def test_wrong_credentials_of_a_simulated_kms_are_refused(
    store: PosixStore, kms: SimulatedKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guessed")
    with pytest.raises(KeyFailure, match="AWS KMS refuses the key alias/backups: InvalidSignatureException"):
        Repository.create(store, AwsKmsKey("alias/backups"))


def test_a_kms_that_does_not_answer_is_an_error_with_another_way_in(
    store: PosixStore, kms: SimulatedKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    Repository.create(store, AwsKmsKey("alias/backups"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:9")
    # between its tries
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(
        KeyFailure, match=r"AWS KMS cannot be asked for the key alias/backups: .*127\.0\.0\.1:9"
    ) as caught:
        Repository.open(store, AwsKmsKey("alias/backups"))
    assert "--key-file" in str(caught.value.hint)


def test_without_a_region_or_credentials_the_error_says_what_is_missing(
    store: PosixStore, kms: SimulatedKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    with pytest.raises(
        KeyFailure, match="AWS KMS cannot be asked for the key alias/backups: You must specify a region"
    ):
        Repository.create(store, AwsKmsKey("alias/backups"))


def test_without_amazons_library_one_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch, store: PosixStore) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(KeyFailure, match="needs Amazon's own library") as caught:
        Repository.create(store, AwsKmsKey("alias/backups"))
    assert "pgkeep[aws]" in str(caught.value.hint)


def test_in_sealed_mode_a_simulated_kms_key_can_be_who_reads(store: PosixStore, kms: SimulatedKms) -> None:
    host = Repository.create(store, KEY, reader=AwsKmsKey("alias/backups"))
    host.wal(7).put("000000010000000000000001", b"commit")
    with pytest.raises(KeyFailure, match="does not read data or WAL back"):
        host.wal(7).get("000000010000000000000001")
    reader = Repository.open(store, AwsKmsKey("alias/backups"))
    assert reader.wal(7).get("000000010000000000000001") == b"commit"
