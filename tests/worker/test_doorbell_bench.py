"""From a submit to its claim when one worker is full, one idle, and none polls: what the doorbell alone is worth.

On PostgreSQL, through the relay, with real Celery workers whose engine develops at once. The claim's time is the
database's, whose clock is this machine's.
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from tables import milliseconds, report

from darkroom.catalog import Catalog
from darkroom.jobs import JobState
from darkroom.relay import Relay

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

MODEL = "darkroom-seeded"
NUM_JOBS = 300


@pytest.fixture
def relay(place: Any) -> Iterator[Relay]:
    relay = Relay(place.settings, database=place.database, catalog=Catalog.load(place.settings))
    relay.ensure_alive()
    yield relay
    relay.stop()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_submit_to_claim_beside_a_full_worker(place: Any, relay: Relay) -> None:
    place.start_worker(poll_seconds=0, worker_slots=2)
    held = [place.submit("wait:never") for _ in range(2)]
    for job_id in held:
        relay.notify(job_id, model=MODEL)
    place.until_state(JobState.RUNNING, *held)
    place.start_worker(poll_seconds=0, worker_slots=4)

    waits = []
    for _ in range(NUM_JOBS):
        began = time.time()
        job_id = place.submit()
        relay.notify(job_id, model=MODEL)
        place.until_state(JobState.SUCCEEDED, job_id)
        waits.append(place.job(job_id).started_at.timestamp() - began)

    report("doorbell", {"submit to claim": milliseconds(waits)})
