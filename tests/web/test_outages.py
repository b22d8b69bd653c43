"""What a person and a program are told while a part of Darkroom is away. Never a traceback, never a long wait."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from darkroom import keys
from darkroom.config import Settings
from darkroom.db import Database
from darkroom.errors import DatabaseUnavailable
from darkroom.keys import Quotas
from darkroom.web import create_app

SUBMIT_SECONDS = 0.3
# Far more than a request takes on a busy machine, far less than one that waits for a silent Redis.
BRIEF_SECONDS = 3
NOWHERE = "127.0.0.1:1"
BODY = {"prompt": "a red house"}


@pytest.fixture
def full_app(settings: Settings) -> Iterator[Flask]:
    """An application with its loops."""
    app = create_app(settings)
    yield app
    app.extensions["darkroom"].background.stop()
    app.extensions["darkroom"].database.dispose()


def submit_and_time(client: FlaskClient) -> tuple[Any, float]:
    start = time.monotonic()
    response = client.post("/api/v1/jobs", json=BODY)
    seconds = time.monotonic() - start
    assert response.status_code == 202
    return response.json, seconds


@pytest.mark.parametrize("fault", ["stop", "kill", "pause"])
def test_submit_needs_no_redis(full_app: Flask, valkey: Any, fault: str) -> None:
    client = full_app.test_client()
    getattr(valkey, fault)()
    submitted = [submit_and_time(client) for _ in range(7)]
    job, _ = submitted[-1]
    assert median(seconds for _, seconds in submitted) < SUBMIT_SECONDS
    assert client.get(job["urls"]["self"]).json["state"] == "queued"


@pytest.mark.parametrize("fault", ["stop", "kill", "pause"])
@pytest.mark.parametrize("is_warm", [True, False])
def test_submit_with_a_key_and_all_its_limits_needs_no_redis(
    full_app: Flask, valkey: Any, fault: str, is_warm: bool
) -> None:
    client = full_app.test_client()
    quotas = Quotas(max_queued=100, megapixel_steps_per_day=1e6, requests_per_minute=100)
    database = full_app.extensions["darkroom"].database
    _, key = keys.create(database, name="ann", owner="ann", scopes=("submit", "read"), quotas=quotas)
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    if is_warm:
        submit_and_time(client)
    getattr(valkey, fault)()
    submitted = [submit_and_time(client) for _ in range(7)]
    assert median(seconds for _, seconds in submitted) < SUBMIT_SECONDS
    # The first to notice waits for the time-outs, and nobody waits for more than these.
    assert max(seconds for _, seconds in submitted) < BRIEF_SECONDS


@pytest.mark.parametrize("fault", ["stop", "pause"])
def test_running_job_and_its_page_are_shown_without_redis_only_without_a_step(
    client: FlaskClient, worker: Any, submit: Any, valkey: Any, fault: str
) -> None:
    job = submit()
    worker.claim()
    getattr(valkey, fault)()
    client.get(job["urls"]["self"])  # the first to notice pays for the time-out
    start = time.monotonic()
    shown = client.get(job["urls"]["self"])
    page = client.get(job["urls"]["page"])
    assert time.monotonic() - start < BRIEF_SECONDS
    assert shown.json
    assert (shown.json["state"], shown.json["progress"]) == ("running", None)
    assert page.status_code == 200
    assert "A worker has it." in page.text


@pytest.mark.parametrize("fault", ["stop", "pause"])
def test_first_look_at_a_running_job_waits_for_redis_only_briefly(
    client: FlaskClient, worker: Any, submit: Any, valkey: Any, fault: str
) -> None:
    job = submit()
    worker.claim()
    getattr(valkey, fault)()
    start = time.monotonic()
    assert client.get(job["urls"]["self"]).status_code == 200
    assert time.monotonic() - start < BRIEF_SECONDS


def test_cancel_needs_no_redis(client: FlaskClient, worker: Any, submit: Any, valkey: Any) -> None:
    job = submit()
    worker.claim()
    valkey.pause()
    start = time.monotonic()
    assert client.post(job["urls"]["cancel"]).json["state"] == "canceled"
    assert time.monotonic() - start < BRIEF_SECONDS


class LostAfterWriting:
    """A database that can be read until something was written into it, and then goes away."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._is_away = False
        self.is_sqlite = database.is_sqlite

    @contextmanager
    def write(self) -> Iterator[Session]:
        with self._database.write() as session:
            yield session
        self._is_away = True

    @contextmanager
    def read(self) -> Iterator[Session]:
        if self._is_away:
            raise DatabaseUnavailable
        with self._database.read() as session:
            yield session

    @contextmanager
    def look(self) -> Iterator[Connection]:
        if self._is_away:
            raise DatabaseUnavailable
        with self._database.look() as connection:
            yield connection

    def dispose(self) -> None:
        self._database.dispose()


