"""How the queue stands, for people who look at it: what waits, what runs, what has ended lately. Moves nothing.

Every call reads a bounded number of rows, however many jobs there are (tests/jobs/test_plans.py).
"""

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Select, String, func, literal, literal_column, select, text, tuple_, union_all
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased, selectinload
from sqlalchemy.sql.elements import BindParameter

from darkroom.db import Database
from darkroom.errors import JobNotFound
from darkroom.jobs.ending import NOBODY
from darkroom.jobs.queue import front_of_queue
from darkroom.jobs.reading import FIRST, get_many, in_state, records_of
from darkroom.jobs.records import JobRecord
from darkroom.models import FINAL_STATES, QUEUED, RUNNING, Job, JobState


def list_oldest(
    database: Database, *, owner: str, state: JobState, after: UUID | None = None, limit: int
) -> list[JobRecord]:
    """Read an owner's jobs of one state, oldest first, beginning above `after`."""
    query = in_state(select(Job).where(Job.owner == owner), state, after=after or FIRST).options(
        selectinload(Job.images)
    )
    with database.read() as session:
        return records_of(session.scalars(query.limit(limit)))


def list_unretried(database: Database, *, owner: str, limit: int) -> list[JobRecord]:
    """Read an owner's latest jobs that failed and were not submitted once more, latest first."""
    again = aliased(Job)
    has_retry = select(again.id).where(again.retry_of == Job.id, again.owner == owner).exists()
    query = in_state(select(Job).where(Job.owner == owner, ~has_retry), JobState.FAILED)
    with database.read() as session:
        return records_of(session.scalars(query.limit(limit).options(selectinload(Job.images))))


def retried(database: Database, job_ids: Collection[UUID], *, owner: str) -> frozenset[UUID]:
    """Say which of these jobs their owner has submitted once more."""
    if not job_ids:
        return frozenset()
    with database.read() as session:
        query = select(Job.retry_of).where(Job.retry_of.in_(list(job_ids)), Job.owner == owner)
        return frozenset(job_id for job_id in session.scalars(query) if job_id)


def list_latest_ended(database: Database, *, owner: str | None = None, limit: int) -> list[JobRecord]:
    """Read the latest jobs (of an owner) that have ended, latest first, whatever became of them."""
    latest = [_latest_ids(state, owner, limit).subquery() for state in FINAL_STATES]
    with database.read() as session:
        ids = session.scalars(union_all(*(select(each.c.id) for each in latest))).all()
    return _latest_first(get_many(database, ids).values())[:limit]


def list_ended(database: Database, *, state: JobState, after: UUID | None = None, limit: int) -> list[JobRecord]:
    """Read everybody's latest jobs that ended in one state, latest first, on from behind the job `after`.

    Raises JobNotFound where that one is gone.
    """
    order = (Job.finished_at, Job.id)
    query = _latest_ids(state, None, limit)
    with database.read() as session:
        if after:
            query = query.where(tuple_(*order) < tuple_(*_place(session, after, *order)))
        ids = session.scalars(query).all()
    return _latest_first(get_many(database, ids).values())


def _place(session: Session, job_id: UUID, *columns: InstrumentedAttribute[Any]) -> list[BindParameter[Any]]:
    """Where a job stands, or stood while it was in that line."""
    found = session.execute(select(*columns).where(Job.id == job_id)).one_or_none()
    if found is None:
        raise JobNotFound(job_id)
    return [literal(value, column.type) for value, column in zip(found, columns, strict=True)]


def _latest_ids(state: JobState, owner: str | None, limit: int) -> Select[Any]:
    ids = select(Job.id).limit(limit)
    if owner is None:
        return ids.where(Job.state == state, Job.owner != NOBODY).order_by(Job.finished_at.desc(), Job.id.desc())
    return in_state(ids.where(Job.owner == owner), state)


def _latest_first(found: Collection[JobRecord]) -> list[JobRecord]:
    return sorted(found, key=lambda job: (job.finished_at or job.created_at, job.id), reverse=True)


def list_running(database: Database, *, after: UUID | None = None, limit: int) -> list[JobRecord]:
    """Read everybody's jobs that a worker has, those that it has had longest first, on from behind the job `after`.

    Raises JobNotFound where that one is gone.
    """
    order = (Job.started_at, Job.id)
    query = select(Job.id).where(RUNNING).order_by(*order).limit(limit)
    with database.read() as session:
        if after:
            query = query.where(tuple_(*order) > tuple_(*_place(session, after, *order)))
        ids = session.scalars(query).all()
    return _in_order(database, ids)


def list_fronts(database: Database, *, limit: int) -> dict[str, list[JobRecord]]:
    """Read the first jobs of every line in which anybody waits, by model, each line in the order of its claims."""
    ids = {model: front_of_queue(database, model=model, limit=limit) for model in _waited_for(database)}
    found = get_many(database, [job_id for line in ids.values() for job_id in line])
    return {model: [found[job_id] for job_id in line if job_id in found] for model, line in ids.items()}


def list_line(database: Database, *, after: UUID, limit: int) -> list[JobRecord]:
    """Read on in the line in which the job `after` stands, or stood, in the order of its claims.

    Raises JobNotFound where that one is gone.
    """
    order = (Job.job_class, Job.start_tag, Job.id)
    with database.read() as session:
        model, *place = _place(session, after, Job.model, *order)
        behind = select(Job.id).where(QUEUED, Job.model == model, tuple_(*order) > tuple_(*place))
        ids = session.scalars(behind.order_by(*order).limit(limit)).all()
    return _in_order(database, ids)


def _in_order(database: Database, job_ids: Sequence[UUID]) -> list[JobRecord]:
    found = get_many(database, job_ids)
    return [found[job_id] for job_id in job_ids if job_id in found]


def _waited_for(database: Database) -> list[str]:
    """The models in whose line anybody waits: one lookup finds the next, and reads of a line only its first job."""
    models: list[str] = []
    beyond = ""
    with database.read() as session:
        while model := session.scalar(_next_line(beyond, is_sqlite=database.is_sqlite)):
            models.append(model)
            beyond = model
    return models


def _next_line(beyond: str, *, is_sqlite: bool) -> Select[Any]:
    """SQLite would rather read all that is queued, by its state, than be led from line to line."""
    model = literal_column("model", String())
    jobs = text("jobs INDEXED BY ix_jobs_queue" if is_sqlite else "jobs")
    return select(model).select_from(jobs).where(QUEUED, model > beyond).order_by(model).limit(1)


def count(database: Database, *, state: JobState, owner: str | None = None, most: int) -> int:
    """Count the jobs (of an owner) of one state, no further than just beyond `most`."""
    ids = select(Job.id).where(Job.state == state).limit(most + 1)
    if owner is not None:
        ids = ids.where(Job.owner == owner)
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(ids.subquery())) or 0
