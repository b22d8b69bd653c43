"""A queue to play with: jobs whose cost is a number, workers that are names, and time that moves by an UPDATE."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
from claiming import claim_one
from sqlalchemy import select, update

from darkroom import events, jobs
from darkroom.db import Database, now
from darkroom.fleet import WorkerFacts
from darkroom.jobs import Claim, ImageRecord, JobClass, JobRecord, JobState, Lines, NewJob, Success
from darkroom.models import FINAL_STATES, Job
from darkroom.params import GenerationParams

LEASE_SECONDS = 30.0


def params_of(cost: float = 1, **values: Any) -> GenerationParams:
    """Parameters that cost this many megapixel-steps."""
    values = {"width": 1000, "height": 1000, "num_inference_steps": cost} | values
    return GenerationParams(prompt="a red house", guidance_scale=3.0, sampler="euler", seed=7, **values)


def image_of(job_id: UUID, attempt: int, n: int = 0) -> ImageRecord:
    key, thumb_key = f"jobs/{job_id}/{attempt}/{n}.png", f"jobs/{job_id}/{attempt}/{n}.thumb.webp"
    return ImageRecord(n, key, thumb_key, "image/png", 64, 64, num_bytes=9, seed=7 + n, sha256="0" * 64)


@dataclass
class Queue:
    """The state machine with everything filled in that a test does not care about."""

    database: Database
    held: dict[str, dict[UUID, int]] = field(default_factory=dict)

    def submit(
        self,
        owner: str = "ann",
        *,
        cost: float = 1,
        model: str = "small",
        job_class: JobClass = JobClass.BULK,
        weight: float = 1.0,
        ttl_seconds: float = 3600,
        **values: Any,
    ) -> UUID:
        new = NewJob(model, params_of(cost, **values), job_class, ttl_seconds)
        return jobs.submit(self.database, new, owner=owner, weight=weight).id

    def claim(
        self,
        worker: str = "first",
        *,
        models: tuple[str, ...] = ("small",),
        num_held: int | None = None,
        lines: Lines | None = None,
        whole_line: bool = False,
        job_classes: tuple[JobClass, ...] = tuple(JobClass),
    ) -> Claim | None:
        """Claim for a worker, which is known to hold what it has claimed and not let go of."""
        held = self.held.setdefault(worker, {})
        claim = claim_one(
            self.database,
            worker_id=worker,
            models=models,
            num_held=len(held) if num_held is None else num_held,
            lease_seconds=LEASE_SECONDS,
            lines=lines or Lines(),
            whole_line=whole_line,
            job_classes=job_classes,
        )
        if claim:
            held[claim.job_id] = claim.attempt
        return claim

    def take(self, worker: str = "first", **how: Any) -> Claim:
        """Claim where something must be there to claim."""
        claim = self.claim(worker, **how)
        assert claim
        return claim

    def drop(self, claim: Claim) -> None:
        for held in self.held.values():
            held.pop(claim.job_id, None)

    def succeed(self, claim: Claim) -> None:
        self.drop(claim)
        images = [image_of(claim.job_id, claim.attempt)]
        jobs.succeed(self.database, Success(claim.job_id, claim.attempt, images, timings={"denoise": 1.5}))

    def fail(self, claim: Claim) -> None:
        self.drop(claim)
        jobs.fail(self.database, claim.job_id, attempt=claim.attempt, code="develop-failed", message="no")

    def requeue(self, claim: Claim) -> None:
        self.drop(claim)
        jobs.requeue(self.database, claim.job_id, reason="the worker drains", attempt=claim.attempt)

    def cancel(self, job_id: UUID, owner: str = "ann") -> JobRecord:
        return jobs.cancel(self.database, job_id, owner=owner)

    def beat(self, worker: str = "first", attempts: Mapping[UUID, int] | None = None) -> frozenset[UUID]:
        attempts = self.held[worker] if attempts is None else attempts
        return jobs.heartbeat(self.database, worker_id=worker, attempts=attempts, lease_seconds=LEASE_SECONDS)

    def crash(self, *claims: Claim) -> list[tuple[UUID, str]]:
        """Let the leases of these jobs run out, and sweep."""
        for claim in claims:
            self.drop(claim)
            self.age(claim.job_id, lease_expires_at=1)
        return jobs.expire_leases(self.database)

    def age(self, job_id: UUID, **seconds: float) -> None:
        """Say that these times of a job lie so many seconds in the past."""
        self.set(job_id, **{column: now(-ago) for column, ago in seconds.items()})

    def set(self, job_id: UUID, **values: Any) -> None:
        with self.database.write() as session:
            session.execute(update(Job).where(Job.id == job_id).values(**values))

    def get(self, job_id: UUID) -> JobRecord:
        return jobs.get(self.database, job_id)

    def row(self, job_id: UUID) -> Job:
        """The whole row, with what no reader of jobs is told."""
        with self.database.read() as session:
            return session.scalars(select(Job).where(Job.id == job_id)).one()

    def state(self, job_id: UUID) -> JobState:
        return self.get(job_id).state

    def history(self, job_id: UUID) -> list[str]:
        return [event.type for event in events.read(self.database, job_id)]

    def order(self, *, num: int = 1000, lines: Lines | None = None) -> list[UUID]:
        """Claim until nothing waits; the jobs in the order in which they were claimed."""
        claimed = []
        while len(claimed) < num and (claim := self.claim(lines=lines, num_held=0)):
            claimed.append(claim.job_id)
        return claimed

    def ended(self, state: JobState, owner: str = "ann") -> Claim:
        """A job that was claimed once and has ended in this state."""
        job_id = self.submit(owner, model="ending")
        claim = self.take(models=("ending",))
        assert claim.job_id == job_id
        match state:
            case JobState.SUCCEEDED:
                self.succeed(claim)
            case JobState.FAILED:
                self.fail(claim)
            case JobState.CANCELED:
                self.cancel(job_id, owner)
            case JobState.EXPIRED:
                self.age(job_id, deadline_at=1)
                assert jobs.expire_overdue(self.database) == 1
        self.drop(claim)
        assert self.state(job_id) == state
        return claim


@pytest.fixture
def queue(database: Database) -> Queue:
    return Queue(database)


@pytest.fixture(params=FINAL_STATES)
def final_state(request: pytest.FixtureRequest) -> JobState:
    return JobState(request.param)


def facts_of(worker: str = "first", *, models: tuple[str, ...] = ("small",), slots: int = 4) -> WorkerFacts:
    return WorkerFacts(
        id=worker,
        host="dark",
        pid=1,
        device="cpu",
        device_memory_bytes=2**33,
        fingerprint="cpu/test",
        models=list(models),
        slots=slots,
        version="0",
    )


@pytest.fixture
def nobody() -> UUID:
    """The id of a job that never was."""
    return uuid4()