@pytest.fixture
def lose_database(app: Flask) -> Callable[[], None]:
    """Have the application lose its database right after its next commit."""

    def lose() -> None:
        services = app.extensions["darkroom"]
        app.extensions["darkroom"] = replace(services, database=LostAfterWriting(services.database))

    return lose


def test_job_that_was_stored_is_accepted_though_its_place_cannot_be_told(
    client: FlaskClient, lose_database: Callable[[], None]
) -> None:
    lose_database()
    response = client.post("/api/v1/jobs", json=BODY)
    assert response.status_code == 202
    assert response.json
    assert (response.json["state"], response.json["position"]) == ("queued", None)


def test_retry_that_was_stored_is_accepted_though_its_place_cannot_be_told(
    client: FlaskClient, worker: Any, submit: Any, lose_database: Callable[[], None]
) -> None:
    job = submit()
    worker.fail("the card is too small")
    lose_database()
    response = client.post(f"{job['urls']['self']}/retry")
    assert response.status_code == 202
    assert response.json
    assert (response.json["retry_of"], response.json["position"]) == (job["id"], None)


REQUESTS = [
    ("POST", "/api/v1/jobs"),
    ("GET", "/api/v1/jobs"),
    ("GET", "/api/v1/jobs/01a20405-fb01-7070-bc9a-0d618ca8ebd9"),
    ("POST", "/api/v1/jobs/01a20405-fb01-7070-bc9a-0d618ca8ebd9/cancel"),
    ("GET", "/api/v1/jobs/01a20405-fb01-7070-bc9a-0d618ca8ebd9/images/0"),
]


@pytest.mark.parametrize(("method", "path"), REQUESTS)
def test_database_away_is_503_and_when_to_come_back(settings: Settings, method: str, path: str) -> None:
    away = settings.model_copy(update={"database_url": f"postgresql+psycopg://me:secret@{NOWHERE}/darkroom"})
    client = create_app(away, with_background=False).test_client()
    response = client.open(path, method=method, json=BODY if method == "POST" else None)
    assert response.status_code == 503
    assert response.content_type == "application/problem+json"
    assert response.json
    assert response.json["code"] == "database_unavailable"
    assert int(response.headers["Retry-After"]) > 0
    assert "secret" not in response.text
    assert "1" not in response.json["detail"]


@pytest.mark.parametrize("path", ["/", "/gallery", "/jobs/01a20405-fb01-7070-bc9a-0d618ca8ebd9"])
def test_database_away_is_a_page_that_says_so(settings: Settings, path: str) -> None:
    away = settings.model_copy(update={"database_url": f"postgresql+psycopg://me@{NOWHERE}/darkroom"})
    response = create_app(away, with_background=False).test_client().get(path)
    assert response.status_code == 503
    assert "The database does not answer." in response.text
    assert "Traceback" not in response.text


