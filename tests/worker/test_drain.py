"""SIGTERM: no new claims, what runs may finish within the grace time, the rest waits again and nothing is counted."""

import signal
import time
from typing import Any

import pytest
from sqlalchemy import select, text

from darkroom import fleet
from darkroom.jobs import JobState
from darkroom.models import Job

TERM = signal.SIGTERM
# What is stuck after the drain has 5 s to end by itself; the rest is for a busy machine.
EXTRA_SECONDS = 12.0


def ends(place: Any, worker: Any, *, seconds: float = EXTRA_SECONDS) -> int:
    """Wait until a worker has ended, and return its exit code."""
    place.until(lambda: worker.exit_code is not None, "the worker has ended", seconds=seconds)
    exit_code: int = worker.exit_code
    return exit_code


def test_a_drained_worker_finishes_what_runs_and_claims_no_more(place: Any) -> None:
    worker = place.start_worker(worker_slots=2, worker_grace_seconds=20.0)
    running = [place.submit(f"wait:go-{n}") for n in range(2)]
    waiting = place.submit()
    place.until_developing(*running)
    worker.send(TERM)
    place.until(lambda: "worker_drains" in worker.log, "it drains")
    place.release("go-0")
    place.until_state(JobState.SUCCEEDED, running[0])  # a slot is free now
    place.release("go-1")
    assert ends(place, worker) == 0
    assert [place.job(job_id).state for job_id in running] == [JobState.SUCCEEDED] * 2
    assert place.job(waiting).state is JobState.QUEUED
    assert not place.knows(worker)


def test_what_does_not_finish_within_the_grace_time_waits_again_at_its_place(place: Any) -> None:
    worker = place.start_worker(worker_slots=1, worker_grace_seconds=0.5)
    running = place.submit("wait:go")
    place.until_developing(running)
    behind = place.submit("wait:never")
    before = _place_in_line(place, running)
    worker.send(TERM)
    assert ends(place, worker) == 0
    assert place.events(running) == ["queued", "running", "requeued"]
    assert _place_in_line(place, running) == before
    assert not place.knows(worker)

    place.release("go")
    place.start_worker(worker_slots=1)
    place.until_state(JobState.SUCCEEDED, running)
    place.until_developing(behind)
    with place.database.read() as session:
        assert session.execute(select(Job.crashes, Job.shared_crashes).where(Job.id == running)).one() == (0, 0)


def _place_in_line(place: Any, job_id: Any) -> Any:
    with place.database.read() as session:
        return tuple(
            session.execute(select(Job.job_class, Job.start_tag, Job.finish_tag).where(Job.id == job_id)).one()
        )


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("how", ["gone", "black hole"])
def test_a_worker_drains_in_time_without_redis(place: Any, valkey: Any, how: str) -> None:
    worker = place.start_worker(worker_grace_seconds=1.0)
    job_id = place.submit("wait:never")
    place.until_developing(job_id)
    valkey.stop() if how == "gone" else valkey.pause()
    worker.send(TERM)
    assert ends(place, worker, seconds=1 + EXTRA_SECONDS) == 0
    assert place.job(job_id).state is JobState.QUEUED
    assert not place.knows(worker)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_second_sigterm_changes_nothing(place: Any) -> None:
    worker = place.start_worker(worker_grace_seconds=20.0)
    job_id = place.submit("wait:go")
    place.until_developing(job_id)
    worker.send(TERM)
    place.until(lambda: "worker_drains" in worker.log, "it drains")
    worker.send(TERM)
    worker.send(TERM)
    place.release("go")
    assert ends(place, worker) == 0
    assert place.events(job_id) == ["queued", "running", "succeeded"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("delay_seconds", [0.0, 0.1, 0.2, 0.3])
def test_sigterm_at_any_moment_of_the_start_ends_a_worker_in_good_order(place: Any, delay_seconds: float) -> None:
    job_ids = [place.submit("wait:never") for _ in range(3)]
    worker = place.launch_worker(worker_grace_seconds=0.5)
    place.until(lambda: place.knows(worker), "it is known")
    moment = time.monotonic() + delay_seconds
    place.until(lambda: time.monotonic() >= moment, "the moment has come")
    worker.send(TERM)
    worker.send(TERM)
    assert ends(place, worker) == 0
    assert not place.knows(worker)
    for job_id in job_ids:
        assert place.job(job_id).state is JobState.QUEUED
        assert place.job(job_id).crashes == 0


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_whose_device_hangs_still_ends_when_told(place: Any) -> None:
    worker = place.start_worker(worker_grace_seconds=0.5)
    job_id = place.submit("stuck:never")
    place.until_developing(job_id)
    worker.send(TERM)
    assert ends(place, worker, seconds=0.5 + EXTRA_SECONDS) == 0
    assert place.job(job_id).state is JobState.QUEUED


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_claim_under_way_when_the_drain_begins_is_not_forgotten(place: Any) -> None:
    job_id = place.submit("wait:never")
    with place.database.write() as session:
        session.execute(text("LOCK TABLE job_events IN EXCLUSIVE MODE"))  # a claim now waits for its line of history
        worker = place.start_worker(worker_grace_seconds=3.0)
        waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'job_events'::regclass")
        place.until(lambda: session.scalar(waits), "a claim is under way")
        worker.send(TERM)
        place.until(lambda: "worker_drains" in worker.log, "it drains")
    assert ends(place, worker, seconds=3 + EXTRA_SECONDS) == 0
    assert place.events(job_id) == ["queued", "running", "requeued"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_whose_celery_breaks_drains_and_asks_to_be_started_again(place: Any, valkey: Any) -> None:
    """Over a Redis that became a replica (a failover) Celery gives up; the supervisor sees that by the exit code."""
    worker = place.start_worker(worker_grace_seconds=20.0)
    job_id = place.submit("wait:go")
    place.until_developing(job_id)
    with valkey.client() as client:
        try:
            client.replicaof("127.0.0.1", 1)
            place.until(lambda: "worker_drains" in worker.log, "it drains")
            place.release("go")
            assert ends(place, worker) == 1
        finally:
            client.replicaof("NO", "ONE")
    assert place.events(job_id) == ["queued", "running", "succeeded"]


def test_a_worker_that_an_operator_drains_keeps_what_runs_and_claims_again_when_told(place: Any) -> None:
    worker = place.start_worker(worker_slots=2)
    running = place.submit("wait:go")
    place.until_developing(running)
    (known,) = fleet.list_workers(place.database)
    fleet.drain(place.database, known.id)
    place.until(lambda: "worker_rests" in worker.log, "it was told")
    waiting = place.submit()
    place.release("go")
    place.until_state(JobState.SUCCEEDED, running)
    assert place.job(waiting).state is JobState.QUEUED
    assert worker.exit_code is None
    fleet.undrain(place.database, known.id)
    place.until_state(JobState.SUCCEEDED, waiting)
