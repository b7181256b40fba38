"""Directories that a delta restore must mend: damaged in every way, and compared with what an ordinary restore makes."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

__all__ = ["Snapshot", "damage", "snapshot"]

Snapshot = dict[str, tuple[int, int, int, bytes]]
"""Path -> mode, owner, group, bytes: of a file its own, of a link where it leads."""

_WRITTEN_AT_A_TIME = "# written by pgkeep restore"


def snapshot(directory: Path, *others: Path) -> Snapshot:
    """All that lies in a directory, and in those of its tablespaces; times and the places of tablespaces are left out."""
    found: Snapshot = {}
    for number, root in enumerate((directory, *others)):
        for where, directories, names in os.walk(root):
            for name in (*directories, *names):
                path = Path(where, name)
                status = path.lstat()
                content = b""
                if stat.S_ISREG(status.st_mode):
                    content = path.read_bytes()
                    if name == "postgresql.auto.conf":
                        lines = content.decode().splitlines()
                        content = "\n".join(line for line in lines if _WRITTEN_AT_A_TIME not in line).encode()
                    if name == "backup_manifest":
                        continue
                elif path.parent.name != "pg_tblspc" and path.is_symlink():
                    content = os.fsencode(path.readlink())
                found[f"{number}:{path.relative_to(root)}"] = (
                    status.st_mode,
                    status.st_uid,
                    status.st_gid,
                    content,
                )
    return found


def damage(directory: Path, chance: random.Random, times: int) -> list[str]:
    """Spoil so many things below a directory, pg_control (under either name) and links to tablespaces excepted; says what was done."""
    done = []
    for _ in range(times):
        files = [
            path
            for path in sorted(directory.rglob("*"))
            if path.is_file() and not path.is_symlink() and not path.name.startswith("pg_control")
        ]
        way = chance.choice(_WAYS)
        path = chance.choice(files)
        done.append(f"{way.__name__} {path.relative_to(directory)}")
        way(path, chance)
    return done


def _flip_a_bit(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)


def _scribble(path: Path, chance: random.Random) -> None:
    """Over a good part, over a hole too."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(chance.randrange(size + 1))
        file.write(chance.randbytes(chance.randrange(1, 300_000)))
    os.truncate(path, size)


def _truncate(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size + 1))


def _extend(path: Path, chance: random.Random) -> None:
    with path.open("ab") as file:
        file.write(chance.randbytes(chance.randrange(1, 20_000)))


def _lose(path: Path, chance: random.Random) -> None:
    path.unlink()


def _zero(path: Path, chance: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _change_mode(path: Path, chance: random.Random) -> None:
    path.chmod(0o644)
    path.parent.chmod(0o755)


def _add_files(path: Path, chance: random.Random) -> None:
    extra = path.parent / f"extra{chance.randrange(1000)}"
    if not extra.exists():
        (extra / "deeper").mkdir(parents=True)
        (extra / "deeper" / "file").write_bytes(bytes(10_000))
        (extra / "link").symlink_to("/")
    (path.parent / f"{path.name}.{chance.randrange(1, 9)}").write_bytes(b"no segment of it")


def _link_in_its_place(path: Path, chance: random.Random) -> None:
    """To a copy of it elsewhere, which must stay."""
    path.unlink()
    path.symlink_to("/etc/hostname")


def _directory_in_its_place(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def _link_twice(path: Path, chance: random.Random) -> None:
    """As ``cp -l`` does it; the twin is away from the directory."""
    twin = path.parent / f"twin{chance.randrange(1 << 30)}"
    os.link(path, twin)


_WAYS = (
    _flip_a_bit,
    _scribble,
    _truncate,
    _extend,
    _lose,
    _zero,
    _change_mode,
    _add_files,
    _link_in_its_place,
    _directory_in_its_place,
    _link_twice,
)
