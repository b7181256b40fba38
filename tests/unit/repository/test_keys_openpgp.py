"""OpenPGP recipients open repositories, by the gpg program and real key rings."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from pgkeep import gpg
from pgkeep.errors import KeyFailure
from pgkeep.repository import KeyFile, Repository
from pgkeep.repository.keys.openpgp import OpenPgpRecipient
from pgkeep.repository.keys.slots import read_slot
from pgkeep.repository.packs import PackKind
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.records import read_record, write_record
from support.gpg_home import KeyRingHome, key_ring

KEY = KeyFile(bytes(range(32)))


@pytest.fixture(scope="module")
def people() -> Iterator[KeyRingHome]:
    """Ann and Ben, who have their secret keys."""
    with key_ring() as home:
        home.new_key("Ann <ann@example.com>")
        home.new_key("Ben <ben@example.com>")
        yield home


@pytest.fixture(scope="module")
def host(people: KeyRingHome) -> Iterator[KeyRingHome]:
    """It knows their public keys only."""
    with key_ring() as home:
        for fingerprint in people.fingerprints():
            people.give_public(fingerprint, home)
        yield home


def as_(home: KeyRingHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNUPGHOME", str(home.directory))


def test_a_host_lets_a_recipient_in_whose_secret_key_it_does_not_have(
    store: PosixStore, people: KeyRingHome, host: KeyRingHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = people.fingerprints()[0]
    as_(host, monkeypatch)
    repository = Repository.create(store, KEY)
    with repository.writer() as writer:
        content = writer.put(PackKind.DATA, b"rows").id
    slots = repository.slots
    slot = slots.add(OpenPgpRecipient(ann))

    assert (slot.kind, slot.whose) == ("openpgp", ann)
    assert "No secret key" in str(slots.unproven), "what is added is opened once, where that can be done"
    with pytest.raises(KeyFailure, match=r"gpg does not decrypt: .*No secret key"):
        Repository.open(store, OpenPgpRecipient(ann))
    as_(people, monkeypatch)
    for named in (ann, "ann@example.com", f"0x{ann}"):
        assert Repository.open(store, OpenPgpRecipient(named)).reader().get(content) == b"rows"
    message = base64.b64decode(str(read_slot(store, slot.name).fields["message"]))
    assert len(people.gpg("--decrypt", given=message)) == 32


def test_a_recipient_does_not_open_what_is_anothers(
    store: PosixStore, people: KeyRingHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_(people, monkeypatch)
    repository = Repository.create(store, OpenPgpRecipient("ann@example.com"))
    with pytest.raises(KeyFailure, match="this OpenPGP recipient does not open the repository"):
        Repository.open(store, OpenPgpRecipient("ben@example.com"))
    repository.slots.add(OpenPgpRecipient("ben@example.com"))
    assert Repository.open(store, OpenPgpRecipient("ben@example.com")).slots.own.whose == people.fingerprints()[1]


def test_a_recipient_who_was_removed_opens_nothing(
    store: PosixStore, people: KeyRingHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_(people, monkeypatch)
    repository = Repository.create(store, KEY)
    slot = repository.slots.add(OpenPgpRecipient("ben@example.com"))
    repository.slots.remove(slot.name)
    with pytest.raises(KeyFailure, match="this OpenPGP recipient does not open"):
        Repository.open(store, OpenPgpRecipient("ben@example.com"))


def test_in_sealed_mode_a_host_needs_only_the_public_key_of_who_reads(
    store: PosixStore, people: KeyRingHome, host: KeyRingHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the host never has had anything that reads."""
    as_(host, monkeypatch)
    repository = Repository.create(store, KEY, reader=OpenPgpRecipient(people.fingerprints()[0]))
    with repository.writer() as writer:
        content = writer.put(PackKind.DATA, b"rows").id
    with pytest.raises(KeyFailure, match="does not read data or WAL back"):
        repository.reader().get(content)
    as_(people, monkeypatch)
    assert Repository.open(store, OpenPgpRecipient("ann@example.com")).reader().get(content) == b"rows"


def test_a_new_root_key_reaches_recipients_who_are_away(
    store: PosixStore, people: KeyRingHome, host: KeyRingHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_(host, monkeypatch)
    repository = Repository.create(store, KEY, reader=None)
    repository.slots.add(OpenPgpRecipient(people.fingerprints()[1]))
    repository.slots.new_root()
    as_(people, monkeypatch)
    assert Repository.open(store, OpenPgpRecipient("ben@example.com")).slots.root_keys == 2


def test_names_that_fit_no_key_or_several_are_errors_that_say_so(
    people: KeyRingHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_(people, monkeypatch)
    with pytest.raises(KeyFailure, match=r"gpg knows no key for 'cid@example.com'") as caught:
        gpg.find_recipient("cid@example.com")
    assert "gpg --import" in str(caught.value.hint)
    with pytest.raises(KeyFailure, match=r"gpg knows 2 keys for 'example.com'") as several:
        gpg.find_recipient("example.com")
    assert all(fingerprint in str(several.value.hint) for fingerprint in people.fingerprints())


def test_a_public_key_that_nobody_trusts_is_taken_by_its_fingerprint_alone(
    people: KeyRingHome, host: KeyRingHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can make a key with somebody else's address."""
    as_(host, monkeypatch)
    with pytest.raises(KeyFailure, match=r"gpg does not encrypt to 'ann@example.com'") as caught:
        gpg.encrypt(b"plain", "ann@example.com")
    assert "fingerprint" in str(caught.value.hint)
    message = gpg.encrypt(b"plain", people.fingerprints()[0])
    as_(people, monkeypatch)
    assert gpg.decrypt(message) == b"plain"


def test_without_the_gpg_program_one_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(KeyFailure, match="no gpg program") as caught:
        gpg.decrypt(b"")
    assert caught.value.hint == "apt-get install gnupg"


def test_a_damaged_message_opens_nothing_and_other_slots_still_do(
    store: PosixStore, people: KeyRingHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_(people, monkeypatch)
    repository = Repository.create(store, OpenPgpRecipient("ann@example.com"))
    repository.slots.add(KEY)
    fields = read_record(store, repository.slots.own.object_name)
    store.delete(repository.slots.own.object_name)
    write_record(store, repository.slots.own.object_name, {**fields, "message": "AAAA"})
    with pytest.raises(KeyFailure, match="gpg does not decrypt"):
        Repository.open(store, OpenPgpRecipient("ann@example.com"))
    assert Repository.open(store, KEY).slots.root_keys == 1
