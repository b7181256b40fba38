from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import DamageError, KeyFailure
from pgkeep.repository.crypto import Generation
from pgkeep.repository.keys import KeyFile, Passphrase, Secret, create_slot, open_key_ring
from pgkeep.repository.posix import PosixStore
from pgkeep.repository.records import read_record, write_record

FAMILY, ROOT_KEY = bytes(range(16)), bytes(range(100, 132))
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


def add_slot(store: PosixStore, family: bytes, root_key: bytes, secret: Secret) -> str:
    return create_slot(store, family, [Generation(root_key)], secret).slot.name


def unwrap_root_key(store: PosixStore, family: bytes, secret: Secret) -> bytes:
    return open_key_ring(store, family, secret).root_key


secrets = st.binary(min_size=32, max_size=32).map(KeyFile)


@pytest.mark.parametrize("kind", ["key", "passphrase"])
def test_the_secret_of_a_slot_opens_it_and_another_does_not(store: PosixStore, kind: str) -> None:
    right, wrong = (KeyFile(bytes(32)), KeyFile(b"\1" * 32)) if kind == "key" else (Passphrase("ř"), Passphrase("r"))
    add_slot(store, FAMILY, ROOT_KEY, right)
    assert unwrap_root_key(store, FAMILY, right) == ROOT_KEY
    with pytest.raises(KeyFailure, match=f"this {kind} does not open the repository at file://"):
        unwrap_root_key(store, FAMILY, wrong)


def test_each_of_several_slots_opens_the_repository(store: PosixStore) -> None:
    several = [KeyFile(bytes([number]) * 32) for number in range(3)]
    for secret in several:
        add_slot(store, FAMILY, ROOT_KEY, secret)
    assert [unwrap_root_key(store, FAMILY, secret) for secret in several] == [ROOT_KEY] * 3
    with pytest.raises(KeyFailure, match="this passphrase does not open"):
        unwrap_root_key(store, FAMILY, Passphrase("never asked"))


def test_a_passphrase_slot_says_how_its_key_is_derived_and_no_secret(store: PosixStore) -> None:
    slot = add_slot(store, FAMILY, ROOT_KEY, Passphrase("open sesame"))
    fields = read_record(store, f"keys/{slot}.json")
    assert fields["kdf"] == {"name": "argon2id", "memory_cost": 65536, "parallelism": 4, "time_cost": 3}
    assert b"sesame" not in store.get(f"keys/{slot}.json")
    assert ROOT_KEY.hex().encode() not in store.get(f"keys/{slot}.json")


def test_a_slot_of_another_name_family_or_kind_does_not_open(store: PosixStore) -> None:
    secret = KeyFile(bytes(32))
    slot = add_slot(store, FAMILY, ROOT_KEY, secret)
    with pytest.raises(KeyFailure):
        unwrap_root_key(store, bytes(16), secret)
    fields = read_record(store, f"keys/{slot}.json")
    store.delete(f"keys/{slot}.json")
    write_record(store, "keys/00000000.json", fields)
    with pytest.raises(KeyFailure):
        unwrap_root_key(store, FAMILY, secret)


def damaged_slot(store: PosixStore, change: dict[str, object]) -> None:
    slot = add_slot(store, FAMILY, ROOT_KEY, KeyFile(bytes(32)))
    fields = {**read_record(store, f"keys/{slot}.json"), **change}
    store.delete(f"keys/{slot}.json")
    write_record(store, f"keys/{slot}.json", {name: value for name, value in fields.items() if value is not None})


@pytest.mark.parametrize(
    "change", [{"salt": None}, {"nonce": "xy"}, {"nonce": ""}, {"wrapped": 5}, {"nonce": "00" * 200}]
)
def test_a_slot_with_senseless_fields_is_damage_unless_another_opens(
    store: PosixStore, change: dict[str, object]
) -> None:
    damaged_slot(store, change)
    with pytest.raises(DamageError, match=r"keys/.*json is damaged"):
        unwrap_root_key(store, FAMILY, KeyFile(bytes(32)))
    add_slot(store, FAMILY, ROOT_KEY, KeyFile(b"\2" * 32))
    assert unwrap_root_key(store, FAMILY, KeyFile(b"\2" * 32)) == ROOT_KEY


