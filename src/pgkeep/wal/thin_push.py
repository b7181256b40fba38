"""The client for ``archive_command``: hands a WAL file to the running receiver, and costs a few milliseconds.

.. code-block:: text

    python -I -S thin_push.py SOCKET CLUSTER PATH [FALLBACK...]

It imports nothing but builtin modules and ``_socket``: an interpreter that looks for no packages starts in 10 ms, and
``archive_command`` runs for every segment. The request is ``push NUL cluster NUL file name NUL`` with the open file's descriptor
beside it (unix(7), SCM_RIGHTS), so the receiver need not be allowed to read the data directory. The answer is one line,
``<exit code> <message>``. Where nobody listens, the fallback (the full program) takes this process's place, with PATH behind it;
unless it has stored the file already, ahead of the server's asking. It says so by a marker, ``pushed/<file name>.mark`` below the
last word of FALLBACK, its state: inode, modification time in nanoseconds and size of the file, and those of its configuration,
which is the third word from the end.
PostgreSQL counts exit codes from 1 to 125 as failures and tries again; above, the archiver itself would end.
"""

import _socket
import posix
import sys

__all__ = ["UNANSWERED", "main"]

UNANSWERED = 124
"""Exit code where the receiver does not answer, or the fallback cannot be run."""

_PATIENCE = 60.0
"""Seconds for the whole answer: a receiver that hangs is a failed push, not an archiver that waits for ever."""


def main(words: list[str]) -> int:
    """The exit code for PostgreSQL: 0 stored and durable, 1 to 125 not."""
    if len(words) < 3:
        _tell("usage: thin_push.py SOCKET CLUSTER PATH [FALLBACK...]")
        return UNANSWERED
    place, cluster, path, *fallback = words
    try:
        descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError as error:
        _tell(f"cannot read {path}: {error.strerror}")
        return UNANSWERED
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(_bytes(place))
        except OSError:
            return 0 if _is_pushed(path, fallback) else _fall_back(place, path, fallback)
        return _ask(connection, place, cluster, path, descriptor)
    finally:
        connection.close()
        posix.close(descriptor)


def _ask(connection: _socket.socket, place: str, cluster: str, path: str, descriptor: int) -> int:
    try:
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptor.to_bytes(4, sys.byteorder))
        connection.sendmsg([b"push\0%b\0%b\0" % (_bytes(cluster), _bytes(path.rpartition("/")[2]))], [rights])
        received = b""
        while chunk := connection.recv(4096):
            received += chunk
    except OSError as error:
        _tell(f"the receiver at {place} does not answer: {error}")
        return UNANSWERED
    code, _, message = received.decode("utf-8", "replace").rstrip("\n").partition(" ")
    if not (code.isdecimal() and int(code) < 126 and received.endswith(b"\n")):
        _tell(f"the receiver at {place} ended before it answered")
        return UNANSWERED
    if message:
        _tell(message)
    return int(code)


def _is_pushed(path: str, fallback: list[str]) -> bool:
    if len(fallback) < 3:
        return False
    config, _, state = fallback[-3:]
    try:
        marker = posix.open(f"{state}/pushed/{path.rpartition('/')[2]}.mark", posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            said = posix.read(marker, 4096)
        finally:
            posix.close(marker)
        return said == f"{_stamp(path)} {_stamp(config)}\n".encode()
    except OSError:
        return False


def _stamp(path: str) -> str:
    status = posix.stat(path)
    return f"{status.st_ino} {status.st_mtime_ns} {status.st_size}"


def _fall_back(place: str, path: str, words: list[str]) -> int:
    if not words:
        _tell(f"no receiver listens at {place}, and there is no fallback")
        return UNANSWERED
    try:
        posix.execv(words[0], [*words, path])
    except OSError as error:
        _tell(f"cannot run {words[0]}: {error.strerror}")
        return UNANSWERED


def _bytes(text: str) -> bytes:
    return text.encode(sys.getfilesystemencoding(), "surrogateescape")


def _tell(message: str) -> None:
    sys.stderr.write(f"pgkeep: {message}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
