"""Writing past the page cache leaves the same bytes as writing through it."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep import direct_io

_BLOCK = 4096
SIZES = st.one_of(st.integers(0, 3 * _BLOCK), st.integers(120 << 10, 300 << 10), st.sampled_from([4 << 20, 9 << 20]))


@pytest.fixture(autouse=True)
def forget_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins with a file system that has refused nothing."""
    monkeypatch.setattr(direct_io, "_refused", set())


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file on the disk that temporary files are on."""
    return tmp_path_factory.mktemp("direct") / "file"


@settings(max_examples=40)
@given(sizes=st.lists(SIZES, max_size=5), seed=st.integers(0, 255))
def test_a_new_file_holds_its_parts_one_after_the_other(file: Path, sizes: list[int], seed: int) -> None:
    """Parts of any sizes, aligned or not."""
    parts = [bytes([(seed + number) % 256]) * size for number, size in enumerate(sizes)]
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        direct_io.write_new(descriptor, parts)
    finally:
        os.close(descriptor)

    assert file.read_bytes() == b"".join(parts)


@settings(max_examples=40)
@given(size=SIZES, block=st.integers(0, 40), shift=st.sampled_from([0, 0, 512, 1]))
def test_bytes_land_at_their_position_and_nowhere_else(file: Path, size: int, block: int, shift: int) -> None:
    """In the middle of a file of zeros."""
    position = block * _BLOCK + shift
    whole = position + size + _BLOCK
    file.write_bytes(b"")
    os.truncate(file, whole)

    direct_io.write_at(os.fsencode(file), memoryview(b"x" * size), position)

    assert file.read_bytes() == bytes(position) + b"x" * size + bytes(_BLOCK)


def test_a_file_system_that_refuses_direct_writes_gets_the_bytes_the_usual_way(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: pwrite answers EINVAL as long as the descriptor is direct."""
    pwrite = os.pwrite

    def refusing(descriptor: int, data: bytes, position: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "simulated")
        return pwrite(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", refusing)
    data = os.urandom(1 << 20)
    file.write_bytes(bytes(len(data)))
    direct_io.write_at(os.fsencode(file), memoryview(data), 0)
    written_in_place = file.read_bytes()
    monkeypatch.setattr(direct_io, "_refused", set())
    descriptor = os.open(file, os.O_WRONLY | os.O_TRUNC)
    try:
        direct_io.write_new(descriptor, [data[:1000], data[1000:]])
    finally:
        os.close(descriptor)

    assert (written_in_place, file.read_bytes()) == (data, data)


def test_a_disk_that_fills_up_in_a_direct_write_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: what the kernel says must reach the caller."""

    def full(_descriptor: int, _data: bytes, _position: int) -> int:
        raise OSError(errno.ENOSPC, "simulated")

    monkeypatch.setattr(os, "pwrite", full)
    file.write_bytes(bytes(1 << 20))

    with pytest.raises(OSError, match="simulated"):
        direct_io.write_at(os.fsencode(file), memoryview(bytes(1 << 20)), 0)
