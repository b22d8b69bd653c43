"""Many workers at once: one winner each, no deadlock, no lost job."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import psycopg
import pytest
from claiming import claim_one

from darkroom import jobs
from darkroom.db import Database
from darkroom.errors import JobFinished, StaleAttempt
from darkroom.jobs import JobState, Lines
from darkroom.models import LIVE_STATES

WORKERS = 2
THREADS = 10
JOBS = 200
RACERS = 32
# The everyday run is a tenth of the whole: TEST_RACES=10000 runs that.
RACES = int(os.environ.get("TEST_RACES", "1000"))
SECONDS = 60


@pytest.fixture
def wide(database_url: str) -> Iterator[Database]:
    """A database with a connection for every racer."""
    database = Database(database_url, pool_size=RACERS)
    yield database
    database.dispose()


def together(num: int, work: Callable[[int], object]) -> list[object]:
    """Do the work in so many threads, which begin at once; raises what any of them raised."""
    start = threading.Barrier(num)

    def one(n: int) -> object:
        start.wait(SECONDS)
        return work(n)

    with ThreadPoolExecutor(num) as pool:
        return [future.result() for future in [pool.submit(one, n) for n in range(num)]]


def test_each_of_many_jobs_is_claimed_once(queue, wide: Database) -> None:
    submitted = [queue.submit(owner) for _ in range(JOBS // 4) for owner in ("ann", "bob", "carl", "dora")]
    memory = [Lines() for _ in range(WORKERS)]

    def work(n: int) -> list[UUID]:
        worker = n % WORKERS
        claimed = []
        while claim := claim_one(
            wide,
            worker_id=f"worker-{worker}",
            models=["small"],
            num_held=len(claimed),
            lease_seconds=30,
            lines=memory[worker],
        ):
            assert claim.attempt == 1
            claimed.append(claim.job_id)
        return claimed

    claimed = Counter(job_id for ids in together(WORKERS * THREADS, work) for job_id in ids)  # type: ignore[attr-defined]
    assert claimed == Counter(submitted)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_workers_that_race_for_one_job_after_another_win_each_once(queue, wide: Database) -> None:
    submitted: list[UUID] = []
    wins: list[list[UUID]] = [[] for _ in range(RACERS)]
    barrier = threading.Barrier(RACERS, action=lambda: submitted.append(queue.submit()))

    def race(n: int) -> None:
        for _ in range(20):
            barrier.wait(SECONDS)
            claim = claim_one(
                wide, worker_id=f"worker-{n}", models=["small"], num_held=0, lease_seconds=3600, lines=Lines()
            )
            if claim:
                wins[n].append(claim.job_id)

    together(RACERS, race)
    assert Counter(job_id for each in wins for job_id in each) == Counter(submitted)


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """What is sent to PostgreSQL meanwhile past SQLAlchemy, to the letter."""
    sent: list[tuple[str, Any]] = []

    def execute(driver: Any, statement: Any, parameters: Any = None, **more: Any) -> Any:
        sent.append((statement, parameters))
        return send(driver, statement, parameters, **more)

    send = psycopg.Connection.execute
    psycopg.Connection.execute = execute  # type: ignore[method-assign]
    yield sent
    psycopg.Connection.execute = send  # type: ignore[method-assign]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_every_race_for_one_job_has_one_winner(queue, database_url: str) -> None:
    """The claim's own statement, without what Python does around it: only so do 32 connections race in earnest."""
    job_id = queue.submit()
    with statements() as sent:
        queue.take()
    ((claim, parameters),) = [each for each in sent if "UPDATE jobs SET state" in each[0]]
    url = database_url.replace("+psycopg", "")
    wins: list[list[int]] = [[] for _ in range(RACERS)]

    def race(n: int) -> None:
        with psycopg.connect(url) as connection:
            for number in range(RACES):
                barrier.wait(SECONDS)
                if connection.execute(claim.encode(), parameters).fetchone():
                    wins[n].append(number)
                connection.commit()

    with psycopg.connect(url, autocommit=True) as starter:
        again = b"UPDATE jobs SET state = 'queued', lease_expires_at = NULL WHERE id = %s"
        barrier = threading.Barrier(RACERS, action=lambda: starter.execute(again, [job_id]))
        together(RACERS, race)
    assert sorted(number for each in wins for number in each) == list(range(RACES))
    assert queue.row(job_id).attempt == RACES + 1


