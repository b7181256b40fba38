"""`restore_command` of a server in a container: it asks by a file, and is answered by a file, both in the prefetcher's folder.

A container's image has a shell and no Python, and a shell cannot speak to a socket. ``request.N`` holds a WAL file's name and the path
where it must come to, a line each; ``answer.N`` an exit code and words, in one line. Both appear complete, by a rename. While the file
``serving`` is there, somebody answers.
"""

from __future__ import annotations

import os
import shlex
import threading
from pathlib import Path
from typing import Final

from pgkeep.wal.fetch import PREFETCH_FOLDER, Answer, answer_of
from pgkeep.wal.fetch_files import FileFolder, writing
from pgkeep.wal.prefetch_server import Handler

__all__ = ["SCRIPT", "FileRequests", "restore_command_by_files"]

SCRIPT: Final = Path(__file__).with_name("thin_fetch.sh")
"""The client, for a POSIX shell with printf, mv, rm, and a sleep that knows fractions (GNU and BusyBox do)."""

_SERVING, _REQUEST, _ANSWER = "serving", "request.", "answer."
_PAUSE: Final = 0.01
"""Seconds between looks for requests: a segment takes longer to replay."""
_LONGEST_REQUEST: Final = 8192
_REFUSED: Final = Answer(202, "the prefetcher does not write there")


def restore_command_by_files(script: str) -> str:
    """The value of `restore_command`, for the client at the path ``script`` of the container."""
    return f'exec /bin/sh {shlex.quote(script)} pg_wal/{PREFETCH_FOLDER} %f "%p"'


class FileRequests:
    """Answers the requests in a folder, each in a thread of its own; use as a context manager."""

    def __init__(self, folder: FileFolder, handler: Handler) -> None:
        self._folder = folder
        self._handler = handler
        self._ended = threading.Event()
        self._begun: set[str] = set()
        self._thread = threading.Thread(target=self._watch, name="wal-prefetch", daemon=True)

    def __enter__(self) -> FileRequests:
        self._write(_SERVING, "")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take no more requests; those that wait see that nobody answers."""
        self._folder.remove(_SERVING)
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_PAUSE):
            there = {name for name in self._folder.names() if _is_request(name)}
            self._begun &= there
            for name in there - self._begun:
                self._begun.add(name)
                threading.Thread(target=self._serve, args=(name,), name="wal-prefetch", daemon=True).start()

    def _serve(self, name: str) -> None:
        def still_wanted() -> bool:
            return not self._ended.is_set() and name in self._folder.names()

        try:
            wanted, path = self._read(name)
            answer = self._handler(wanted, path, still_wanted) or _REFUSED
        except Exception as error:  # noqa: BLE001  (the answer tells it, and it is no "absent")
            answer = answer_of(error)
        # nobody would remove an answer that nobody waits for
        if still_wanted():
            self._write(_ANSWER + name.removeprefix(_REQUEST), f"{answer.code} {' '.join(answer.message.split())}\n")
        self._folder.remove(name)

    def _read(self, name: str) -> tuple[str, str]:
        with os.fdopen(self._folder.open(name, os.O_RDONLY), "rb") as file:
            lines = os.fsdecode(file.read(_LONGEST_REQUEST)).split("\n")
        if len(lines) != 3 or lines[2]:
            raise ValueError("a request is two lines, a name and a path")
        return lines[0], lines[1]

    def _write(self, name: str, text: str) -> None:
        new = self._folder.new_file(name)
        with writing(new) as file:
            file.write(os.fsencode(text))
        new.move(self._folder, name)


def _is_request(name: str) -> bool:
    return name.startswith(_REQUEST) and name.removeprefix(_REQUEST).isdecimal()
