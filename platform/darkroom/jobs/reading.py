"""Reading jobs. Somebody else's job does not exist."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Select, Uuid, bindparam, select, tuple_
from sqlalchemy.orm import selectinload

from darkroom.db import Database, table_of
from darkroom.errors import ImageNotFound, JobNotFound
from darkroom.jobs.records import ImageRecord, JobRecord, image_record, job_record
from darkroom.models import LIVE_STATES, Image, Job, JobState

SEARCHED_JOBS = 2000
# Before and behind every job's id.
FIRST, LAST = UUID(int=0), UUID(int=2**128 - 1)
# Built once, and read without a session: jobs are read far more often than anything is done to them.
SOME_JOBS = select(table_of(Job)).where(Job.id.in_(bindparam("job_ids", expanding=True)))
ONE_JOB = select(table_of(Job)).where(Job.id == bindparam("job_id", type_=Uuid()))
ITS_IMAGES = (
    select(table_of(Image))
    .where(Image.job_id.in_(bindparam("job_ids", expanding=True)))
    .order_by(Image.job_id, Image.n)
)


def get(database: Database, job_id: UUID, *, owner: str | None = None) -> JobRecord:
    """Read a job (of an owner). Raises JobNotFound, also for somebody else's."""
    with database.look() as connection:
        job: Any = connection.execute(ONE_JOB, {"job_id": job_id}).one_or_none()
        if job is None or owner not in (None, job.owner):
            raise JobNotFound(job_id)
        # Pictures appear by the commit that makes their job succeed.
        images: Any = connection.execute(ITS_IMAGES, {"job_ids": [job_id]}) if job.state == JobState.SUCCEEDED else ()
        return job_record(job, images=tuple(image_record(image) for image in images))


def get_many(database: Database, job_ids: Collection[UUID]) -> dict[UUID, JobRecord]:
    """Read several jobs. One that is gone is left out."""
    if not job_ids:
        return {}
    ids = {"job_ids": list(job_ids)}
    with database.look() as connection:
        found: Any = connection.execute(SOME_JOBS, ids).all()
        images: dict[UUID, list[ImageRecord]] = {}
        stored: Any = connection.execute(ITS_IMAGES, ids)
        for image in stored:
            images.setdefault(image.job_id, []).append(image_record(image))
    return {job.id: job_record(job, images=tuple(images.get(job.id, ()))) for job in found}


def get_image(database: Database, job_id: UUID, n: int, *, owner: str) -> ImageRecord:
    """Read one picture of a job. Raises JobNotFound or ImageNotFound."""
    for image in get(database, job_id, owner=owner).images:
        if image.n == n:
            return image
    raise ImageNotFound(job_id, n)


def list_jobs(
    database: Database,
    *,
    owner: str,
    state: JobState | None = None,
    model: str | None = None,
    batch_id: UUID | None = None,
    before: UUID | None = None,
    limit: int = 50,
) -> list[JobRecord]:
    """Read an owner's jobs, newest first, beginning below `before`."""
    query = _filtered(select(Job), owner, state, model, batch_id, before).options(selectinload(Job.images))
    with database.read() as session:
        return records_of(session.scalars(query.limit(limit)))


def list_live(database: Database, *, owner: str, metadata: Mapping[str, str]) -> list[JobRecord]:
    """Read an owner's jobs that have not ended and whose metadata says all of this, oldest first."""
    query = select(Job).where(Job.owner == owner, Job.state.in_(LIVE_STATES)).options(selectinload(Job.images))
    for name, value in metadata.items():
        query = query.where(Job.client_metadata[name].as_string() == value)
    with database.read() as session:
        return records_of(session.scalars(query.order_by(Job.id)))


def search(
    database: Database,
    words: str,
    *,
    owner: str,
    state: JobState | None = None,
    model: str | None = None,
    batch_id: UUID | None = None,
    before: UUID | None = None,
    limit: int = 50,
    most_looked_at: int = SEARCHED_JOBS,
) -> tuple[list[JobRecord], UUID | None]:
    """Read the jobs whose prompt has all these words, newest first, and where to go on from; None at the end.

    One call looks at so many jobs at most, so that its cost is bounded however many there are: it may find fewer than
    `limit`, or none, and yet there is more to look at. Words are compared here, in every script alike, because neither
    database folds the case of all of them.
    """
    prompt = Job.params["prompt"].as_string()
    query = _filtered(select(Job.id, prompt), owner, state, model, batch_id, before)
    wanted = words.casefold().split()
    found: list[UUID] = []
    rest: UUID | None = None
    with database.read() as session:
        rows = session.execute(query.limit(most_looked_at)).all()
        for job_id, text in rows:
            if len(found) == limit:
                rest = found[-1]
                break
            if all(word in text.casefold() for word in wanted):
                found.append(job_id)
        else:
            rest = rows[-1].id if len(rows) == most_looked_at else None
        jobs = select(Job).where(Job.id.in_(found)).order_by(Job.id.desc()).options(selectinload(Job.images))
        return records_of(session.scalars(jobs)), rest


def _filtered(
    query: Select[Any],
    owner: str,
    state: JobState | None,
    model: str | None,
    batch_id: UUID | None,
    before: UUID | None,
) -> Select[Any]:
    """Of a query of jobs those that pass, newest first."""
    query = query.where(Job.owner == owner)
    if model is not None:
        query = query.where(Job.model == model)
    if batch_id is not None:
        query = query.where(Job.batch_id == batch_id)
    if state is not None:
        return in_state(query, state, before=before)
    if before is not None:
        query = query.where(Job.id < before)
    return query.order_by(Job.id.desc())


def in_state(
    query: Select[Any], state: JobState, *, before: UUID | None = None, after: UUID | None = None
) -> Select[Any]:
    """Of an owner's jobs those of one state: newest first, or oldest first from `after` on.

    Said as a stretch of (owner, state, id), because that index alone has this order. Were the state said to be equal,
    PostgreSQL might as well go through all of the owner's jobs by id, past a hundred thousand that wait.
    """
    if after is not None:
        query = query.where(Job.state <= state, tuple_(Job.state, Job.id) > tuple_(state, after))
        return query.order_by(Job.state, Job.id)
    query = query.where(Job.state >= state, tuple_(Job.state, Job.id) < tuple_(state, before or LAST))
    return query.order_by(Job.state.desc(), Job.id.desc())


def records_of(rows: Iterable[Job]) -> list[JobRecord]:
    """Rows, with their images, as those see them who may not write them."""
    return [job_record(job, images=tuple(image_record(image) for image in job.images)) for job in rows]
