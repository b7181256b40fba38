"""A proxy before an HTTP server that breaks what real networks and services break, on demand or at random from a seed.

It speaks HTTP/1.1, one thread a connection, and passes requests on unchanged, signature and all: it keeps the ``Host`` that was
signed. So the server must be named by the proxy's address, and knows no difference.
"""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Fault", "FaultProxy", "Message", "RandomFaults"]

_LONGEST_HEAD = 64 << 10


class Fault(Enum):
    """What happens to one request."""

    NONE = "passed on"
    RESET = "the connection is reset before the server hears of it"
    HALF_REQUEST = "the connection is reset in the middle of the body, which the server has half of"
    DROPPED_ANSWER = "the server does it, and the connection is reset before the answer"
    HALF_ANSWER = "the answer ends in the middle"
    SERVER_ERROR = "500, and the server hears nothing"
    SLOW_DOWN = "503 SlowDown, and the server hears nothing"
    ERROR_AFTER = "the server does it, and 500 is the answer"
    LATE = "the server hears of it later"
    TRICKLE = "the answer comes in small pieces"
    SILENCE = "nothing comes back at all"
    DAMAGED_REQUEST = "a bit of the body is flipped on its way"


@dataclass
class Message:
    """A request or an answer: its first line, headers and body."""

    start: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def method(self) -> str:
        """Of a request."""
        return self.start.split(" ", 1)[0]

    @property
    def path(self) -> str:
        """Of a request, with its query."""
        return self.start.split(" ")[1]

    def header(self, name: str) -> str | None:
        """A header's value."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def encode(self, body: bytes | None = None) -> bytes:
        """As it goes over the wire."""
        head = "\r\n".join([self.start, *(f"{name}: {value}" for name, value in self.headers)])
        return head.encode("latin-1") + b"\r\n\r\n" + (self.body if body is None else body)


@dataclass
class RandomFaults:
    """A plan: each request fares by chance. ``rate`` is how many of them, from 0 to 1, meet one of ``faults``.

    No request meets more than ``in_a_row`` faults one after another, so that whoever tries again gets through.
    """

    seed: int
    rate: float = 0.25
    faults: tuple[Fault, ...] = tuple(
        fault for fault in Fault if fault not in {Fault.NONE, Fault.SILENCE, Fault.TRICKLE}
    )
    in_a_row: int = 3
    concerns: Callable[[Message], bool] = lambda _message: True
    _random: random.Random = field(init=False)
    _met: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def __call__(self, message: Message) -> Fault:
        if not self.concerns(message):
            return Fault.NONE
        key = f"{message.method} {message.path}"
        if self._met[key] >= self.in_a_row or self._random.random() >= self.rate:
            self._met[key] = 0
            return Fault.NONE
        self._met[key] += 1
        return self._random.choice(self.faults)


class FaultProxy:
    """Runs from the start of its context to its end, on 127.0.0.1.

    ``plan`` says how a request fares; `next` goes before it. ``requests`` is what came, each with its fault.
    ``latency`` is seconds that every request waits. ``answer`` may make up an answer: a status and a body. ``seen`` is called with
    every request, and ``change`` may change what the server gets of it.
    """

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._target = ("127.0.0.1", port)
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._thread = threading.Thread(target=self._accept, name="fault proxy", daemon=True)
        self._lock = threading.Lock()
        self._next: deque[tuple[Fault, Callable[[Message], bool]]] = deque()
        self._open: set[socket.socket] = set()
        self._stopped = threading.Event()
        self.plan: Callable[[Message], Fault] | None = None
        self.latency = 0.0
        self.pace = 256 << 10
        """Bytes a second of a trickle."""
        self.answer: Callable[[Message], tuple[int, str] | None] | None = None
        self.requests: list[tuple[str, str, Fault]] = []
        self.seen: Callable[[Message], None] | None = None
        self.change: Callable[[Message], None] | None = None

    @property
    def endpoint(self) -> str:
        """The address that stands for the server's."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.break_connections()
        self._thread.join(10)

    def next(self, *faults: Fault, where: Callable[[Message], bool] = lambda _message: True) -> None:
        """The next requests that ``where`` holds for meet these faults, in order."""
        with self._lock:
            self._next.extend((fault, where) for fault in faults)

    def break_connections(self) -> None:
        """Reset all that are open."""
        with self._lock:
            for each in self._open:
                _reset(each)

    def count(self, fault: Fault | None = None, method: str | None = None) -> int:
        """How many requests met a fault, or any fault; of a method, or of any."""
        with self._lock:
            return sum(
                (met is fault if fault is not None else met is not Fault.NONE) and method in {None, used}
                for used, _, met in self.requests
            )

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), name="fault proxy connection", daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client: socket.socket = raw
        try:
            if self._tls is not None:
                client = self._tls.wrap_socket(raw, server_side=True)
            self._remember(client)
            with contextlib.ExitStack() as stack:
                requests = stack.enter_context(client.makefile("rb"))
                server = stack.enter_context(socket.create_connection(self._target, timeout=120))
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                answers = stack.enter_context(server.makefile("rb"))
                while (request := _read_message(requests)) is not None:
                    if not self._handle(client, server, answers, request):
                        return
        except (OSError, ValueError):
            # the other side went away, or this proxy did
            pass
        finally:
            with self._lock:
                self._open.discard(client)
            client.close()

    def _remember(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)

    def _choose(self, request: Message) -> Fault:
        with self._lock:
            planned = next((item for item in self._next if item[1](request)), None)
            if planned is not None:
                self._next.remove(planned)
                fault = planned[0]
            else:
                fault = self.plan(request) if self.plan is not None else Fault.NONE
            self.requests.append((request.method, request.path, fault))
        if self.seen is not None:
            self.seen(request)
        if self.change is not None:
            self.change(request)
        return fault

    def _handle(self, client: socket.socket, server: socket.socket, reader: BinaryIO, request: Message) -> bool:
        """Whether the connection may go on."""
        fault = self._choose(request)
        if self.latency:
            time.sleep(self.latency)
        if self.answer is not None and (made_up := self.answer(request)) is not None:
            client.sendall(_error(*made_up, head=request.method == "HEAD"))
            return True
        if fault in {Fault.SERVER_ERROR, Fault.SLOW_DOWN}:
            status, code = (500, "InternalError") if fault is Fault.SERVER_ERROR else (503, "SlowDown")
            client.sendall(_error(status, f"<Error><Code>{code}</Code></Error>", head=request.method == "HEAD"))
            return True
        if fault is Fault.RESET:
            _reset(client)
            return False
        if fault is Fault.SILENCE:
            self._stopped.wait(60)
            return False
        if fault is Fault.LATE:
            time.sleep(0.3)
        if fault is Fault.HALF_REQUEST:
            server.sendall(request.encode(request.body[: len(request.body) // 2]))
            _reset(server)
            _reset(client)
            return False
        body = request.body
        if fault is Fault.DAMAGED_REQUEST and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        server.sendall(request.encode(body))
        answer = _read_message(reader, has_body=request.method != "HEAD")
        if answer is None or fault is Fault.DROPPED_ANSWER:
            _reset(client)
            return False
        return self._give(client, answer, request, fault) and answer.header("connection") != "close"

    def _give(self, client: socket.socket, answer: Message, request: Message, fault: Fault) -> bool:
        if fault is Fault.ERROR_AFTER:
            client.sendall(_error(500, "<Error><Code>InternalError</Code></Error>", head=request.method == "HEAD"))
            return True
        data = answer.encode()
        if fault is Fault.HALF_ANSWER:
            client.sendall(data[: len(data) - max(len(answer.body) // 2, 1)])
            _reset(client)
            return False
        if fault is Fault.TRICKLE:
            for start in range(0, len(data), max(self.pace // 20, 1)):
                client.sendall(data[start : start + max(self.pace // 20, 1)])
                time.sleep(0.05)
            return True
        client.sendall(data)
        return True


def _reset(connection: socket.socket) -> None:
    """Close so that the other side gets RST (socket(7), SO_LINGER)."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def _error(status: int, body: str, *, head: bool) -> bytes:
    data = b"" if head else body.encode()
    reason = {403: "Forbidden", 404: "Not Found", 500: "Internal Server Error", 503: "Slow Down"}.get(status, "Error")
    return (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        + data
    )


def _read_message(reader: BinaryIO, *, has_body: bool = True) -> Message | None:
    """A request or an answer; None where the connection ends before one."""
    start = reader.readline(_LONGEST_HEAD)
    if not start:
        return None
    headers = []
    while (line := reader.readline(_LONGEST_HEAD)) not in {b"\r\n", b"\n", b""}:
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name.strip(), value.strip()))
    message = Message(start.decode("latin-1").rstrip("\r\n"), headers, b"")
    if not has_body or message.start.split(" ")[1] in {"204", "304"}:
        return message
    if (message.header("transfer-encoding") or "").lower() == "chunked":
        # passed on with a length instead
        message.body = b"".join(_chunks(reader))
        message.headers = [pair for pair in headers if pair[0].lower() != "transfer-encoding"]
        message.headers.append(("Content-Length", str(len(message.body))))
    else:
        length = int(message.header("content-length") or 0)
        message.body = reader.read(length) if length else b""
        if len(message.body) < length:
            return None
    return message


def _chunks(reader: BinaryIO) -> Iterator[bytes]:
    while (size := int(reader.readline(_LONGEST_HEAD).split(b";")[0], 16)) > 0:
        yield reader.read(size)
        reader.readline(_LONGEST_HEAD)
    reader.readline(_LONGEST_HEAD)
