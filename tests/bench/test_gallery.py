"""What a page of the gallery costs with 50 and with 10,000 pictures, and the queue with 100 and with 100,000 jobs.

The cases are interleaved, one request of each a round, through the application without a network, on SQLite and on
PostgreSQL.
"""

import shutil
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import insert, select, text
from tables import milliseconds, report
from uuid_utils.compat import uuid7

from darkroom.config import load_settings
from darkroom.db import Database
from darkroom.models import Image, Job
from darkroom.web import create_app

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

NUM_ROUNDS = 60
WARM_UP_ROUNDS = 10
CHUNK = 5000
MODEL = "darkroom-seeded"
PARAMS = {
    "width": 512,
    "height": 512,
    "num_inference_steps": 20,
    "guidance_scale": 3.0,
    "sampler": "euler",
    "seed": 7,
}
# Every picture is of a house, one in a thousand of a lighthouse.
PROMPTS = ("a red house by the sea at sunset", "a lighthouse in the fog")


def job_row(n: int, state: str) -> dict[str, Any]:
    ended = state == "succeeded"
    moment = datetime.now(UTC)
    return {
        "id": uuid7(),
        "owner": "local",
        "model": MODEL,
        "params": PARAMS | {"prompt": PROMPTS[n % 1000 == 999]},
        "state": state,
        "job_class": 1,
        "start_tag": float(n),
        "finish_tag": n + 1.0,
        "attempt": int(ended),
        "event_seq": 1,
        "deadline_at": moment + timedelta(days=1),
        "started_at": moment if ended else None,
        "finished_at": moment if ended else None,
    }


def image_row(job: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "job_id": job["id"],
        "n": 0,
        "key": f"jobs/{job['id']}/1/0.png",
        "thumb_key": f"jobs/{job['id']}/1/0.thumb.webp",
        "content_type": "image/png",
        "width": 512,
        "height": 512,
        "num_bytes": 1,
        "seed": 7,
        "sha256": "0" * 64,
    }


def fill(url: str, *, state: str, count: int) -> None:
    """Store so many jobs, with a picture each if they have succeeded, and have PostgreSQL look at what it has."""
    database = Database(url)
    for first in range(0, count, CHUNK):
        rows = [job_row(n, state) for n in range(first, min(first + CHUNK, count))]
        with database.write() as session:
            session.execute(insert(Job), rows)
            if state == "succeeded":
                session.execute(insert(Image), [image_row(row) for row in rows])
    if not database.is_sqlite:
        with database.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))
    database.dispose()


class Shelf:
    """Applications, each on a database of its own."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        self._request = request
        self._folder = folder
        self._databases: list[Database] = []

    def client(self, kind: str, **what: Any) -> FlaskClient:
        folder = self._folder / str(len(self._databases))
        folder.mkdir()
        url = self._new_database(kind, folder)
        fill(url, **what)
        redis_url = self._request.getfixturevalue("valkey").url
        settings = load_settings(
            home=folder, database_url=url, redis_url=redis_url, s3_endpoint_url="http://127.0.0.1:1"
        )
        app = create_app(settings, with_background=False)
        self._databases.append(app.extensions["darkroom"].database)
        return app.test_client()

    def _new_database(self, kind: str, folder: Path) -> str:
        if kind == "sqlite":
            shutil.copy(self._request.getfixturevalue("migrated_sqlite"), folder / "darkroom.db")
            return f"sqlite:///{folder}/darkroom.db"
        postgres = self._request.getfixturevalue("postgres")
        url: str = postgres.url(postgres.new_database(template=self._request.getfixturevalue("migrated_postgres")))
        return url

    def close(self) -> None:
        for database in self._databases:
            database.dispose()


@pytest.fixture
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(request, tmp_path)
    yield shelf
    shelf.close()


def in_turns(cases: Mapping[str, tuple[FlaskClient, str]]) -> dict[str, dict[str, float]]:
    """Ask each once a round."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for n in range(WARM_UP_ROUNDS + NUM_ROUNDS):
        for name, (client, path) in cases.items():
            began = time.perf_counter()
            response = client.get(path)
            took = time.perf_counter() - began
            assert response.status_code == 200, response.text
            if n >= WARM_UP_ROUNDS:
                seconds[name].append(took)
    return {name: milliseconds(values) for name, values in seconds.items()}


def beside_first(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    first = next(iter(rows.values()))["p50_ms"]
    return {name: row | {"ratio": round(row["p50_ms"] / first, 2)} for name, row in rows.items()}


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_gallery(shelf: Shelf, kind: str) -> None:
    few, many = (shelf.client(kind, state="succeeded", count=count) for count in (50, 10_000))
    near_the_end = far_down(many)
    cases = {
        "50 pictures": (few, "/gallery"),
        "10,000 pictures": (many, "/gallery"),
        "10,000, from an address far down": (many, f"/gallery?cursor={near_the_end}"),
        "10,000, a word of nearly all": (many, "/gallery?q=house"),
        "10,000, a word of one in a thousand": (many, "/gallery?q=fog"),
        "10,000, a word of none": (many, "/gallery?q=submarine"),
    }
    report(f"gallery-{kind}", beside_first(in_turns(cases)))


def far_down(client: FlaskClient) -> str:
    """The cursor of a page that ninety-nine in a hundred pictures come before."""
    database: Database = client.application.extensions["darkroom"].database
    with database.read() as session:
        return str(session.scalar(select(Job.id).order_by(Job.id).offset(100).limit(1)))


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_queue(shelf: Shelf, kind: str) -> None:
    few, many = (shelf.client(kind, state="queued", count=count) for count in (100, 100_000))
    for name, path in (("mine", "/queue"), ("everybody's", "/queue/all"), ("by the API", "/api/v1/queue")):
        cases = {f"{name}, 100 queued": (few, path), f"{name}, 100,000 queued": (many, path)}
        report(f"queue-{kind}-{path.strip('/').replace('/', '-')}", beside_first(in_turns(cases)))