def test_a_slot_that_is_no_record_any_more_is_damage_unless_another_opens(store: PosixStore) -> None:
    store.put("keys/00000000.json", [b"{}"])
    with pytest.raises(DamageError):
        unwrap_root_key(store, FAMILY, KeyFile(bytes(32)))
    add_slot(store, FAMILY, ROOT_KEY, KeyFile(bytes(32)))
    assert unwrap_root_key(store, FAMILY, KeyFile(bytes(32))) == ROOT_KEY


@given(secret=secrets)
def test_the_printed_form_of_a_key_reads_back(secret: KeyFile) -> None:
    groups = secret.text().split("-")
    assert groups[0] == "PGKEEP1"
    assert [len(group) for group in groups[1:]] == [4] * 14 + [2]
    assert KeyFile.from_recovery_key(secret.text()) == secret


@given(secret=secrets, data=st.data())
def test_case_dashes_and_spaces_do_not_matter(secret: KeyFile, data: st.DataObject) -> None:
    letters = secret.text().replace("-", "")
    gaps = data.draw(
        st.lists(st.sampled_from(["", "-", " ", "\n", "\t", " - "]), min_size=len(letters), max_size=len(letters))
    )
    written = "".join(gap + letter for gap, letter in zip(gaps, letters, strict=True))
    assert KeyFile.from_recovery_key(written.lower()) == secret
    assert KeyFile.from_recovery_key(written + "\r\n") == secret


@given(secret=secrets, position=st.integers(7, 64), letter=st.sampled_from(ALPHABET + "01é"))
def test_a_mistyped_letter_never_gives_another_key(secret: KeyFile, position: int, letter: str) -> None:
    letters = secret.text().replace("-", "")
    changed = letters[:position] + letter + letters[position + 1 :]
    if position == 64:
        # two of the last letter's bits mean nothing
        try:
            assert KeyFile.from_recovery_key(changed) == secret
        except KeyFailure:
            assert changed != letters
    elif changed != letters:
        with pytest.raises(KeyFailure, match="the recovery key does not hold a pgkeep key") as caught:
            KeyFile.from_recovery_key(changed)
        assert letters[8:20] not in str(caught.value) + str(caught.value.hint)


@pytest.mark.parametrize(
    "text", ["", "PGKEEP1", "PGKEEP1-AAAA", "hello", "PGKEEP2-" + "AAAA-" * 14, "PGKEEP1" + "A" * 58]
)
def test_other_text_is_no_key(text: str) -> None:
    with pytest.raises(KeyFailure, match="does not hold a pgkeep key"):
        KeyFile.from_recovery_key(text)


def test_a_key_file_is_for_its_owner_alone_and_reads_back(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        key = KeyFile.generate(tmp_path / "main.key")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "main.key").stat().st_mode) == 0o600
    assert KeyFile.read(tmp_path / "main.key") == key
    assert (tmp_path / "main.key").read_text() == key.text() + "\n"
    assert KeyFile.generate(tmp_path / "other.key") != key


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    key = KeyFile.generate(tmp_path / "main.key")
    with pytest.raises(KeyFailure, match=r"cannot create the key file .*: File exists"):
        KeyFile.generate(tmp_path / "main.key")
    assert KeyFile.read(tmp_path / "main.key") == key


def test_a_key_file_that_could_not_be_made_durable_is_no_key_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def simulated_full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", simulated_full_disk)
    with pytest.raises(KeyFailure, match=r"cannot write the key file .*: No space left on device"):
        KeyFile.generate(tmp_path / "main.key")
    assert not (tmp_path / "main.key").exists()


def test_unreadable_key_files_are_errors_that_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text("\n")
    for read in (KeyFile.read, Passphrase.read):
        with pytest.raises(KeyFailure, match=r"cannot read .*missing: No such file"):
            read(tmp_path / "missing")
        with pytest.raises(KeyFailure, match=r"cannot read .*binary: it is not text"):
            read(tmp_path / "binary")
    with pytest.raises(KeyFailure, match="empty does not hold a pgkeep key"):
        KeyFile.read(tmp_path / "empty")
    with pytest.raises(KeyFailure, match=r"the passphrase file .*empty is empty"):
        Passphrase.read(tmp_path / "empty")


def test_a_passphrase_is_its_files_text_without_the_line_end(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b" two words \r\n")
    assert Passphrase.read(tmp_path / "p") == Passphrase(" two words ")


def test_secrets_do_not_show_in_tracebacks() -> None:
    assert "sesame" not in repr(Passphrase("sesame"))
    assert "AAAA" not in repr(KeyFile(b"A" * 32))
