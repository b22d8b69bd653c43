"""Offers HTTP requests to a server on this host from one thread, leanly: the server is what is measured.

Knows no benchmark. A request is bytes, an answer is its status and its time; bodies are read and dropped.
"""

import math
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tables import milliseconds

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"
PATIENCE_SECONDS = 30.0


@dataclass
class Load:
    """What came of it. Latencies are in seconds, from the moment a request was due."""

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def row(self, **more: object) -> dict[str, object]:
        """A line of a table."""
        statuses = " ".join(f"{status}x{count}" for status, count in sorted(self.statuses.items()))
        return {"per_s": round(self.rate), **milliseconds(self.latencies), "statuses": statuses, **more}


def request(
    method: str, path: str, *, body: bytes = b"", headers: dict[str, str] | None = None, is_kept: bool = True
) -> bytes:
    """One HTTP/1.1 request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    if not is_kept:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Connection:
    """One kept connection with at most one request under way; reconnects when the server has closed it."""

    def __init__(self, port: int, selector: selectors.BaseSelector) -> None:
        self._port = port
        self._selector = selector
        self._read = b""
        self.due = 0.0
        self._connect()

    def _connect(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(self._socket, selectors.EVENT_READ, self)
        self._must_close = False

    def send(self, payload: bytes, *, due: float) -> None:
        self.due = due
        self._read = b""
        if self._must_close:
            self.close()
            self._connect()
        try:
            self._socket.sendall(payload)
        except OSError:
            self.close()
            self._connect()
            self._socket.sendall(payload)
        self._sent = payload

    def receive(self) -> int | None:
        """The status once the whole answer is there."""
        piece = self._socket.recv(65536)
        if not piece and not self._read:  # closed while idle, as a server may: the request was never read
            self.close()
            self._connect()
            self._socket.sendall(self._sent)
            return None
        self._read += piece
        head, found, body = self._read.partition(HEAD_END)
        if not found:
            return None
        lowered = head.lower()
        status = int(head[9:12])
        self._must_close = b"connection: close" in lowered
        if status not in {204, 304}:
            if b"transfer-encoding: chunked" in lowered:
                if not body.endswith(b"0\r\n\r\n"):
                    return None
            elif len(body) < int(lowered.partition(LENGTH)[2].split(b"\r\n", 1)[0]):
                return None
        return status

    def close(self) -> None:
        self._selector.unregister(self._socket)
        self._socket.close()


def offer(
    port: int,
    request_of: Callable[[int], bytes],
    *,
    seconds: float,
    num_connections: int,
    rate: float | None = None,
    most: float = math.inf,
) -> Load:
    """Offer requests for so long: at a fixed rate, whether or not they are answered, or as fast as they are answered.

    It ends early when `most` were sent and answered.
    At a fixed rate a request that finds no free connection waits for one, and its latency counts that wait.
    """
    load = Load()
    with selectors.DefaultSelector() as selector:
        free = deque(_Connection(port, selector) for _ in range(num_connections))
        connections = list(free)
        began = time.perf_counter()
        num_sent = 0
        while True:
            now = time.perf_counter()
            is_over = now - began >= seconds or num_sent >= most
            if is_over and len(free) == num_connections:
                break
            assert now - began < seconds + PATIENCE_SECONDS, "the server answers no more"
            while free and num_sent < most and (not is_over or (rate and num_sent / rate < seconds)):
                due = began + num_sent / rate if rate else now
                if due > now:
                    break
                free.popleft().send(request_of(num_sent), due=due)
                num_sent += 1
            pause = max(began + num_sent / rate - time.perf_counter(), 0) if rate and free and not is_over else 0.5
            for key, _ in selector.select(min(pause, 0.5)):
                connection = key.data
                if (status := connection.receive()) is not None:
                    ended = time.perf_counter()
                    load.latencies.append(ended - connection.due)
                    load.statuses[status] += 1
                    free.append(connection)
        load.seconds = time.perf_counter() - began
        for connection in connections:
            connection.close()
    return load
