from __future__ import annotations

import io
import itertools
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import DamageError
from pgkeep.postgres.tar import (
    END_OF_ARCHIVE,
    EndOfMember,
    MemberType,
    TarMember,
    TarReader,
    padding,
    tar_header,
)

TARFILE_TYPES = {
    MemberType.FILE: tarfile.REGTYPE,
    MemberType.DIRECTORY: tarfile.DIRTYPE,
    MemberType.SYMLINK: tarfile.SYMTYPE,
}
GIB = 1 << 30


def read(archive: bytes, cuts: list[int]) -> list[tuple[TarMember, bytes]]:
    """The members of an archive fed in chunks that end at these positions."""
    reader = TarReader()
    members: list[tuple[TarMember, bytes]] = []
    ended = True
    bounds = [0, *sorted(cut % (len(archive) + 1) for cut in cuts), len(archive)]
    for start, stop in itertools.pairwise(bounds):
        for event in reader.feed(memoryview(archive)[start:stop]):
            if isinstance(event, TarMember):
                assert ended
                members.append((event, b""))
                ended = False
            elif isinstance(event, EndOfMember):
                ended = True
            else:
                assert not ended
                assert len(event)
                member, data = members[-1]
                members[-1] = (member, data + event)
    assert ended
    reader.finish()
    return members


def member(name: bytes, size: int, kind: MemberType) -> TarMember:
    link = b"/srv/fast" if kind is MemberType.SYMLINK else b""
    size = size if kind is MemberType.FILE else 0
    return TarMember(name, size, 0o600, 1795400047, 101, 104, kind, link)


NAMES = st.from_regex(rb"[a-z0-9_.]{1,30}(/[a-z0-9_]{1,30}){0,2}", fullmatch=True)
MEMBERS = st.lists(
    st.builds(member, NAMES, st.sampled_from([0, 1, 511, 512, 513, 8192, 40_000]), st.sampled_from(MemberType)),
    max_size=5,
)
CUTS = st.lists(st.integers(0, 1 << 20), max_size=20)


def contents(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def written_by_tarfile(members: list[TarMember]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for entry in members:
            info = tarfile.TarInfo(entry.name.decode())
            info.size, info.mode, info.mtime = entry.size, entry.mode, entry.mtime
            info.uid, info.gid, info.linkname = entry.uid, entry.gid, entry.linkname.decode()
            info.type = TARFILE_TYPES[entry.type]
            archive.addfile(info, io.BytesIO(contents(entry.size)))
    return output.getvalue()


def written_by_us(members: list[TarMember]) -> bytes:
    parts = []
    for entry in members:
        parts.append(
            tar_header(
                entry.name,
                size=entry.size,
                mode=entry.mode,
                mtime=entry.mtime,
                type=entry.type,
                linkname=entry.linkname,
                uid=entry.uid,
                gid=entry.gid,
            )
        )
        parts += [contents(entry.size), padding(entry.size)]
    return b"".join(parts) + END_OF_ARCHIVE


@given(MEMBERS, CUTS)
def test_however_it_is_cut_the_same_members_come_out_as_went_in(members: list[TarMember], cuts: list[int]) -> None:
    assert read(written_by_tarfile(members), cuts) == [(entry, contents(entry.size)) for entry in members]


@given(MEMBERS)
def test_what_is_written_is_what_tarfile_reads(members: list[TarMember]) -> None:
    with tarfile.open(fileobj=io.BytesIO(written_by_us(members))) as archive:
        found = archive.getmembers()
        data = [file.read() if (file := entry.isfile() and archive.extractfile(entry)) else b"" for entry in found]
    assert [
        (
            entry.name.rstrip("/").encode(),
            entry.size,
            entry.mode,
            entry.mtime,
            entry.uid,
            entry.type,
            entry.linkname.encode(),
        )
        for entry in found
    ] == [
        (entry.name, entry.size, entry.mode, entry.mtime, entry.uid, TARFILE_TYPES[entry.type], entry.linkname)
        for entry in members
    ]
    assert {entry.uname for entry in found} <= {"postgres"}
    assert data == [contents(entry.size) for entry in members]


@given(MEMBERS, CUTS)
def test_what_is_written_is_read_back(members: list[TarMember], cuts: list[int]) -> None:
    assert read(written_by_us(members), cuts) == [(entry, contents(entry.size)) for entry in members]


@pytest.mark.parametrize("size", [8 * GIB - 1, 8 * GIB, 5000 * GIB])
def test_files_of_any_size_have_a_header(size: int) -> None:
    header = tar_header(b"base/5/16384", size=size, mode=0o600, mtime=1)
    (found,) = TarReader().feed(header)
    assert isinstance(found, TarMember)
    assert found.size == size
    assert tarfile.TarInfo.frombuf(header, "ascii", "strict").size == size


def test_a_number_too_large_for_octal_is_read_as_tarfile_writes_it() -> None:
    info = tarfile.TarInfo("large")
    info.size, info.uid = 8 * GIB, 1 << 30
    (found,) = TarReader().feed(info.tobuf(tarfile.GNU_FORMAT))
    assert isinstance(found, TarMember)
    assert (found.size, found.uid) == (8 * GIB, 1 << 30)


def test_a_long_name_with_a_prefix_is_put_together() -> None:
    name = b"/".join([b"d" * 60] * 3)
    ((found, _),) = read(written_by_tarfile([member(name, 0, MemberType.FILE)]), [])
    assert found.name == name


@pytest.mark.parametrize("long", [{"name": b"n" * 100}, {"name": b"n", "linkname": b"l" * 100}])
def test_a_name_that_a_server_refuses_is_refused(long: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="too long for a tar archive"):
        tar_header(long["name"], mode=0o600, mtime=0, linkname=long.get("linkname", b""))


def test_data_are_not_copied() -> None:
    chunk = tar_header(b"f", size=1024, mode=0o600, mtime=0) + bytes(1024)
    _, piece, _ = TarReader().feed(chunk)
    assert isinstance(piece, memoryview)
    assert piece.obj is chunk


@given(st.integers(0, 511).filter(lambda byte: not 148 <= byte < 156), st.integers(0, 7))
def test_a_flipped_bit_in_a_header_is_noticed(byte: int, bit: int) -> None:
    header = bytearray(tar_header(b"base/5/16384", size=8192, mode=0o600, mtime=1795400047))
    header[byte] ^= 1 << bit
    with pytest.raises(DamageError, match="does not fit its checksum"):
        TarReader().feed(bytes(header))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_member_that_no_server_sends_is_refused(kind: bytes) -> None:
    info = tarfile.TarInfo("odd")
    info.type = kind
    with pytest.raises(DamageError, match="odd is a tar member of type"):
        TarReader().feed(info.tobuf(tarfile.USTAR_FORMAT))


@pytest.mark.parametrize("size", [0, 100, 512, 1024, 1536])
def test_an_archive_that_ends_too_early_is_noticed(size: int) -> None:
    reader = TarReader()
    reader.feed(written_by_us([member(b"f", 513, MemberType.FILE)])[:size])
    with pytest.raises(DamageError, match="ends too early"):
        reader.finish()
