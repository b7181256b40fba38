"""Relation files of two data directories, compared where PostgreSQL defines their content.

What may differ between two copies of one page is what a server may change without WAL, or may leave unset in replay: see
src/backend/access/common/bufmask.c and the mask functions that use it (heapam_xlog.c, nbtxlog.c, hash_xlog.c, gistxlog.c).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from pgkeep.postgres.layout import Fork, RelationFile, parse_relation_path

__all__ = ["differences", "relation_files"]

_PAGE = 8192
_HEADER = struct.Struct("<8sHHHHHHI")
_PAGE_HINTS = 0x0003
"""PD_HAS_FREE_LINES and PD_PAGE_FULL."""
_TUPLE_HINTS = 0x0F00
"""HEAP_XMIN_COMMITTED, HEAP_XMIN_INVALID, HEAP_XMAX_COMMITTED and HEAP_XMAX_INVALID."""
_NORMAL = 1
_HASH_ID, _GIST_ID, _LAST_CYCLE = 0xFF80, 0xFF81, 0xFF7F
_BTREE_GARBAGE, _HASH_DEAD, _GIST_GARBAGE = 1 << 6, 1 << 7, 1 << 4
_SPGIST_MAGIC = 0xBA0BABEE


def relation_files(directory: Path) -> dict[bytes, RelationFile]:
    """All files of relations below a data directory, tablespaces included, by path."""
    found = {}
    root = os.fsencode(directory)
    for base in (b"base", b"global", b"pg_tblspc"):
        for folder, _, names in os.walk(os.path.join(root, base), followlinks=True):
            for name in names:
                path = os.path.relpath(os.path.join(folder, name), root)
                relation = parse_relation_path(path)
                if relation is not None:
                    found[path] = relation
    return found


def differences(one: Path, other: Path) -> list[str]:
    """What differs between the relations of two clusters that were shut down; unlogged ones and free space maps set aside."""
    files, others = _logged(relation_files(one)), _logged(relation_files(other))
    found = [f"only in one: {path.decode()}" for path in sorted(files ^ others)]
    for path in sorted(files & others):
        name = os.fsdecode(path)
        data, wanted = (one / name).read_bytes(), (other / name).read_bytes()
        if len(data) != len(wanted):
            found.append(f"{name}: {len(data)} bytes and {len(wanted)}")
            continue
        rows, wanted_rows = (np.frombuffer(part, np.uint8).reshape(-1, _PAGE) for part in (data, wanted))
        for block in np.flatnonzero((rows != wanted_rows).any(axis=1)).tolist():
            mine, theirs = masked(rows[block].tobytes(), block), masked(wanted_rows[block].tobytes(), block)
            if mine != theirs:
                at = [number for number in range(_PAGE) if mine[number] != theirs[number]]
                found.append(f"{name} block {block}: {len(at)} bytes, the first at {at[0]}")
    return found


def _logged(files: dict[bytes, RelationFile]) -> set[bytes]:
    """Without free space maps, which are not logged, and without relations that have an init fork."""
    unlogged = {(file.tablespace, file.database, file.relfilenode) for file in files.values() if file.fork is Fork.INIT}
    return {
        path
        for path, file in files.items()
        if file.fork is not Fork.FSM
        and (file.fork is Fork.INIT or (file.tablespace, file.database, file.relfilenode) not in unlogged)
    }


def masked(page: bytes, block: int) -> bytes:
    """A page without its LSN, its checksum, its hole, and hints."""
    data = bytearray(page)
    _, _, flags, lower, upper, special, layout, _ = _HEADER.unpack_from(page)
    if upper == 0:
        return page
    _HEADER.pack_into(data, 0, bytes(8), 0, flags & ~_PAGE_HINTS, lower, upper, special, layout, 0)
    assert _HEADER.size <= lower <= upper <= special <= _PAGE
    data[lower:upper] = bytes(upper - lower)
    if block == 0 and struct.unpack_from("<I", page, 24)[0] == _SPGIST_MAGIC:
        # a cache of pages with room
        return bytes(data[:28])
    if special == _PAGE:
        _mask_tuples(data, lower)
    elif _PAGE - special == 16:
        _mask_index(data, lower, special)
    return bytes(data)


def _mask_tuples(data: bytearray, lower: int) -> None:
    """Hint bits and command ids of a heap page, and line pointers of dead index tuples where the page is none."""
    for place in range(_HEADER.size, lower, 4):
        (item,) = struct.unpack_from("<I", data, place)
        if item >> 15 & 3 == _NORMAL and item >> 17 >= 23:
            offset = item & 0x7FFF
            data[offset + 8 : offset + 12] = bytes(4)
            (infomask,) = struct.unpack_from("<H", data, offset + 20)
            struct.pack_into("<H", data, offset + 20, infomask & ~_TUPLE_HINTS)


def _mask_index(data: bytearray, lower: int, special: int) -> None:
    """What an index scan marks: dead tuples, and that a page has some."""
    flags, identity = struct.unpack_from("<HH", data, special + 12)
    hint = {_HASH_ID: _HASH_DEAD, _GIST_ID: _GIST_GARBAGE}.get(identity)
    if hint is None:
        assert identity <= _LAST_CYCLE
        hint, identity = _BTREE_GARBAGE, 0
    struct.pack_into("<HH", data, special + 12, flags & ~hint, identity)
    for place in range(_HEADER.size, lower, 4):
        (item,) = struct.unpack_from("<I", data, place)
        struct.pack_into("<I", data, place, item & ~(3 << 15))
