"""A web face that really listens, and the command as a person runs it."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import sha256

import pytest
from claiming import claim_one
from werkzeug.serving import make_server

from darkroom import jobs
from darkroom.client import Darkroom
from darkroom.config import Settings
from darkroom.db import Database
from darkroom.jobs import Claim, ImageRecord, Lines, Success
from darkroom.stack.servers import wait_until
from darkroom.storage import Storage, image_key, thumb_key
from darkroom.web import create_app

PICTURE = b"\x89PNG\r\n\x1a\n a picture"


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    """Where a Darkroom without a worker answers."""
    app = create_app(settings, with_background=False)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
    app.extensions["darkroom"].background.stop()
    app.extensions["darkroom"].database.dispose()


@pytest.fixture
def at_work() -> Callable[..., AbstractContextManager[None]]:
    """Do some work, once, as soon as a job is queued."""

    @contextmanager
    def at_work(work: Callable[[], object], url: str) -> Iterator[None]:
        def wait_and_work() -> None:
            with Darkroom(url) as client:
                wait_until(lambda: bool(client.jobs(state="queued")), seconds=30, refusal=lambda: "no job came")
            work()

        thread = threading.Thread(target=wait_and_work)
        thread.start()
        yield
        thread.join()

    return at_work


@pytest.fixture
def darkroom() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a `darkroom` command to its end."""

    def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "darkroom.cli", *map(str, words)]
        environment = {**os.environ, **environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    return run


@dataclass(frozen=True)
class HandWorker:
    """Does by hand, and at once, what a worker does with the front job."""

    database: Database
    storage: Storage

    def claim(self) -> Claim:
        claim = claim_one(
            self.database, worker_id="hand", models=["darkroom-seeded"], num_held=0, lease_seconds=60, lines=Lines()
        )
        assert claim
        return claim

    def develop(self) -> None:
        claim = self.claim()
        images = [self._store(claim, n) for n in range(claim.params.num_images)]
        timings = {"denoise": 2.5, "upload": 0.1, "encode": 0.2}
        jobs.succeed(self.database, Success(claim.job_id, claim.attempt, images, timings))

    def fail(self, message: str) -> None:
        claim = self.claim()
        jobs.fail(self.database, claim.job_id, attempt=claim.attempt, code="out_of_memory", message=message)

    def _store(self, claim: Claim, n: int) -> ImageRecord:
        key, thumb = image_key(claim.job_id, claim.attempt, n, "png"), thumb_key(claim.job_id, claim.attempt, n)
        body = PICTURE + str(n).encode()
        self.storage.put(key, body, content_type="image/png")
        digest = sha256(body).hexdigest()
        return ImageRecord(n, key, thumb, "image/png", 128, 128, len(body), claim.params.seed_of(n), digest)


@pytest.fixture
def worker(settings: Settings) -> Iterator[HandWorker]:
    database = Database(settings.database)
    yield HandWorker(database, Storage(settings))
    database.dispose()
