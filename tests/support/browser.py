"""A headless Chromium, driven over its DevTools pipe: loads a file, measures it, prints it and takes its picture."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Browser", "open_browser"]

_NAMES = ("chromium", "chromium-browser", "google-chrome")

# The protocol is spoken on the descriptors 3 and 4.
_ON_3_AND_4 = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(word), fcntl.F_DUPFD, 5) for word in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page of a running browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = answers
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.requests: list[str] = []
        """The addresses that the page asked for since it was opened."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")

    def open(self, path: Path, *, width: int = 1000) -> None:
        """Load a file and wait until it is there; ``width`` is the window's, in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        self.requests = []
        self.call("Page.navigate", url=path.as_uri())
        self._read_until(lambda message: message.get("method") == "Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def pdf(self) -> bytes:
        """The page as it is printed, on the paper that its style asks for."""
        answer = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        return base64.b64decode(answer["data"])

    def picture(self) -> bytes:
        """The whole page as a PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """One command of the DevTools protocol, and its answer."""
        self._number += 1
        number = self._number
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        answer = self._read_until(lambda answer: answer.get("id") == number)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _read_until(self, wanted: Any) -> dict[str, Any]:
        while True:
            while b"\0" not in self._buffer:
                data = os.read(self._answers, 1 << 20)
                assert data, "the browser has ended"
                self._buffer += data
            text, self._buffer = self._buffer.split(b"\0", 1)
            message: dict[str, Any] = json.loads(text)
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if wanted(message):
                return message


@contextmanager
def open_browser(home: Path) -> Iterator[Browser]:
    """A browser that keeps its profile in ``home``, and ends with the block."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    assert program is not None, "no chromium on the PATH: apt-get install chromium fonts-nanum"
    their_commands, our_commands = os.pipe()
    our_answers, their_answers = os.pipe()
    words = [program, "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    words += [f"--user-data-dir={home}", "--remote-debugging-pipe", "about:blank"]
    # root's browser refuses its own sandbox; what it loads here is a file that the test wrote
    words[1:1] = ["--no-sandbox"] if os.geteuid() == 0 else []
    process = subprocess.Popen(
        [sys.executable, "-c", _ON_3_AND_4, str(their_commands), str(their_answers), *words],
        pass_fds=(their_commands, their_answers),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_commands)
    os.close(their_answers)
    try:
        yield Browser(our_commands, our_answers)
    finally:
        os.close(our_commands)
        os.close(our_answers)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
