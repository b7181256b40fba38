"""Files of WAL on the way to a server: made beside their place under a name of their own, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pgkeep.errors import TargetError

__all__ = ["FileFolder", "NewFile", "writing"]


class FileFolder:
    """A directory, held open: what is done in it stays in it, whatever happens to its path meanwhile.

    Its files belong to the directory's owner where we are root. Raises TargetError where it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise TargetError(f"cannot use the directory {path}: {error.strerror}", hint=f"ls -ld {path}") from None
        # threads that were given up may still use it: it is closed when nobody has it any more
        weakref.finalize(self, os.close, self.descriptor)
        status = os.fstat(self.descriptor)
        self.owner = (status.st_uid, status.st_gid) if os.geteuid() == 0 and status.st_uid != 0 else None

    def folder(self, name: str) -> FileFolder:
        """The folder of this name in it, made where it is not there; only its owner may enter it. Raises TargetError."""
        path = self.path / name
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, mode=0o700, dir_fd=self.descriptor)
                if self.owner is not None:
                    os.chown(name, *self.owner, dir_fd=self.descriptor, follow_symlinks=False)
            # root must not be led elsewhere by who owns the directory
            os.close(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.descriptor))
        except OSError as error:
            raise TargetError(f"cannot make {path}: {error.strerror}", hint=f"ls -ld {path}") from None
        return FileFolder(path)

    def open(self, name: str, flags: int) -> int:
        """A descriptor of the file of this name; it is created where ``flags`` say so, and never reached through a link."""
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.descriptor)
        if self.owner is not None and flags & os.O_CREAT:
            os.fchown(descriptor, *self.owner)
        return descriptor

    def new_file(self, name: str) -> NewFile:
        """A file that nobody sees under ``name`` yet. Raises TargetError."""
        temporary = f"{name}.pgkeep-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            descriptor = self.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except OSError as error:
            raise TargetError(f"cannot write in {self.path}: {error.strerror}", hint=f"ls -ld {self.path}") from None
        return NewFile(self, temporary, os.fdopen(descriptor, "w+b"))

    def names(self) -> list[str]:
        """What is in it."""
        return os.listdir(self.descriptor)

    def remove(self, name: str) -> None:
        """Remove a file, where it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def remove_leftovers(self) -> None:
        """Remove what processes that were killed have left of new files."""
        for found in self.names():
            for_, _, rest = found.rpartition(".pgkeep-")
            pid = rest.partition("-")[0]
            if for_ and pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
                # somebody else's, in a directory that is everybody's
                with contextlib.suppress(PermissionError):
                    self.remove(found)

    def free_bytes(self) -> int:
        """Room left on its file system for the owner of its files."""
        status = os.fstatvfs(self.descriptor)
        return status.f_bavail * status.f_frsize


class NewFile:
    """A file under a name of its own: `move` puts it in its place, `discard` removes it; one of the two must be called."""

    def __init__(self, folder: FileFolder, name: str, file: BinaryIO) -> None:
        self.file = file
        self._folder = folder
        self._name = name

    def finish(self) -> NewFile:
        """All is written."""
        self.file.close()
        return self

    def move(self, folder: FileFolder, name: str) -> None:
        """Rename it to ``name`` in a folder of the same file system; what is there is replaced. Raises TargetError."""
        self.file.close()
        try:
            os.rename(self._name, name, src_dir_fd=self._folder.descriptor, dst_dir_fd=folder.descriptor)
        except OSError as error:
            self.discard()
            raise TargetError(f"cannot write {folder.path / name}: {error.strerror}") from None

    def discard(self) -> None:
        """Remove it."""
        with contextlib.suppress(OSError):
            self.file.close()
        self._folder.remove(self._name)

    def unlink(self) -> BinaryIO:
        """Take the name away: the open file lives on until it is closed."""
        self._folder.remove(self._name)
        return self.file

    def copy_from(self, source: BinaryIO) -> None:
        """Fill it with another file's bytes."""
        source.seek(0)
        shutil.copyfileobj(source, self.file, 1 << 20)


@contextlib.contextmanager
def writing(new: NewFile) -> Iterator[BinaryIO]:
    """Write a new file; it is discarded where that fails. Raises TargetError for what the disk refuses."""
    try:
        yield new.file
        new.finish()
    except OSError as error:
        new.discard()
        raise TargetError(
            f"cannot write WAL beside the server's: {error.strerror}", hint="is its file system full?"
        ) from None
    except BaseException:
        new.discard()
        raise
