from __future__ import annotations

import os
import struct

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.errors import DamageError
from pgkeep.repository.crypto import TAG_SIZE, KeyRing, Suite, derive_key

FAMILY = bytes(range(16))
RINGS = {
    Suite.AES_256_GCM: KeyRing(Suite.AES_256_GCM, bytes(range(32)), FAMILY),
    Suite.NONE: KeyRing.unencrypted(FAMILY),
}
rings = st.sampled_from(list(RINGS.values()))


@given(key=st.binary(min_size=32, max_size=32), salt=st.binary(max_size=80), purpose=st.text(max_size=20))
def test_a_derived_key_is_that_of_an_independent_hkdf(key: bytes, salt: bytes, purpose: str) -> None:
    expected = HKDF(SHA256(), 32, salt, b"pgkeep/1 " + purpose.encode()).derive(key)
    assert derive_key(key, salt, purpose) == expected


def test_the_independent_hkdf_gives_the_vector_of_rfc_5869() -> None:
    """Appendix A.1: what `derive_key` is held against is the standard's."""
    okm = HKDF(SHA256(), 42, bytes(range(13)), bytes(range(0xF0, 0xFA))).derive(b"\x0b" * 22)
    assert okm.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )  # fmt: skip


@given(
    ring=rings,
    plain=st.binary(max_size=300),
    associated=st.binary(max_size=50),
    nonce=st.binary(min_size=12, max_size=12),
)
def test_what_is_sealed_opens(ring: KeyRing, plain: bytes, associated: bytes, nonce: bytes) -> None:
    sealer = ring.sealer(bytes(32), "test")
    sealed = sealer.seal(nonce, memoryview(plain), associated)
    assert len(sealed) == len(plain) + TAG_SIZE
    assert sealer.open(nonce, memoryview(sealed), associated) == plain
    assert (sealed[:-TAG_SIZE] == plain) <= (ring.suite is Suite.NONE or len(plain) < 4)


@settings(max_examples=200)
@given(ring=rings, plain=st.binary(max_size=60), associated=st.binary(min_size=1, max_size=20), data=st.data())
def test_a_flipped_bit_anywhere_is_found(ring: KeyRing, plain: bytes, associated: bytes, data: st.DataObject) -> None:
    sealer = ring.sealer(bytes(32), "test")
    parts = {"nonce": bytes(12), "sealed": sealer.seal(bytes(12), plain, associated), "associated": associated}
    which = data.draw(st.sampled_from(sorted(parts)))
    changed = bytearray(parts[which])
    bit = data.draw(st.integers(0, len(changed) * 8 - 1))
    changed[bit // 8] ^= 1 << bit % 8
    parts[which] = bytes(changed)
    with pytest.raises(DamageError):
        sealer.open(parts["nonce"], parts["sealed"], parts["associated"])


@pytest.mark.parametrize("ring", RINGS.values(), ids=["encrypted", "plain"])
@pytest.mark.parametrize("size", [0, 1, 15, 16])
def test_bytes_too_short_for_a_tag_are_damage(ring: KeyRing, size: int) -> None:
    with pytest.raises(DamageError):
        ring.sealer(bytes(32), "test").open(bytes(12), bytes(size), b"")


@pytest.mark.parametrize("ring", RINGS.values(), ids=["encrypted", "plain"])
def test_bytes_cannot_pass_between_nonce_associated_data_and_plain_text(ring: KeyRing) -> None:
    sealer = ring.sealer(bytes(32), "test")
    sealed = sealer.seal(b"x" * 12, b"xyz", b"ab")
    with pytest.raises(DamageError):
        sealer.open(b"x" * 12, sealed, b"abx")


@pytest.mark.parametrize(("salt", "purpose"), [(b"\x01" * 32, "test"), (bytes(32), "other")])
@pytest.mark.parametrize("ring", RINGS.values(), ids=["encrypted", "plain"])
def test_another_salt_or_purpose_is_another_key(ring: KeyRing, salt: bytes, purpose: str) -> None:
    sealed = ring.sealer(bytes(32), "test").seal(bytes(12), b"plain", b"")
    with pytest.raises(DamageError):
        ring.sealer(salt, purpose).open(bytes(12), sealed, b"")


def test_the_encrypted_suite_is_aes_256_gcm() -> None:
    ring = RINGS[Suite.AES_256_GCM]
    sealed = ring.sealer(b"s" * 32, "p").seal(b"n" * 12, b"plain", b"ad")
    assert AESGCM(derive_key(ring.root_key, b"s" * 32, "p")).decrypt(b"n" * 12, sealed, b"ad") == b"plain"


def test_the_plain_suite_ends_with_sixteen_bytes_of_keyed_blake3() -> None:
    ring = RINGS[Suite.NONE]
    sealed = ring.sealer(b"s" * 32, "p").seal(b"n" * 12, b"plain", b"ad")
    key = derive_key(ring.root_key, b"s" * 32, "p")
    hashed = struct.pack("<Q", 2) + b"ad" + b"n" * 12 + b"plain"
    assert sealed == b"plain" + blake3(hashed, key=key).digest()[:16]


def test_a_content_id_depends_on_content_and_key() -> None:
    ring = RINGS[Suite.AES_256_GCM]
    other = KeyRing(Suite.AES_256_GCM, os.urandom(32), FAMILY)
    assert ring.content_id(b"a") == ring.content_id(bytearray(b"a"))
    assert len({ring.content_id(b"a"), ring.content_id(b"b"), other.content_id(b"a"), blake3(b"a").digest()}) == 4


def test_the_root_key_does_not_show_in_a_traceback() -> None:
    ring = KeyRing(Suite.AES_256_GCM, b"very secret".ljust(32), FAMILY)
    assert "very secret" not in repr(ring)
