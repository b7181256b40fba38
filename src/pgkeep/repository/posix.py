"""A store on a POSIX file system.

An object is written into a file without a name (``O_TMPFILE``, open(2)), fsynced, then linked to its name: ``link(2)`` fails
where the name is taken, so nothing is ever replaced, and a crash leaves nothing. Where a file system has no files without
names (NFS), they have one under ``tmp/``; a crash leaves at worst such a file, which its writer's name tells from others.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from pgkeep.direct_io import write_new
from pgkeep.errors import DamageError, StoreError
from pgkeep.repository.store import Buffer, Capabilities, ObjectExists, ObjectInfo, ObjectMissing, check_name

__all__ = ["PosixStore"]

_MODE = 0o440

_DESCRIPTORS = Path("/proc/self/fd")

_FOREIGN = {"lost+found"}
"""What file systems put beside objects; names that begin with a dot are theirs, too (``.nfs…``, ``.snapshot``)."""


class PosixStore:
    """Objects as files below one directory; see `pgkeep.repository.store.Store`."""

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)
        self._known_directories: set[Path] = set()
        self._writer = secrets.token_hex(8)

    @property
    def url(self) -> str:
        """The store's address."""
        return "file://" + quote(str(self._root))

    @property
    def root(self) -> Path:
        """The directory that holds the objects."""
        return self._root

    @property
    def writer(self) -> str:
        """See `Store.writer`."""
        return self._writer

    @property
    def parallel_puts(self) -> int:
        """See `Store.parallel_puts`."""
        return 1

    def adapt(self, capabilities: Capabilities) -> None:
        """See `Store.adapt`: a file system can do all that is asked of it."""

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """See `Store.put`."""
        path = self._path(name)
        with self._errors("write", name):
            self._make_directory(path.parent)
            with self._new_file(path.parent) as (descriptor, place):
                write_new(descriptor, parts)
                os.fsync(descriptor)
                try:
                    # any descriptor of a directory makes it linkat(2), which alone follows /proc's link
                    os.link(place, path, src_dir_fd=descriptor, follow_symlinks=True)
                except FileExistsError:
                    # its writer may have died before this: who takes what is there for done must be able to rely on it
                    _fsync_directory(path.parent)
                    raise ObjectExists(f"{name} is in {self.url} already") from None
            _fsync_directory(path.parent)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Store.get`."""
        with self._errors("read", name):
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                wanted = os.fstat(descriptor).st_size - start if length is None else length
                data = os.pread(descriptor, max(wanted, 0), start)
                if len(data) < wanted:
                    # read(2) moves at most 2 GiB - 4 KiB at once and may stop at a signal
                    pieces = [data]
                    while data:
                        start, wanted = start + len(data), wanted - len(data)
                        data = os.pread(descriptor, wanted, start) if wanted > 0 else b""
                        pieces.append(data)
                    data = b"".join(pieces)
                return data
            finally:
                os.close(descriptor)

    def read_mapped(self, name: str) -> Buffer:
        """See `Store.read_mapped`."""
        with self._errors("read", name), self._path(name).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def info(self, name: str) -> ObjectInfo:
        """See `Store.info`."""
        with self._errors("read", name):
            return _info(name, self._path(name).stat())

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        directory = self._root / check_name(prefix.rstrip("/")) if prefix else self._root
        with self._errors("list", prefix or "the repository"):
            yield from self._walk(directory, prefix)

    def folders(self, prefix: str) -> Sequence[str]:
        """See `Store.folders`."""
        with self._errors("list", prefix):
            try:
                entries = os.scandir(self._path(prefix.rstrip("/")))
            except FileNotFoundError:
                return []
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        with self._errors("delete", name), contextlib.suppress(FileNotFoundError):
            self._path(name).unlink()
            _fsync_directory(self._path(name).parent)

    def discard_leftovers(self, writer: str) -> None:
        """See `Store.discard_leftovers`."""
        with self._errors("clean", "tmp"):
            # no pattern is made of the name: it comes from a record that anyone with the store could have written
            for path in (self._root / "tmp").glob("*"):
                if path.name.rpartition("-")[0] == writer:
                    path.unlink(missing_ok=True)

    def leftovers(self) -> int:
        """See `Store.leftovers`."""
        size = 0
        with self._errors("list", "tmp"):
            for path in (self._root / "tmp").glob("*"):
                # a writer at work finishes its files and removes them
                with contextlib.suppress(FileNotFoundError):
                    size += path.stat().st_size
        return size

    def free_bytes(self) -> int | None:
        """See `Store.free_bytes`; what an ordinary user may still write."""
        directory = self._root
        while not directory.exists():
            directory = directory.parent
        with self._errors("measure", "the repository"):
            status = os.statvfs(directory)
        return status.f_bavail * status.f_frsize

    def _path(self, name: str) -> Path:
        return self._root / check_name(name)

    def _walk(self, directory: Path, prefix: str) -> Iterator[ObjectInfo]:
        try:
            entries = sorted(os.scandir(directory), key=_sort_key)
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.name in _FOREIGN or entry.name.startswith(".") or (not prefix and entry.name == "tmp"):
                continue
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(directory / entry.name, name + "/")
            else:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield _info(check_name(name), status)

    @contextlib.contextmanager
    def _new_file(self, directory: Path) -> Iterator[tuple[int, Path]]:
        """A file to write, and the path by which it is linked; gone at the end but for its links."""
        descriptor = _open_unnamed(directory)
        if descriptor is not None:
            try:
                yield descriptor, _DESCRIPTORS / str(descriptor)
            finally:
                os.close(descriptor)
            return
        temporary = self._root / "tmp" / f"{self._writer}-{secrets.token_hex(8)}"
        self._make_directory(temporary.parent)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            yield descriptor, temporary.absolute()
        finally:
            os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()

    def _make_directory(self, directory: Path) -> None:
        is_ours = self._root in directory.parents
        if directory in self._known_directories or (not is_ours and directory.is_dir()):
            return
        if is_ours and _has_entry(directory):
            # who made that entry had made the way here durable before
            self._known_directories.add(directory)
            return
        self._make_directory(directory.parent)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o750)
        # also where it was there: another writer may have made it and died before this
        _fsync_directory(directory.parent)
        self._known_directories.add(directory)

    @contextlib.contextmanager
    def _errors(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if verb == "write":
                raise StoreError(
                    f"cannot write {name} in {self.url}: its directory went away",
                    hint=f"is the file system of {self._root} still mounted?",
                ) from error
            raise ObjectMissing(f"{name} is not in {self.url}") from None
        except OSError as error:
            if verb == "read" and error.errno == errno.EIO:
                raise DamageError(
                    f"{name} in {self.url} is damaged: the disk cannot read it", object_name=name
                ) from error
            raise StoreError(
                f"cannot {verb} {name} in {self.url}: {error.strerror}", hint=_hint(error, self._root)
            ) from error


def _open_unnamed(directory: Path) -> int | None:
    """A file without a name on the directory's file system; None where it has none of these."""
    if not _DESCRIPTORS.exists():
        return None
    try:
        return os.open(directory, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, _MODE)
    except OSError as error:
        # EISDIR: a kernel before 3.11; the others: a file system's refusal
        if error.errno in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
            return None
        raise


def _has_entry(directory: Path) -> bool:
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False


def _sort_key(entry: os.DirEntry[str]) -> str:
    """So that a folder's objects stand where their whole names sort: ``a-b`` is before ``a/b``."""
    return entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name


def _hint(error: OSError, root: Path) -> str | None:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"free room on the file system of {root} (df -h {root}), or give the repository another place"
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"run as the user that owns {root}, or give this user the right to write there (ls -ld {root})"
    if error.errno in {errno.ENOTDIR, errno.EEXIST}:
        return f"something that is no directory stands at {root} or below it; move it away, or name another place"
    if error.errno == errno.ENOTSUP:
        return "the repository needs a file system with hard links"
    return None


def _info(name: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(name, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
