"""The server as it is run, in a process of its own: how it ends, who may share its port, who outlives whom."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from darkroom.stack.leash import held_by, leashed
from darkroom.stack.servers import free_port, wait_until

START_SECONDS = 30
STREAM = "/api/v1/events"
QUICK = {"DARKROOM_STREAM_HEARTBEAT_SECONDS": "0.2", "DARKROOM_WEB_WAITERS": "3"}


class Server:
    """`darkroom web` on a free port."""

    def __init__(self, environment: dict[str, str], port: int) -> None:
        self.port = port
        environment = {**environment, **QUICK, **held_by(os.getpid()), "PORT": str(port)}
        command = leashed([sys.executable, "-m", "darkroom.cli", "web"])
        self._responses: list[http.client.HTTPResponse] = []
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def get(self, path: str) -> http.client.HTTPResponse:
        """Open a connection and read an answer's head."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            self._responses.append(connection.getresponse())
        finally:
            connection.close()  # the answer keeps what it needs
        return self._responses[-1]

    def status(self, path: str) -> int:
        with self.get(path) as response:
            return response.status

    def is_ready(self) -> bool:
        try:
            return self.status("/healthz") == 200
        except (OSError, http.client.HTTPException):
            return False

    @property
    def worker(self) -> psutil.Process:
        """The process that serves."""
        return psutil.Process(self.process.pid).children()[0]

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=START_SECONDS)
        for response in self._responses:
            response.close()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., Server]]:
    """Start a server; it is always ended."""
    started: list[Server] = []

    def start(port: int | None = None) -> Server:
        started.append(Server(environment, port or free_port()))
        return started[-1]

    yield start
    for server in started:
        server.end()


@pytest.fixture
def server(start: Callable[..., Server]) -> Server:
    server = start()
    wait_until(server.is_ready, seconds=START_SECONDS, refusal=lambda: "the web face")
    return server


def test_streams_end_with_the_server(server: Server) -> None:
    streams = [server.get(STREAM) for _ in range(2)]
    for stream in streams:
        assert stream.readline() == b"retry: 2000\n"
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert all(stream.read().endswith(b": the stream ends here, come back\nretry: 1000\n\n") for stream in streams)
    assert time.monotonic() - began < 2
    assert server.process.wait(START_SECONDS) == 0


def test_client_that_went_away_frees_its_place(server: Server) -> None:
    streams = [server.get(STREAM) for _ in range(3)]
    assert server.status(STREAM) == 503
    for stream in streams:
        stream.readline()
        stream.close()
    until(lambda: server.status(STREAM) == 200)


def test_second_server_on_a_port_is_refused(server: Server, start: Callable[..., Server]) -> None:
    second = start(server.port)
    assert second.process.wait(START_SECONDS) == 1
    assert second.process.stderr
    assert "DARKROOM_PORT" in second.process.stderr.read()
    assert server.is_ready()


def test_server_outlives_its_worker_and_no_worker_its_server(server: Server) -> None:
    first = server.worker
    first.kill()
    until(server.is_ready)
    second = server.worker
    assert second.pid != first.pid
    server.process.kill()
    until(lambda: not second.is_running() or second.status() == psutil.STATUS_ZOMBIE)


def test_request_that_is_half_sent_holds_up_no_other(server: Server) -> None:
    halves = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    for half in halves:
        half.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    assert server.is_ready()
    for half in halves:
        half.close()