def test_jobs_that_one_owner_submits_at_once_queue_one_behind_the_other(queue, wide: Database) -> None:
    """Two with one place would have two turns where others have one."""
    submitted = together(8, lambda _: [replace(queue, database=wide).submit("ann", cost=2) for _ in range(3)])
    tags = sorted(queue.row(job_id).start_tag for ids in submitted for job_id in ids)  # type: ignore[attr-defined]
    assert tags == [2.0 * n for n in range(24)]


@pytest.mark.parametrize("rival", ["succeed", "fail", "requeue", "cancel", "sweep"])
def test_one_of_two_who_end_a_job_wins(queue, wide: Database, rival: str) -> None:
    """Whatever happens to a job while its worker finishes it, one of the two has happened, and wholly."""
    for _ in range(10):
        end_at_once(queue, wide, rival)


def end_at_once(queue, wide: Database, rival: str) -> None:
    queue.submit()
    claim = queue.take()
    rivals: dict[str, Callable[[], object]] = {
        "succeed": lambda: queue.succeed(claim),
        "fail": lambda: queue.fail(claim),
        "requeue": lambda: queue.requeue(claim),
        "cancel": lambda: queue.cancel(claim.job_id),
        "sweep": lambda: jobs.expire_leases(wide) or refuse(),
    }
    queue.age(claim.job_id, lease_expires_at=1)
    both = [rivals["succeed"], rivals[rival]]
    done = together(2, lambda n: did(both[n]))
    assert sum(map(bool, done)) == 1
    record = queue.get(claim.job_id)
    assert bool(record.images) == (record.state == JobState.SUCCEEDED)
    assert (record.state == JobState.SUCCEEDED) == (done[0] or rival == "succeed")
    queue.drop(claim)
    if record.state == JobState.QUEUED:
        queue.cancel(claim.job_id)


def refuse() -> None:
    raise StaleAttempt(UUID(int=0), 0)


def did(write: Callable[[], object]) -> bool:
    try:
        write()
    except (StaleAttempt, JobFinished):
        return False
    return True


def test_two_sweeps_that_promote_at_once_do_not_wait_for_each_other(queue, wide: Database) -> None:
    """Each takes a lock for every owner; in different orders they would wait for ever, and one would be shot."""
    owners = [f"owner-{n}" for n in range(30)]
    for turn, order in enumerate((owners, owners[::-1], owners, owners[::-1])):
        for n, owner in enumerate(order):
            queue.age(queue.submit(owner), queued_at=100_000 - 1000 * turn - n)
    promoted = together(4, lambda _: sum(iter(lambda: jobs.promote_aged_bulk(wide, age_seconds=600), 0)))
    assert sum(promoted) >= len(owners) * 4  # type: ignore[arg-type]
    tags = [queue.row(job_id).start_tag for job_id in queue.order()]
    assert tags == sorted(tags)
    assert len(tags) == len(owners) * 4


def test_everything_at_once_ends_every_job_once(queue, wide: Database) -> None:
    """Owners, workers and sweeps do all that they may for a while; none of them is refused by the database itself."""
    submitted = [queue.submit(f"owner-{n % 3}") for n in range(60)]
    memory = Lines()

    def worker(n: int) -> None:
        while claim := claim_one(
            wide,
            worker_id="first",
            models=["small"],
            num_held=n,
            lease_seconds=30,
            lines=memory,
            whole_line=True,
        ):
            jobs.heartbeat(wide, worker_id="first", attempts={claim.job_id: claim.attempt}, lease_seconds=30)
            lost = claim.job_id.int % 5 == 0 and claim.attempt == 1
            if lost:
                queue.age(claim.job_id, lease_expires_at=1)
            else:
                did(lambda claim=claim: queue.succeed(claim))  # type: ignore[misc]

    def anybody(n: int) -> None:
        if n < 4:
            worker(n)
        elif n == 4:
            for job_id in submitted[::7]:
                did(lambda job_id=job_id: jobs.cancel(wide, job_id, owner=queue.get(job_id).owner))  # type: ignore[misc]
        else:
            for _ in range(15):
                jobs.expire_leases(wide)
                jobs.expire_overdue(wide)
                jobs.promote_aged_bulk(wide, age_seconds=0.001)

    together(7, anybody)
    while {queue.state(job_id) for job_id in submitted} & set(LIVE_STATES):
        jobs.expire_leases(wide)
        worker(0)
    states = Counter(queue.state(job_id) for job_id in submitted)
    assert set(states) <= {JobState.SUCCEEDED, JobState.CANCELED}
    for job_id in submitted:
        history = queue.history(job_id)
        assert history[-1] == queue.state(job_id)
        assert sum(event in {"succeeded", "canceled"} for event in history) == 1
