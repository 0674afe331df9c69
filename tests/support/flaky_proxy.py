"""A proxy between an S3 client and its server that loses, cuts, refuses and delays what it is told to, and counts it."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

REFUSALS = {
    "slow_down": (503, "Slow Down", "SlowDown"),
    "internal_error": (500, "Internal Server Error", "InternalError"),
    "access_denied": (403, "Forbidden", "AccessDenied"),
}
FAULTS = ("slow_down", "lost_answer", "internal_error", "cut_answer", "cut_request", "delay")


@dataclass(frozen=True)
class Request:
    """What the plan of faults decides by."""

    number: int
    """Counts from 1, over all connections."""
    method: str
    path: str
    """With the query."""


Plan = Callable[[Request], str | None]


def every(nth: int, faults: tuple[str, ...] = FAULTS) -> Plan:
    """Each ``nth`` request meets a fault, one kind after the other."""
    return lambda request: None if request.number % nth else faults[request.number // nth % len(faults)]


def each(fault: str, method: str, part: str = "") -> Plan:
    """Every request of a method with ``part`` in its path meets a fault, without an end."""
    return lambda request: fault if request.method == method and part in request.path else None


def first(fault: str, times: int, method: str, part: str = "") -> Plan:
    """The first requests of a method with ``part`` in their path meet a fault."""
    left = iter(range(times))

    def plan(request: Request) -> str | None:
        if request.method != method or part not in request.path:
            return None
        return fault if next(left, None) is not None else None

    return plan


@dataclass
class FlakyProxy:
    """A context manager. May be given another plan at any time."""

    server_port: int
    plan: Plan = lambda request: None
    delay_s: float = 0.05
    requests: list[Request] = field(default_factory=list)
    injected: list[tuple[str, Request]] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # close() alone does not wake who waits in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(5)

    def kinds(self) -> set[str]:
        """The kinds of faults that really happened."""
        return {kind for kind, _ in self.injected}

    def count(self, method: str, part: str = "") -> int:
        """How many requests of a method with ``part`` in their path came."""
        return sum(request.method == method and part in request.path for request in self.requests)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._relay(client):
                pass

    def _relay(self, client: socket.socket) -> bool:
        """Carry one request and its answer; return whether the connection goes on."""
        head, rest = _read_head(client)
        if not head:
            return False
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        with self._lock:
            request = Request(len(self.requests) + 1, method, path)
            self.requests.append(request)
        fault = self.plan(request)
        if fault is not None:
            self.injected.append((fault, request))
        length = _length(head)
        if b"expect: 100-continue" in head.lower():
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = _without(head, b"expect")
        if fault == "cut_request":
            _copy(client, None, rest, length // 2)
            return False
        if fault in REFUSALS:
            _copy(client, None, rest, length)
            client.sendall(_refusal(fault, method))
            return True
        if fault == "delay":
            time.sleep(self.delay_s)
        with socket.create_connection(("127.0.0.1", self.server_port)) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.sendall(head)
            _copy(client, server, rest, length)
            answer, rest = _read_head(server)
            if fault == "lost_answer" or not answer:
                return False
            length = 0 if method == "HEAD" else _length(answer)
            # The server closes after each answer; others do not, and clients shall use a connection again.
            client.sendall(_without(answer, b"connection"))
            _copy(server, client, rest, length // 2 if fault == "cut_answer" else length)
            return fault != "cut_answer"


def _read_head(source: socket.socket) -> tuple[bytes, bytes]:
    """Everything up to the empty line, and what came of the body with it."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        piece = source.recv(65536)
        if not piece:
            return b"", b""
        raw += piece
    head, _, rest = raw.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _without(head: bytes, name: bytes) -> bytes:
    return b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(name + b":"))


def _length(head: bytes) -> int:
    assert b"transfer-encoding" not in head.lower()
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def _copy(source: socket.socket, target: socket.socket | None, begun: bytes, length: int) -> None:
    begun = begun[:length]
    if target is not None and begun:
        target.sendall(begun)
    left = length - len(begun)
    while left:
        piece = source.recv(min(left, 2**18))
        if not piece:
            raise ConnectionResetError
        if target is not None:
            target.sendall(piece)
        left -= len(piece)


def _refusal(fault: str, method: str) -> bytes:
    status, reason, code = REFUSALS[fault]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as planned</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else body)