def test_schema_that_was_never_migrated_is_503(settings: Settings, tmp_path: Any) -> None:
    empty = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/empty.db"})
    client = create_app(empty, with_background=False).test_client()
    assert client.post("/api/v1/jobs", json=BODY).status_code == 503
    ready = client.get("/readyz")
    assert ready.json
    assert "darkroom migrate" in ready.json["checks"]["database"]["problem"]


def test_storage_away_is_503(settings: Settings, client: FlaskClient, worker: Any, submit: Any) -> None:
    job = submit()
    worker.develop(is_stored=False)
    away = settings.model_copy(update={"s3_endpoint_url": f"http://{NOWHERE}"})
    response = create_app(away, with_background=False).test_client().get(job["urls"]["self"] + "/images/0")
    assert response.status_code == 503
    assert response.json
    assert response.json["code"] == "storage_unavailable"
    assert response.headers["Retry-After"]
    assert response.headers["Cache-Control"] == "no-store"


def test_silent_storage_holds_a_request_for_seconds_only(
    client: FlaskClient, worker: Any, submit: Any, s3: Any
) -> None:
    job = submit()
    worker.develop()
    s3.pause()
    start = time.monotonic()
    response = client.get(job["urls"]["self"] + "/images/0")
    assert response.status_code == 503
    assert time.monotonic() - start < 20  # two attempts of 4 s and the pause between them, on a busy machine


def test_ready_when_everything_answers(full_app: Flask, bucket: None) -> None:
    response = full_app.test_client().get("/readyz")
    assert response.status_code == 200
    assert response.json
    assert (response.json["status"], response.json["failing"]) == ("ready", [])
    assert set(response.json["checks"]) == {"database", "redis", "s3", "relay"}
    assert response.json["checks"]["relay"]["age_seconds"] < 5


@pytest.mark.parametrize("fault", ["stop", "pause"])
@pytest.mark.parametrize("server", ["valkey", "s3"])
def test_outage_of_what_submitting_does_without_takes_no_web_process_out(
    full_app: Flask, bucket: None, request: pytest.FixtureRequest, server: str, fault: str
) -> None:
    getattr(request.getfixturevalue(server), fault)()
    name = {"valkey": "redis"}.get(server, server)
    start = time.monotonic()
    response = full_app.test_client().get("/readyz")
    assert time.monotonic() - start < 8  # the slowest question waits 1 + 2 s
    assert response.status_code == 200
    assert response.json
    assert (response.json["status"], response.json["failing"]) == ("degraded", [name])
    assert [each for each, check in response.json["checks"].items() if not check["ok"]] == [name]
    assert "127.0.0.1" not in response.text


def test_not_ready_without_the_database_and_says_that_it_is_the_database(settings: Settings, bucket: None) -> None:
    away = settings.model_copy(update={"database_url": f"postgresql+psycopg://me@{NOWHERE}/darkroom"})
    response = create_app(away, with_background=False).test_client().get("/readyz")
    assert response.status_code == 503
    assert response.content_type == "application/problem+json"
    assert response.headers["Retry-After"]
    assert response.json
    assert response.json["detail"] == "Not ready: database."
    assert [name for name, check in response.json["checks"].items() if not check["ok"]] == ["database"]
    assert "127.0.0.1" not in response.text


def test_alive_with_everything_away(bare_client: FlaskClient) -> None:
    assert bare_client.get("/healthz").json == {"status": "ok"}
    assert bare_client.get("/readyz").json["failing"] == ["redis", "s3"]


def test_fault_of_our_own_is_500_with_a_number_that_the_log_has(settings: Settings, capsys: Any) -> None:
    app = create_app(settings, with_background=False)
    app.extensions.pop("darkroom")
    response = app.test_client().get("/api/v1/jobs")
    assert response.status_code == 500
    assert response.json
    assert response.json["code"] == "internal_error"
    incident = response.json["detail"].rpartition(" ")[2].rstrip(".")
    assert len(incident) == 8
    assert incident in capsys.readouterr().out
    assert "KeyError" not in response.text
