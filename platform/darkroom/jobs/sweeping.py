"""What time does to jobs: leases, deadlines, age, retention. Idempotent, guarded in SQL, run by every process."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import structlog
from sqlalchemy import and_, case, delete, select, tuple_, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from darkroom.db import Database, now
from darkroom.jobs.ending import move, put_back
from darkroom.jobs.inputs import is_needed
from darkroom.jobs.records import Ended, ended_record
from darkroom.jobs.submitting import start_tag_of
from darkroom.models import FINAL_STATES, LIVE, QUEUED, RUNNING, UNFINISHED, Batch, Image, Job, JobClass, JobState

logger = structlog.get_logger(__name__)

MAX_CRASHES = 3
# From this many shared crashes on, a job is a suspect and runs alone.
SUSPECT_SHARED_CRASHES = 2
SWEEP_BATCH = 100


def expire_leases(database: Database) -> list[tuple[UUID, str]]:
    """Take every job whose lease ran out from its worker. Returns (job, model) of those that wait again.

    A crash in company makes a suspect of the job, a crash alone counts against it, and MAX_CRASHES of these end it.
    """
    waiting = []
    overdue = (
        select(Job.id, Job.model, Job.attempt, Job.is_alone, Job.crashes, Job.shared_crashes)
        .where(RUNNING, Job.lease_expires_at < now())
        .order_by(Job.lease_expires_at)
        .limit(SWEEP_BATCH)
        .with_for_update(skip_locked=True)
    )
    with database.write() as session:
        for job_id, model, attempt, is_alone, crashes, shared_crashes in session.execute(overdue).all():
            guard = and_(RUNNING, Job.id == job_id, Job.attempt == attempt, Job.lease_expires_at < now())
            crash = Crash("the worker was lost", attempt, is_alone, crashes, shared_crashes)
            if _take_back(session, guard, crash):
                waiting.append((job_id, model))
    return waiting


def report_crash(database: Database, attempts: Mapping[UUID, int], *, reason: str) -> None:
    """Take from a worker, which asks for it, the jobs (job -> attempt) that an engine died with.

    They count as those whose lease runs out do. Jobs that are somebody else's by now are left alone.
    """
    if not attempts:
        return
    held = (
        select(Job.id, Job.attempt, Job.crashes, Job.shared_crashes)
        .where(RUNNING, tuple_(Job.id, Job.attempt).in_(list(attempts.items())))
        .order_by(Job.id)
        .with_for_update()
    )
    with database.write() as session:
        for job_id, attempt, crashes, shared_crashes in session.execute(held).all():
            guard = and_(RUNNING, Job.id == job_id, Job.attempt == attempt)
            _take_back(session, guard, Crash(reason, attempt, len(attempts) == 1, crashes, shared_crashes))


@dataclass(frozen=True)
class Crash:
    """What took a job from its worker, and how often that had happened before."""

    reason: str
    attempt: int
    is_alone: bool
    crashes: int
    shared_crashes: int


def _take_back(session: Session, guard: ColumnElement[bool], crash: Crash) -> bool:
    """Count a crash, and say whether the job waits again."""
    if crash.is_alone and crash.crashes + 1 >= MAX_CRASHES:
        message = f"{crash.reason}; that happened {MAX_CRASHES} times while this job ran alone"
        payload = {"attempt": crash.attempt, "code": "worker-lost", "message": message}
        failed = move(
            session,
            guard,
            JobState.FAILED,
            payload,
            crashes=crash.crashes + 1,
            error_code="worker-lost",
            error_message=message,
            cleanup_at=now(),
        )
        if failed:
            logger.warning("job_failed", job_id=str(failed.id), attempt=failed.attempt, code="worker-lost")
        return False
    shared_crashes = crash.shared_crashes + (not crash.is_alone)
    counts = {
        "crashes": crash.crashes + crash.is_alone,
        "shared_crashes": shared_crashes,
        "is_solo": shared_crashes >= SUSPECT_SHARED_CRASHES,
        "queued_at": now(),  # a suspect's wait for an empty worker begins
    }
    return put_back(session, guard, crash.reason, **counts)


def expire_overdue(database: Database) -> int:
    """End the live jobs whose deadline has passed."""
    overdue = (
        select(Job.id)
        .where(UNFINISHED, Job.deadline_at < now())
        .order_by(Job.deadline_at)
        .limit(SWEEP_BATCH)
        .with_for_update(skip_locked=True)
    )
    with database.write() as session:
        ids = session.scalars(overdue).all()
        for job_id in ids:
            guard = and_(LIVE, Job.id == job_id, Job.deadline_at < now())
            if move(session, guard, JobState.EXPIRED, {}, cleanup_at=now()):
                logger.info("job_expired", job_id=str(job_id))
    return len(ids)


def promote_aged_bulk(database: Database, *, age_seconds: float) -> int:
    """Move the bulk jobs that have waited too long into the interactive line, each at a place it could get today."""
    aged = (
        select(Job.id, Job.owner, Job.model)
        .where(QUEUED, Job.job_class == JobClass.BULK, Job.queued_at < now(-age_seconds))
        .order_by(Job.queued_at)
        .limit(SWEEP_BATCH)
        .with_for_update(skip_locked=True)
    )
    with database.write() as session:
        rows = session.execute(aged).all()
        # Each place needs its owner's lock: two sweeps that take theirs in one order cannot wait for each other.
        for job_id, owner, model in sorted(rows, key=lambda row: (row.owner, row.model)):
            start_tag = start_tag_of(session, owner, model, JobClass.INTERACTIVE)
            session.execute(
                update(Job)
                .where(Job.id == job_id)  # locked, as queued
                .values(
                    job_class=JobClass.INTERACTIVE,
                    start_tag=start_tag,
                    finish_tag=start_tag + (Job.finish_tag - Job.start_tag),
                )
                .execution_options(synchronize_session=False)
            )
    return len(rows)


def due_for_cleanup(database: Database) -> list[Ended]:
    """Ended jobs that may have left objects of attempts that did not win."""
    query = select(Job).where(Job.cleanup_at <= now()).order_by(Job.cleanup_at).limit(SWEEP_BATCH)
    with database.read() as session:
        return [ended_record(job) for job in session.scalars(query)]


def cleaned(database: Database, job_id: UUID, *, late_seconds: float) -> None:
    """Note that a job's stray objects were deleted; once more is due when no late upload can be on its way.

    Of several that deleted the same objects at once, one has deleted them the first time, and none the last.
    """
    late = now(late_seconds)
    is_last = Job.cleanup_at > Job.finished_at
    is_due = and_(Job.id == job_id, Job.cleanup_at <= now())
    statement = update(Job).where(is_due).values(cleanup_at=case((is_last, None), else_=late))
    with database.write() as session:
        session.execute(statement.execution_options(synchronize_session=False))


def due_for_deletion(database: Database, *, retention_seconds: Mapping[JobState, float]) -> list[Ended]:
    """Ended jobs that have been kept for as long as they or their state are kept, and whose pictures no job needs."""
    kept = select(Job).where(~select(Image).where(Image.job_id == Job.id, is_needed(Image.key)).exists())
    # One that was erased while it ran waits for what its worker may still be writing.
    own = kept.where(Job.delete_at <= now(), Job.cleanup_at.is_(None)).order_by(Job.delete_at)
    queries = [own]
    for state, seconds in retention_seconds.items():
        old = kept.where(Job.state == state, Job.finished_at < now(-seconds), Job.delete_at.is_(None))
        queries.append(old.order_by(Job.finished_at))
    with database.read() as session:
        return [ended_record(job) for query in queries for job in session.scalars(query.limit(SWEEP_BATCH))]


def delete_ended(database: Database, job_id: UUID) -> None:
    """Forget an ended job, its pictures' rows, its history, and with its last job a batch. Its objects must be gone."""
    ended = delete(Job).where(Job.id == job_id, Job.state.in_(FINAL_STATES)).returning(Job.batch_id)
    with database.write() as session:
        batch_id = session.scalar(ended.execution_options(synchronize_session=False))
        if batch_id is None:
            return
        # Of two that delete the last two jobs at once, the second waits here, and finds none.
        session.execute(select(Batch.id).where(Batch.id == batch_id).with_for_update())
        rest = select(Job.id).where(Job.batch_id == batch_id).exists()
        session.execute(delete(Batch).where(Batch.id == batch_id, ~rest).execution_options(synchronize_session=False))
