"""What a worker holds and in which order, with a developer of the test's own and no process, broker or engine."""

import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from claiming import claim_one
from sqlalchemy import update

from darkroom import fleet, jobs
from darkroom.config import Settings
from darkroom.db import Database, now
from darkroom.fleet import WorkerFacts
from darkroom.jobs import JobClass, JobState, Lines, NewJob
from darkroom.jobs.line import LINE_LAG_CLAIMS
from darkroom.models import Job
from darkroom.params import GenerationParams
from darkroom.storage import Storage
from darkroom_engine import Tally
from darkroom_worker.develop import Held
from darkroom_worker.worker import WHOLE_LINE_SECONDS, Parts, StallLimits, Worker

MODEL = "darkroom-seeded"
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Developer:
    """Develops as the test says."""

    def __init__(self, develop: Callable[[Held], None]) -> None:
        self.develop = develop
        self.tally = Tally()


@pytest.fixture
def make_worker(settings: Settings, database: Database) -> Callable[..., Worker]:
    def make(develop: Callable[[Held], None], *, slots: int) -> Worker:
        facts = WorkerFacts("ours", "host", 1, "cpu", 0, "none", [MODEL], slots, "0")
        developer: Any = Developer(develop)
        return Worker(Parts(settings, facts, database, Storage(settings), developer, StallLimits()))

    return make


@pytest.fixture
def submit(database: Database) -> Callable[[], UUID]:
    values = {"prompt": "a house", "width": 64, "height": 64, "num_inference_steps": 1, "guidance_scale": 1.0}
    params = GenerationParams(sampler="euler", seed=0, **values)

    def submit(job_class: JobClass = JobClass.BULK) -> UUID:
        return jobs.submit(database, NewJob(MODEL, params, job_class, ttl_seconds=3600), owner="ann").id

    return submit


@on_sqlite
def test_a_job_that_came_back_has_its_turn_at_a_worker_that_is_never_idle(
    database: Database, make_worker: Any, submit: Callable[[], UUID]
) -> None:
    ids = [submit() for _ in range(LINE_LAG_CLAIMS + 40)]
    elsewhere = claim_one(database, worker_id="theirs", models=[MODEL], num_held=0, lease_seconds=60, lines=Lines())
    assert elsewhere
    assert elsewhere.job_id == ids[0]
    claimed: list[UUID] = []

    def develop(held: Held) -> None:
        claimed.append(held.claim.job_id)
        jobs.fail(database, held.claim.job_id, attempt=held.claim.attempt, code="x", message="x")
        if len(claimed) == LINE_LAG_CLAIMS + 10:
            jobs.requeue(database, ids[0], reason="the worker drains", attempt=elsewhere.attempt)
            over = time.monotonic() + WHOLE_LINE_SECONDS
            while time.monotonic() <= over:
                pass

    make_worker(develop, slots=1).work_off()

    assert claimed.index(ids[0]) == LINE_LAG_CLAIMS + 10
    assert set(claimed) == set(ids)


@on_sqlite
def test_a_worker_that_claims_its_own_lost_job_again_holds_only_the_new_attempt(
    database: Database, make_worker: Any, submit: Callable[[], UUID]
) -> None:
    job_id = submit()
    attempts: dict[int, Held] = {}
    has_begun, may_end = threading.Event(), threading.Event()

    def develop(held: Held) -> None:
        attempts[held.claim.attempt] = held
        if held.claim.attempt == 1:
            has_begun.set()
            assert may_end.wait(30)
            return
        assert attempts[1].is_lost
        may_end.set()
        first.join(30)
        _let_the_lease_run_out(database)
        worker.beat()
        assert not held.is_lost
        assert jobs.expire_leases(database) == []
        jobs.fail(database, job_id, attempt=2, code="x", message="x")

    worker = make_worker(develop, slots=2)
    first = threading.Thread(target=worker.work_off)
    first.start()
    assert has_begun.wait(30)
    _let_the_lease_run_out(database)
    assert jobs.expire_leases(database) == [(job_id, MODEL)]

    worker.work_off()

    assert sorted(attempts) == [1, 2]
    assert jobs.get(database, job_id).state is JobState.FAILED


@on_sqlite
def test_a_heartbeat_tells_the_rows_of_the_forwards_since_the_one_before(
    database: Database, make_worker: Any, submit: Callable[[], UUID]
) -> None:
    submit()
    told: list[float | None] = []

    def beat(tally: Tally) -> None:
        worker._parts.developer.tally = tally
        worker.beat()
        told.append(fleet.list_workers(database)[0].rows_per_step)

    def develop(held: Held) -> None:
        beat(Tally(num_forwards=10, num_rows=40))
        beat(Tally(num_forwards=12, num_rows=43))
        beat(Tally(num_forwards=12, num_rows=43))  # it decodes, perhaps
        jobs.fail(database, held.claim.job_id, attempt=held.claim.attempt, code="x", message="x")

    worker = make_worker(develop, slots=1)
    worker.work_off()
    beat(Tally(num_forwards=12, num_rows=43))
    assert told == [4.0, 1.5, 1.5, None]


@on_sqlite
def test_bulk_jobs_make_way_for_as_many_interactive_ones(
    database: Database, make_worker: Any, submit: Callable[..., UUID]
) -> None:
    bulk, more_bulk = submit(), submit()
    interactive: list[UUID] = []
    claimed: list[UUID] = []

    def develop(held: Held) -> None:
        claimed.append(held.claim.job_id)
        if held.claim.job_id == bulk:
            assert not worker.work_off(), "a doorbell for bulk must go to another worker"
            interactive.extend(submit(JobClass.INTERACTIVE) for _ in range(2))
            assert worker.work_off()
        elif held.claim.job_id in interactive:
            assert not worker.has_room()
            assert not worker.work_off(), "one interactive job is held for the one slot"
        jobs.fail(database, held.claim.job_id, attempt=1, code="x", message="x")

    worker = make_worker(develop, slots=1)
    worker.work_off()

    assert claimed == [bulk, *interactive, more_bulk]


def _let_the_lease_run_out(database: Database) -> None:
    with database.write() as session:
        session.execute(update(Job).values(lease_expires_at=now(-1)))
