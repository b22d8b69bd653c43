"""The processes of a benchmark, each started and ended by it, on the tests' PostgreSQL and Valkey."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from darkroom.stack.leash import held_by, leashed
from darkroom.stack.servers import free_port

START_SECONDS = 30
BENCH = Path(__file__).parent


class Deployment:
    """Where the measured programs run: one database, one Redis."""

    def __init__(self, folder: Path, *, database_url: str, redis_url: str) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")},
            **held_by(os.getpid()),
            "DARKROOM_HOME": str(folder),
            "DARKROOM_DATABASE_URL": database_url,
            "DARKROOM_REDIS_URL": redis_url,
            "REDIS_URL": redis_url,
            "DARKROOM_S3_ENDPOINT_URL": "http://127.0.0.1:1",
            "DARKROOM_LOG_LEVEL": "ERROR",
        }

    def run(self, script: str, *arguments: str, **settings: object) -> subprocess.Popen[str]:
        """Start one of this folder's programs."""
        said = {f"DARKROOM_{name.upper()}": str(value) for name, value in settings.items()}
        command = leashed([sys.executable, str(BENCH / script), *arguments])
        process = subprocess.Popen(
            command, env={**self.environment, **said}, stdout=subprocess.PIPE, text=True, cwd=BENCH
        )
        self._processes.append(process)
        return process

    def serve(self, what: str, **settings: object) -> "Served":
        """Serve an application, and wait until it answers."""
        port = free_port()
        process = self.run("serve.py", what, port=port, **settings)
        deadline = time.monotonic() + START_SECONDS
        while not _answers(port):
            assert process.poll() is None, f"{what} did not start"
            assert time.monotonic() < deadline, f"{what} does not answer"
            time.sleep(0.05)
        return Served(port, process)

    def end(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()


class Served:
    """A server that answers."""

    def __init__(self, port: int, process: subprocess.Popen[str]) -> None:
        self.port = port
        self.pid = process.pid


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            return connection.recv(12).startswith(b"HTTP/1.1 ")
    except OSError:
        return False


def medians_of(rows: Mapping[str, list[float]]) -> dict[str, float]:
    """The middle of each case's rounds."""
    return {name: sorted(values)[len(values) // 2] for name, values in rows.items()}
