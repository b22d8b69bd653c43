"""One deployment for each file of tests: `darkroom web` and a worker around an engine without weights, as processes.

It asks for keys. The clients under test are the packages as they are published, and know nothing of Darkroom.
"""

import gc
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image as Picture

from darkroom import fleet, jobs, keys
from darkroom.config import load_settings
from darkroom.db import Database
from darkroom.jobs import JobRecord
from darkroom.keys import Quotas
from darkroom.stack.leash import held_by, leashed
from darkroom.stack.servers import free_port

FAKE_WORKER = Path(__file__).parents[2] / "worker" / "fake_worker.py"
START_SECONDS = 60
MODEL = "darkroom-seeded"


def until(condition: Callable[[], Any], *, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def collect_what_the_clients_leave_open() -> Iterator[None]:
    """The packages close their connections when they are collected, of which Python warns: let that be here."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@dataclass(frozen=True)
class Deployment:
    """Where it is, who may ask it, and what it has stored."""

    url: str
    database: Database
    control: Path
    keys: Mapping[str, str]

    def client(self, owner: str = "ann", **options: Any) -> httpx.Client:
        """A plain client with somebody's key as a bearer."""
        headers = {"Authorization": f"Bearer {self.keys[owner]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=START_SECONDS, **options)

    def jobs(self, owner: str = "ann") -> list[JobRecord]:
        """What somebody has asked for, the newest first."""
        return jobs.list_jobs(self.database, owner=owner)

    def release(self, file: str) -> None:
        """Let the jobs go on whose prompt waits for this file."""
        (self.control / file).touch()


def _as_environment(values: Mapping[str, Any]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, **held_by(os.getpid()), **{name: str(value) for name, value in values.items()}}


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path, valkey_process: Any, s3_process: Any
) -> Iterator[Deployment]:
    """A server with a worker, and two people with a key each."""
    home = tmp_path_factory.mktemp("deployment")
    shutil.copy(migrated_sqlite, home / "darkroom.db")
    valkey_process.start()
    s3_process.start()
    port, control = free_port(), home / "control"
    control.mkdir()
    environment = _as_environment(
        {
            **s3_process.credentials,
            "DARKROOM_HOME": home,
            "DARKROOM_CATALOG": Path(__file__).parents[2] / "seeded.toml",
            "DARKROOM_DATABASE_URL": f"sqlite:///{home}/darkroom.db",
            "DARKROOM_REDIS_URL": valkey_process.url,
            "DARKROOM_S3_ENDPOINT_URL": s3_process.endpoint_url,
            "DARKROOM_S3_BUCKET": s3_process.new_bucket(),
            "DARKROOM_PORT": port,
            "DARKROOM_POLL_SECONDS": 0.1,
            "DARKROOM_RELAY_SECONDS": 0.2,
        }
    )
    database = Database(load_settings(home=home).database)
    shown = {
        owner: keys.create(database, name=owner, owner=owner, scopes=("submit", "read"), quotas=Quotas())[1]
        for owner in ("ann", "bob")
    }
    order = {
        "environment": environment,
        "control": str(control),
        "log": str(home / "worker.log"),
        "is_apart": False,
        "stall_limits": {},
    }
    web = subprocess.Popen(leashed([sys.executable, "-m", "darkroom.cli", "web"]), env=environment)
    nursery = subprocess.Popen(
        leashed([sys.executable, str(FAKE_WORKER)]),
        env={**os.environ, **held_by(os.getpid())},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    with web, nursery:
        try:
            assert nursery.stdin
            nursery.stdin.write(f"{json.dumps(order)}\n")
            nursery.stdin.flush()
            until(lambda: fleet.list_workers(database) and _is_ready(port))
            yield Deployment(f"http://127.0.0.1:{port}", database, control, shown)
        finally:
            nursery.kill()  # its worker dies with it
            web.kill()
            database.dispose()


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def encoded(color: str | tuple[int, ...] = "red", *, mode: str = "RGB", size: int = 128, kind: str = "PNG") -> bytes:
    """A picture of one color."""
    made = BytesIO()
    Picture.new(mode, (size, size), color).save(made, kind)
    return made.getvalue()


@pytest.fixture(name="encoded", scope="session")
def _encoded() -> Callable[..., bytes]:
    return encoded


@pytest.fixture(name="until", scope="session")
def _until() -> Callable[..., None]:
    return until
