"""The client for ``restore_command``: asks the prefetcher, and costs a few milliseconds.

.. code-block:: text

    python -I -S thin_fetch.py SOCKET NAME PATH [FALLBACK...]

It imports nothing but builtin modules: an interpreter that looks for no packages starts in 10 ms, and `restore_command` runs
for every segment. The request is ``fetch NUL name NUL path NUL``; the answer is any number of lines ``wait``, one now and then
while the prefetcher is at work, and a last line ``<exit code> <message>``. Where nobody answers so, the fallback (the full
program) is run with NAME and PATH; it says "absent" with a code of its own, since a program that does not even start ends
with 1 too, and PostgreSQL would take that for the end of the archive.
"""

import _socket
import posix
import sys

__all__ = ["ABSENT_CODE", "UNANSWERED", "ask", "main"]

ABSENT_CODE = 100
"""What the fallback ends with where no repository holds the file."""

UNANSWERED = 199
"""Exit code where nobody answers and there is no fallback, or it cannot be run."""

_ERROR_BASE = 200
_LAST_OF_ABSENT = 125
"""PostgreSQL takes exit codes up to here for "absent" (src/common/wait_error.c, wait_result_is_any_signal)."""

_SILENCE = 60.0
"""Seconds without a word after which the prefetcher counts as gone; it says "wait" far more often."""


def main(words: list[str]) -> int:
    """The exit code for PostgreSQL: 0 there it is, 1 absent everywhere, above 125 for all else."""
    if len(words) < 3:
        _tell("usage: thin_fetch.py SOCKET NAME PATH [FALLBACK...]")
        return UNANSWERED
    place, name, path, *fallback = words
    answer = ask(place, name, path)
    if answer is None:
        return _fall_back(place, name, path, fallback)
    code, message = answer
    if message:
        _tell(message)
    return _with_file(path) if code == 0 else code


def ask(place: str, name: str, path: str) -> tuple[int, str] | None:
    """Exit code and message of the prefetcher that listens at ``place``; None where nobody does, or it dies or refuses."""
    received = b""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(_SILENCE)
        connection.connect(_bytes(place))
        connection.sendall(b"fetch\0%b\0%b\0" % (_bytes(name), _bytes(path)))
        while chunk := connection.recv(4096):
            received += chunk
    except OSError:
        return None
    finally:
        connection.close()
    lines = received.decode("utf-8", "replace").split("\n")
    if len(lines) < 2 or lines[-1]:
        return None
    code, _, message = lines[-2].partition(" ")
    return (int(code), message) if code.isdecimal() and int(code) < 256 else None


def _fall_back(place: str, name: str, path: str, words: list[str]) -> int:
    if not words:
        _tell(f"no prefetcher answers at {place}, and there is no fallback")
        return UNANSWERED
    try:
        child = posix.posix_spawnp(words[0], [*words, f"--absent-code={ABSENT_CODE}", name, path], posix.environ)
        _, status = posix.waitpid(child, 0)
    except OSError as error:
        _tell(f"cannot run {words[0]}: {error.strerror}")
        return UNANSWERED
    code = posix.waitstatus_to_exitcode(status)
    if code == 0:
        return _with_file(path)
    if code == ABSENT_CODE:
        return 1
    if code < 0:
        return 128 - code
    return code if code > _LAST_OF_ABSENT else _ERROR_BASE + min(code, 55)


def _with_file(path: str) -> int:
    """0 where the file is there: PostgreSQL would take a success without a file for "absent"."""
    try:
        posix.stat(path)
    except OSError:
        _tell(f"{path} was to be there, and is not")
        return _ERROR_BASE + 1
    return 0


def _bytes(text: str) -> bytes:
    return text.encode(sys.getfilesystemencoding(), "surrogateescape")


def _tell(message: str) -> None:
    sys.stderr.write(f"pgkeep: {message}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
