"""A receiver that really listens, and does what a test tells it."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Received:
    """One request that reached the receiver."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """Answers each path with its status, 204 where nothing else was said. `gate` closed: it answers nobody."""

    port: int = 0
    statuses: dict[str, list[int]] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    num_inside: int = 0
    most_inside: int = 0
    came: threading.Condition = field(default_factory=threading.Condition)

    def url(self, path: str = "/hook", *, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def answer(self, path: str, *statuses: int) -> None:
        """Answer a path with these statuses, one after another and the last one for ever."""
        self.statuses[path] = list(statuses)

    def take(self, request: Received) -> int:
        with self.came:
            self.received.append(request)
            self.num_inside += 1
            self.most_inside = max(self.most_inside, self.num_inside)
            self.came.notify_all()
        assert self.gate.wait(30)
        with self.came:
            self.num_inside -= 1
            left = self.statuses.get(request.path, [204])
            return left.pop(0) if len(left) > 1 else left[0]

    def wait_for(self, num_requests: int) -> list[Received]:
        with self.came:
            assert self.came.wait_for(lambda: len(self.received) >= num_requests, timeout=30), len(self.received)
            return list(self.received)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.gate.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = receiver.take(Received(self.path, headers, body))
            self.send_response(status)
            if status in {301, 302, 307, 308}:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield receiver
    receiver.gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def raw_server() -> Iterator[Callable[[Callable[[Any], None]], int]]:
    """Start a server that hands each connection to a function; return its port."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(serve: Callable[[Any], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                try:
                    serve(connection)
                except OSError:
                    return

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()
