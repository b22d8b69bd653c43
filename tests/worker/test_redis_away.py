"""Without Redis, or with one that never answers, jobs are taken in and developed all the same."""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any
from uuid import UUID

import pytest
from flask.testing import FlaskClient

from darkroom.jobs import JobState
from darkroom.web import create_app

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def client(place: Any) -> Iterator[FlaskClient]:
    """The web face with its relay and sweeper, as it is served."""
    app = create_app(place.settings)
    yield app.test_client()
    services = app.extensions["darkroom"]
    services.background.stop()
    services.database.dispose()


@pytest.fixture
def post(client: FlaskClient) -> Callable[[], UUID]:
    """Submit over HTTP."""

    def post() -> UUID:
        response = client.post("/api/v1/jobs", json={"prompt": "a red house", "width": 64, "height": 64})
        assert response.status_code == 202
        return UUID(response.json["id"])

    return post


@pytest.mark.parametrize("how", ["gone", "black hole"])
def test_a_job_submitted_without_redis_runs_and_doorbells_work_again_afterwards(
    place: Any, valkey: Any, client: FlaskClient, post: Callable[[], UUID], how: str
) -> None:
    place.settings = place.settings.model_copy(update={"poll_seconds": 2.0})
    worker = place.start_worker()
    place.until_state(JobState.SUCCEEDED, post())

    valkey.stop() if how == "gone" else valkey.pause()
    job_ids, waits = [], []
    for _ in range(7):
        began = time.monotonic()
        job_ids.append(post())
        waits.append(time.monotonic() - began)
    assert median(waits) < 0.3
    place.until_state(JobState.SUCCEEDED, *job_ids, seconds=10)
    valkey.start()

    # Nothing was restarted: after a while the relay rings and the worker listens again, far quicker than a poll.
    place.until(lambda: _seconds_to_claim(place, post()) < 0.4, "a doorbell is heard")
    assert worker.exit_code is None


def _seconds_to_claim(place: Any, job_id: UUID) -> float:
    place.until_state(JobState.SUCCEEDED, job_id)
    job = place.job(job_id)
    seconds: float = (job.started_at - job.created_at).total_seconds()
    return seconds


def test_a_worker_that_starts_without_redis_works_and_hears_doorbells_when_it_comes(
    place: Any, valkey: Any, client: FlaskClient, post: Callable[[], UUID]
) -> None:
    place.settings = place.settings.model_copy(update={"poll_seconds": 2.0})
    valkey.stop()
    place.start_worker()
    place.until_state(JobState.SUCCEEDED, post())
    valkey.start()
    place.until(lambda: _seconds_to_claim(place, post()) < 0.4, "a doorbell is heard")
