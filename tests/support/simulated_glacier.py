"""Storage classes and thawing, simulated by a proxy before a real S3 server, which knows neither.

What it answers is as the Amazon S3 API Reference has it (CopyObject, RestoreObject, HeadObject, GetObject, ListObjectsV2): an object that was copied
onto itself into an archive cannot be read (403 InvalidObjectState) until it was asked for and `thaw` has let time pass.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from support.fault_proxy import FaultProxy, Message

__all__ = ["SimulatedGlacier"]

ARCHIVES = {"GLACIER", "DEEP_ARCHIVE"}
_COPIED = "<CopyObjectResult><LastModified>2026-11-23T00:00:00.000Z</LastModified><ETag>&quot;x&quot;</ETag></CopyObjectResult>"


@dataclass
class SimulatedGlacier:
    """``classes`` by key; ``asked`` have been asked for, ``thawed`` can be read. ``counts``: what was asked, by kind."""

    proxy: FaultProxy
    classes: dict[str, str] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    thawed: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.proxy.answer = self._answer
        self.proxy.answered = self._answered

    def thaw(self, *, most: int | None = None) -> None:
        """Hours later: what was asked for can be read, or so many of it."""
        for key in sorted(self.asked.keys() - self.thawed)[:most]:
            self.thawed.add(key)

    def _answer(self, request: Message) -> tuple[int, str] | None:
        path, _, query = request.path.partition("?")
        key = unquote(path)
        if request.method == "PUT" and request.header("x-amz-copy-source") is not None:
            if self._is_frozen(key):
                return 403, _error("InvalidObjectState")
            self.classes[key] = request.header("x-amz-storage-class") or "STANDARD"
            self.counts["moved"] += 1
            return 200, _COPIED
        if request.method == "POST" and query.startswith("restore"):
            if key in self.asked:
                return 409, _error("RestoreAlreadyInProgress")
            found = re.search(r"<Tier>(\w+)</Tier>", request.body.decode())
            self.asked[key] = found[1] if found else ""
            return 202, ""
        if request.method == "GET" and self._is_frozen(key):
            self.counts["refused"] += 1
            return 403, _error("InvalidObjectState")
        return None

    def _answered(self, request: Message, answer: Message) -> None:
        path, _, query = request.path.partition("?")
        key = unquote(path)
        if request.method == "HEAD" and key in self.classes:
            answer.headers.append(("x-amz-storage-class", self.classes[key]))
            if key in self.thawed:
                answer.headers.append(
                    ("x-amz-restore", 'ongoing-request="false", expiry-date="Fri, 21 Dec 2096 00:00:00 GMT"')
                )
            elif key in self.asked:
                answer.headers.append(("x-amz-restore", 'ongoing-request="true"'))
        elif request.method == "GET" and "list-type=2" in query:
            bucket = key.strip("/")
            text = answer.body.decode()
            for each in self.classes:
                name = each.removeprefix(f"/{bucket}/")
                text = re.sub(
                    rf"(<Key>{re.escape(name)}</Key>.*?<StorageClass>)\w+(</StorageClass>)",
                    rf"\g<1>{self.classes[each]}\g<2>",
                    text,
                    count=1,
                    flags=re.DOTALL,
                )
            answer.body = text.encode()
            answer.headers = [pair for pair in answer.headers if pair[0].lower() != "content-length"]
            answer.headers.append(("Content-Length", str(len(answer.body))))

    def _is_frozen(self, key: str) -> bool:
        return self.classes.get(key) in ARCHIVES and key not in self.thawed


def _error(code: str) -> str:
    return f"<Error><Code>{code}</Code><Message>simulated</Message></Error>"
