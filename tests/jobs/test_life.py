"""Any order of anything that may happen to jobs, against a model of a page: the whole table agrees after every step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import func, select

from darkroom import jobs
from darkroom.errors import JobFinished, StaleAttempt
from darkroom.jobs import Claim, JobClass, JobState
from darkroom.jobs.sweeping import MAX_CRASHES, SUSPECT_SHARED_CRASHES
from darkroom.models import LIVE_STATES, Image, Job

WORKERS = st.sampled_from(["first", "second"])
ANY = st.integers(0, 99)


@dataclass
class Expected:
    """What the table must say of a job, and what only the model knows."""

    place: tuple[int, float, UUID]
    state: JobState = JobState.QUEUED
    attempt: int = 0
    crashes: int = 0
    shared_crashes: int = 0
    worker: str | None = None
    is_alone: bool = False
    num_images: int = 0
    is_overdue: bool = field(default=False)

    @property
    def is_solo(self) -> bool:
        return self.shared_crashes >= SUSPECT_SHARED_CRASHES

    def end(self, state: JobState) -> None:
        self.state = state

    def put_back(self) -> None:
        self.state, self.worker, self.is_alone, self.is_overdue = JobState.QUEUED, None, False, False


class Life(RuleBasedStateMachine):
    """Two workers, two owners, sweeps, and hands that write too late."""

    def __init__(self, queue) -> None:
        super().__init__()
        self.queue = queue
        self.model = uuid4().hex
        self.jobs: dict[UUID, Expected] = {}
        self.claims: list[tuple[str, Claim]] = []

    @initialize()
    def begin(self) -> None:
        for owner in ("ann", "bob"):
            self.submit(owner, 2, JobClass.BULK)

    @rule(owner=st.sampled_from(["ann", "bob"]), cost=st.integers(1, 9), job_class=st.sampled_from(JobClass))
    def submit(self, owner: str, cost: int, job_class: JobClass) -> None:
        job_id = self.queue.submit(owner, cost=cost, model=self.model, job_class=job_class)
        self.jobs[job_id] = Expected((job_class, self.queue.row(job_id).start_tag, job_id))

    @rule(worker=WORKERS)
    def claim(self, worker: str) -> None:
        company = self.running(worker)
        waiting = [job for job in self.jobs.values() if job.state == JobState.QUEUED and not (company and job.is_solo)]
        claim = self.queue.claim(worker, models=(self.model,), num_held=len(company))
        assert (claim and claim.job_id) == (min(job.place for job in waiting)[-1] if waiting else None)
        if not claim:
            return
        job = self.jobs[claim.job_id]
        job.state, job.worker, job.is_alone = JobState.RUNNING, worker, not company
        job.attempt += 1
        assert claim.attempt == job.attempt
        for other in company:
            other.is_alone = False
        self.claims.append((worker, claim))

    def running(self, worker: str) -> list[Expected]:
        return [job for job in self.jobs.values() if job.state == JobState.RUNNING and job.worker == worker]

    def holds(self, claim: Claim) -> bool:
        job = self.jobs[claim.job_id]
        return job.state == JobState.RUNNING and job.attempt == claim.attempt

    @rule(worker=WORKERS)
    def heartbeat(self, worker: str) -> None:
        """A worker names every job that it ever had: the latest attempt of each."""
        attempts = {claim.job_id: claim.attempt for who, claim in self.claims if who == worker}
        mine = {
            job_id
            for job_id, attempt in attempts.items()
            if self.jobs[job_id].state == JobState.RUNNING and self.jobs[job_id].attempt == attempt
        }
        assert self.queue.beat(worker, attempts) == mine
        for job_id in mine:
            self.jobs[job_id].is_overdue = False
            self.jobs[job_id].is_alone = len(self.running(worker)) == 1

    @rule(which=ANY)
    def run_out_of_lease(self, which: int) -> None:
        if running := [job_id for job_id, job in self.jobs.items() if job.state == JobState.RUNNING]:
            job_id = running[which % len(running)]
            self.queue.age(job_id, lease_expires_at=1)
            self.jobs[job_id].is_overdue = True

    @rule()
    def sweep(self) -> None:
        waiting = set()
        for job_id, job in self.jobs.items():
            if job.state == JobState.RUNNING and job.is_overdue:
                job.crashes += job.is_alone
                job.shared_crashes += not job.is_alone
                if job.crashes >= MAX_CRASHES:
                    job.end(JobState.FAILED)
                else:
                    job.put_back()
                    waiting.add((job_id, self.model))
        assert set(jobs.expire_leases(self.queue.database)) == waiting

    @rule(which=ANY, how=st.sampled_from(["succeed", "fail", "requeue"]))
    def write(self, which: int, how: str) -> None:
        """By any attempt that there ever was, twice with luck."""
        if not self.claims:
            return
        _, claim = self.claims[which % len(self.claims)]
        holds = self.holds(claim)
        assert done(lambda: getattr(self.queue, how)(claim)) == holds
        job = self.jobs[claim.job_id]
        if holds and how == "requeue":
            job.put_back()
        elif holds:
            job.end(JobState.SUCCEEDED if how == "succeed" else JobState.FAILED)
            job.num_images = int(how == "succeed")

    @rule(which=ANY)
    def cancel(self, which: int) -> None:
        job_id = list(self.jobs)[which % len(self.jobs)]
        job = self.jobs[job_id]
        owner = self.queue.get(job_id).owner
        may = job.state in (*LIVE_STATES, JobState.CANCELED)
        assert done(lambda: self.queue.cancel(job_id, owner)) == may
        if job.state in LIVE_STATES:
            job.end(JobState.CANCELED)

    @rule(which=ANY)
    def reach_the_deadline(self, which: int) -> None:
        job_id = list(self.jobs)[which % len(self.jobs)]
        self.queue.age(job_id, deadline_at=1)
        is_live = self.jobs[job_id].state in LIVE_STATES
        assert jobs.expire_overdue(self.queue.database) == is_live
        if is_live:
            self.jobs[job_id].end(JobState.EXPIRED)

    @invariant()
    def table_agrees(self) -> None:
        num_images = select(func.count()).where(Image.job_id == Job.id).correlate(Job).scalar_subquery()
        counts = (Job.state, Job.attempt, Job.crashes, Job.shared_crashes, Job.is_solo)
        with self.queue.database.read() as session:
            rows = session.execute(select(Job.id, *counts, num_images).where(Job.model == self.model)).all()
        expected = {
            job_id: (job.state, job.attempt, job.crashes, job.shared_crashes, job.is_solo, job.num_images)
            for job_id, job in self.jobs.items()
        }
        assert {row[0]: tuple(row[1:]) for row in rows} == expected

    def teardown(self) -> None:
        for job_id, job in self.jobs.items():
            history = self.queue.history(job_id)
            assert len([line for line in history if line not in {"queued", "running", "requeued"}]) == (
                job.state not in LIVE_STATES
            )
            if job.state in LIVE_STATES:
                self.queue.cancel(job_id, self.queue.get(job_id).owner)


def done(write: Callable[[], object]) -> bool:
    try:
        write()
    except (StaleAttempt, JobFinished):
        return False
    return True


def test_whatever_happens_the_table_says_what_the_model_says(queue) -> None:
    run_state_machine_as_test(
        lambda: Life(queue),
        settings=settings(
            max_examples=15,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
