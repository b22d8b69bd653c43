"""What went on lately and what is kept, in figures for operators. Decides nothing, and shows no words of anybody's job.

Every call costs about the same however many jobs there are: counts read one index, and everything else a bounded number
of rows (tests/jobs/test_statistics.py, and docs/benchmarks.md for a million).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import groupby
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    ColumnElement,
    Double,
    FromClause,
    Integer,
    ScalarSelect,
    Select,
    and_,
    bindparam,
    func,
    literal,
    select,
)
from sqlalchemy.orm import Session

from darkroom.db import Database, UtcDateTime, later, now, seconds_between
from darkroom.models import QUEUED, RUNNING, Image, Job, JobClass, JobState, Upload

# A line is counted so far and no further.
MOST_QUEUED = 100_000
# How long jobs waited is told from a few of each part of a span.
PARTS = 5
JOBS_OF_A_PART = 40
# Failures are grouped among the latest of each final state, and each group names its latest jobs.
MOST_FAILURES = 1000
JOBS_OF_A_FAILURE = 5
MOST_RUNNING = 1000

FAILED_STATES = (JobState.FAILED, JobState.EXPIRED)
NUMBER = re.compile(r"\d+")
EXPIRED = "expired"


@dataclass(frozen=True)
class Span:
    """One of several equal spans of time: how many jobs ended in it, and how long those that succeeded had waited.

    The last one has only begun. Waits are of at most PARTS * JOBS_OF_A_PART jobs, and None where none succeeded.
    """

    begins_at: datetime
    seconds: float
    num_succeeded: int
    num_failed: int
    median_wait_seconds: float | None
    p95_wait_seconds: float | None


@dataclass(frozen=True)
class Depth:
    """What waits and runs of one class; of what waits, no more than MOST_QUEUED is counted."""

    job_class: JobClass
    num_queued: int
    num_running: int
    oldest_seconds: float | None

    @property
    def is_capped(self) -> bool:
        """Whether there may be more than were counted."""
        return self.num_queued == MOST_QUEUED


@dataclass(frozen=True)
class RunningJob:
    """A job that a worker has, without what it asks for."""

    id: UUID
    owner: str
    model: str
    worker_id: str | None
    attempt: int
    seconds: float


@dataclass(frozen=True)
class Failure:
    """Jobs that ended badly for one reason, and the latest of them. Messages that differ in numbers are one reason."""

    code: str
    message: str
    num_jobs: int
    latest_at: datetime
    job_ids: tuple[UUID, ...]
    models: tuple[str, ...]


@dataclass(frozen=True)
class Stored:
    """What is kept: pictures without their thumbnails and walks, uploads, and since when a succeeded job is kept."""

    num_images: int
    image_bytes: int
    num_uploads: int
    upload_bytes: int
    oldest_at: datetime | None


def latest_spans(database: Database, *, num: int, seconds: int) -> list[Span]:
    """Read the latest spans of so many seconds, oldest first. They begin at whole multiples of their length."""
    with database.read() as session:
        clock: datetime = session.execute(select(now())).scalar_one()
        first = int(clock.timestamp()) // seconds * seconds - seconds * (num - 1)
        begins_at = datetime.fromtimestamp(first, UTC)
        counts = session.execute(COUNTS, {"first": begins_at, "seconds": seconds, "num": num}).all()
        parts = {"first": begins_at, "seconds": seconds / PARTS, "num": num * PARTS}
        found = session.execute(_waits(is_sqlite=database.is_sqlite), parts).all()
    waits: list[list[float]] = [[] for _ in range(num)]
    for n, some in found:
        waits[n // PARTS] += some or []
    return [
        Span(
            begins_at + timedelta(seconds=seconds * n),
            seconds,
            num_succeeded,
            num_failed,
            median_wait_seconds=percentile(waits[n], 0.5),
            p95_wait_seconds=percentile(waits[n], 0.95),
        )
        for n, num_succeeded, num_failed in sorted(counts)
    ]


def _spans() -> FromClause:
    """`num` spans of `seconds`, counted from 0, one after the other from `first` on."""
    count = select(literal(0).label("n")).cte("count", recursive=True)
    count = count.union_all(select(count.c.n + 1).where(count.c.n + 1 < bindparam("num", type_=Integer())))
    first, seconds = bindparam("first", type_=UtcDateTime()), bindparam("seconds", type_=Double[float]())
    begins_at, ends_at = later(first, count.c.n * seconds), later(first, (count.c.n + 1) * seconds)
    return select(count.c.n, begins_at.label("begins_at"), ends_at.label("ends_at")).cte("span")


def _ended(state: JobState, span: FromClause) -> ColumnElement[bool]:
    """Follows ix_jobs_retention, one state at a time."""
    return and_(Job.state == state, Job.finished_at >= span.c.begins_at, Job.finished_at < span.c.ends_at)


def _counts() -> Select[int, int, int]:
    span = _spans()

    def num(state: JobState) -> ScalarSelect[int]:
        return select(func.count()).where(_ended(state, span)).scalar_subquery()

    failed = num(JobState.FAILED) + num(JobState.EXPIRED)
    return select(span.c.n, num(JobState.SUCCEEDED), failed)


@cache
def _waits(*, is_sqlite: bool) -> Select[int, list[float] | None]:
    """How long the first jobs of each span that succeeded there had waited."""
    span = _spans()
    wait = seconds_between(Job.started_at, Job.created_at)
    some = select(wait.label("seconds")).where(_ended(JobState.SUCCEEDED, span)).order_by(Job.finished_at)
    waits = some.limit(JOBS_OF_A_PART).correlate(span).subquery()
    gather = func.json_group_array if is_sqlite else func.json_agg  # dialect
    return select(span.c.n, select(gather(waits.c.seconds, type_=JSON)).scalar_subquery())


COUNTS = _counts()


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which so great a share (0 to 1) of them lies; None of none."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else None


def depths(database: Database) -> list[Depth]:
    """Read how many jobs of each class wait and run, and for how long the oldest has waited."""
    with database.read() as session:
        held = select(Job.job_class, func.count()).where(RUNNING).group_by(Job.job_class)
        running = {job_class: num for job_class, num in session.execute(held)}
        return [_depth(session, job_class, running.get(job_class, 0)) for job_class in JobClass]


def _depth(session: Session, job_class: JobClass, num_running: int) -> Depth:
    # Both follow ix_jobs_aging.
    line = and_(QUEUED, Job.job_class == job_class)
    waiting = select(Job.queued_at).where(line).limit(MOST_QUEUED).subquery()
    num_queued = session.scalar(select(func.count()).select_from(waiting)) or 0
    age = select(seconds_between(now(), Job.queued_at)).where(line).order_by(Job.queued_at).limit(1)
    oldest = session.scalar(age)
    return Depth(job_class, num_queued, num_running, None if oldest is None else max(0.0, oldest))


def running(database: Database) -> list[RunningJob]:
    """Read who has what, by worker; MOST_RUNNING at most."""
    age = seconds_between(now(), Job.started_at)
    query = select(Job.id, Job.owner, Job.model, Job.worker_id, Job.attempt, age).where(RUNNING)
    with database.read() as session:
        return [RunningJob(*row) for row in session.execute(query.order_by(Job.worker_id).limit(MOST_RUNNING))]


def failures(database: Database, *, within_seconds: float) -> list[Failure]:
    """Read why jobs ended badly lately, the most frequent reason first: of the latest MOST_FAILURES of each state."""
    columns = select(Job.id, Job.model, Job.error_code, Job.error_message, Job.finished_at)
    with database.read() as session:
        rows = [
            row
            for state in FAILED_STATES
            for row in session.execute(
                columns.where(Job.state == state, Job.finished_at > now(-within_seconds))
                .order_by(Job.finished_at.desc())
                .limit(MOST_FAILURES)
            )
        ]
    groups = [list(group) for _, group in groupby(sorted(rows, key=_reason), key=_reason)]
    found = [_failure(sorted(group, key=lambda row: row.finished_at, reverse=True)) for group in groups]
    return sorted(found, key=lambda failure: (-failure.num_jobs, -failure.latest_at.timestamp()))


def _reason(row: Any) -> tuple[str, str]:
    return row.error_code or EXPIRED, NUMBER.sub("#", row.error_message or "")


def _failure(rows: Sequence[Any]) -> Failure:
    latest = rows[0]
    return Failure(
        code=latest.error_code or EXPIRED,
        message=latest.error_message or "",
        num_jobs=len(rows),
        latest_at=latest.finished_at,
        job_ids=tuple(row.id for row in rows[:JOBS_OF_A_FAILURE]),
        models=tuple(sorted({row.model for row in rows})),
    )


def stored(database: Database) -> Stored:
    """Add up what is kept."""
    pictures = select(func.count(), func.coalesce(func.sum(Image.num_bytes), 0)).select_from(Image)
    uploads = select(func.count(), func.coalesce(func.sum(Upload.num_bytes), 0)).select_from(Upload)
    oldest = select(Job.finished_at).where(Job.state == JobState.SUCCEEDED).order_by(Job.finished_at).limit(1)
    with database.read() as session:
        num_images, image_bytes = session.execute(pictures).one()
        num_uploads, upload_bytes = session.execute(uploads).one()
        return Stored(num_images, int(image_bytes), num_uploads, int(upload_bytes), session.scalar(oldest))
