"""A doorbell may be lost, doubled or forged without harm; a full worker leaves doorbells to idle ones."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import quantiles
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import Celery
from kombu import Queue

from darkroom.dispatch import KEY_PREFIX, TASK, Doorbell, celery_app, queue_name
from darkroom.jobs import JobState

MODEL = "darkroom-seeded"
LIST = KEY_PREFIX + queue_name(MODEL)


@pytest.fixture
def doorbell(place: Any) -> Iterator[Doorbell]:
    doorbell = Doorbell(place.settings)
    yield doorbell
    doorbell.close()


@pytest.fixture
def until_listening(place: Any, valkey: Any) -> Callable[[int], None]:
    """Wait until so many workers wait for a doorbell inside Redis."""

    def until_listening(num_workers: int) -> None:
        with valkey.client() as client:

            def are() -> bool:
                return ["b" in each["flags"] for each in client.client_list()].count(True) == num_workers  # blocked

            place.until(are, f"{num_workers} workers listen")

    return until_listening


def all_ran_once(place: Any, job_ids: list[UUID]) -> None:
    for job_id in job_ids:
        assert place.events(job_id) == ["queued", "running", "succeeded"]


def test_a_doorbell_wakes_a_worker_that_does_not_poll(
    place: Any, doorbell: Doorbell, until_listening: Callable[[int], None]
) -> None:
    place.start_worker(poll_seconds=0)
    until_listening(1)
    job_id = place.submit()
    doorbell.ring(job_id, model=MODEL)
    place.until_state(JobState.SUCCEEDED, job_id)


def test_nothing_of_a_doorbell_is_left_in_redis_once_it_is_heard(
    place: Any, doorbell: Doorbell, until_listening: Callable[[int], None], valkey: Any
) -> None:
    place.start_worker(poll_seconds=0)
    until_listening(1)
    with valkey.client() as client:
        client.config_resetstat()
        job_id = place.submit()
        doorbell.ring(job_id, model=MODEL)
        place.until_state(JobState.SUCCEEDED, job_id)
        assert {"cmdstat_zadd", "cmdstat_hset", "cmdstat_zrem", "cmdstat_hdel"}.isdisjoint(client.info("commandstats"))
        assert not list(client.scan_iter("*unacked*"))


def test_a_job_runs_once_whatever_happens_to_its_doorbell(place: Any, doorbell: Doorbell, valkey: Any) -> None:
    """Dropped, flushed, doubled a hundred times, forged: one worker bears all of it, on the poll."""
    worker = place.start_worker()
    app = celery_app(place.settings)

    dropped = place.submit()
    place.until_state(JobState.SUCCEEDED, dropped)  # nobody rang

    with valkey.client() as client:
        held = place.submit("wait:flushed")
        place.until_developing(held)
        waiting = [place.submit() for _ in range(5)]
        for job_id in waiting:
            doorbell.ring(job_id, model=MODEL)
        client.flushall()
        place.release("flushed")
        place.until_state(JobState.SUCCEEDED, held, *waiting)

    doubled = place.submit()
    for _ in range(100):
        doorbell.ring(doubled, model=MODEL)
    place.until_state(JobState.SUCCEEDED, doubled)

    _forge(app)
    forged = place.submit()
    place.until_state(JobState.SUCCEEDED, forged)
    app.close()

    all_ran_once(place, [dropped, held, *waiting, doubled, forged])
    assert worker.exit_code is None


def _forge(app: Celery) -> None:
    queue = Queue(queue_name(MODEL))
    for task, args in (
        (TASK, [str(uuid4())]),
        (TASK, ["no id at all"]),
        (TASK, [{"a": 1}, "too", "many", "arguments"]),
        ("os.system", ["true"]),
    ):
        app.send_task(task, args=args, queue=queue, retry=False, ignore_result=True)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_is_no_message_at_all_does_not_end_a_worker(
    place: Any, doorbell: Doorbell, valkey: Any, until_listening: Callable[[int], None]
) -> None:
    worker = place.start_worker(poll_seconds=0)
    until_listening(1)
    with valkey.client() as client:
        for rubbish in ("rubbish", "{}", "[]", "7", '{"properties": {}}', '{"body": 1, "properties": 2}'):
            client.lpush(LIST, rubbish)
        place.until(lambda: client.llen(LIST) == 0, "the rubbish was taken")
    job_id = place.submit()
    doorbell.ring(job_id, model=MODEL)
    place.until_state(JobState.SUCCEEDED, job_id)
    assert worker.exit_code is None


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_an_idle_worker_hears_every_doorbell_beside_a_full_one(
    place: Any, doorbell: Doorbell, until_listening: Callable[[int], None]
) -> None:
    full = place.start_worker(poll_seconds=0, worker_slots=2)
    until_listening(1)
    _fill(place, doorbell, num_jobs=2)
    idle = place.start_worker(poll_seconds=0, worker_slots=4)
    until_listening(1)

    waits = [_seconds_until_claimed(place, doorbell) for _ in range(60)]
    p50, p99 = (quantiles(waits, n=100)[n - 1] for n in (50, 99))
    print(f"submit to claim beside a full worker, ms: p50 {p50 * 1000:.0f}, p99 {p99 * 1000:.0f}")
    assert len(place.journal("began", worker=idle)) == 60
    assert len(place.journal("began", worker=full)) == 2
    assert p50 < 0.25  # the goal for p99 is the benchmark's to keep; no poll would be this quick


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_doorbell_that_meets_a_worker_just_filled_is_handed_on(
    place: Any, doorbell: Doorbell, until_listening: Callable[[int], None]
) -> None:
    """A worker that became full still waits inside BRPOP for up to a second, and gets the next doorbell."""
    full = place.start_worker(poll_seconds=0, worker_slots=1)
    until_listening(1)
    held = place.submit("wait:never")
    doorbell.ring(held, model=MODEL)
    place.until_developing(held)
    late = place.submit("a late guest")
    doorbell.ring(late, model=MODEL)
    idle = place.start_worker(poll_seconds=0)
    place.until_state(JobState.SUCCEEDED, late)
    assert place.journal("began", worker=full) == ["wait:never"]
    assert place.journal("began", worker=idle) == ["a late guest"]


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_worker_that_becomes_free_hears_doorbells_at_once(
    place: Any, doorbell: Doorbell, until_listening: Callable[[int], None]
) -> None:
    place.start_worker(poll_seconds=0, worker_slots=1)
    until_listening(1)
    waits = []
    for n in range(5):
        held = place.submit(f"wait:{n}")
        doorbell.ring(held, model=MODEL)
        place.until_developing(held)
        until_listening(0)
        place.release(f"{n}")
        place.until_state(JobState.SUCCEEDED, held)
        began = time.monotonic()
        until_listening(1)
        waits.append(time.monotonic() - began)
    # Celery's loop comes round once a second by itself: four of five below a quarter of that is no chance.
    assert sorted(waits)[3] < 0.25


def _fill(place: Any, doorbell: Doorbell, *, num_jobs: int) -> None:
    held = [place.submit(f"wait:never-{n}") for n in range(num_jobs)]
    doorbell.ring(held[0], model=MODEL)
    place.until_developing(*held)


def _seconds_until_claimed(place: Any, doorbell: Doorbell) -> float:
    began = time.monotonic()
    job_id = place.submit(num_inference_steps=1)
    doorbell.ring(job_id, model=MODEL)
    place.until(lambda: place.job(job_id).state is not JobState.QUEUED, "it is claimed")
    wait = time.monotonic() - began
    place.until_state(JobState.SUCCEEDED, job_id)
    return wait


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
def test_two_workers_of_ten_slots_claim_200_jobs_once_each(place: Any) -> None:
    # The default lease: beside 20 writers a heartbeat may wait its turn on SQLite.
    workers = [place.start_worker(worker_slots=10, lease_seconds=30.0, heartbeat_seconds=5.0) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        job_ids = list(pool.map(lambda _: place.submit(num_inference_steps=2), range(200)))
    place.until_state(JobState.SUCCEEDED, *job_ids, seconds=60)
    all_ran_once(place, job_ids)
    assert len(place.journal("developed")) == 200
    assert all(place.journal("developed", worker=worker) for worker in workers)
