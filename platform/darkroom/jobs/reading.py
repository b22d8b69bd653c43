"""Reading jobs. Somebody else's job does not exist."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import selectinload

from darkroom.db import Database
from darkroom.errors import ImageNotFound, JobNotFound
from darkroom.jobs.records import ImageRecord, JobRecord, image_record, job_record
from darkroom.models import Job, JobState


def get(database: Database, job_id: UUID, *, owner: str | None = None) -> JobRecord:
    """Read a job (of an owner). Raises JobNotFound, also for somebody else's."""
    query = select(Job).where(Job.id == job_id).options(selectinload(Job.images))
    if owner is not None:
        query = query.where(Job.owner == owner)
    with database.read() as session:
        job = session.scalars(query).one_or_none()
        if job is None:
            raise JobNotFound(job_id)
        return job_record(job, images=tuple(image_record(image) for image in job.images))


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
    before: UUID | None = None,
    limit: int = 50,
) -> list[JobRecord]:
    """Read an owner's jobs, newest first, beginning below `before`."""
    query = select(Job).where(Job.owner == owner).options(selectinload(Job.images))
    if state is not None:
        query = query.where(Job.state == state)
    if model is not None:
        query = query.where(Job.model == model)
    if before is not None:
        query = query.where(Job.id < before)
    with database.read() as session:
        jobs = session.scalars(query.order_by(Job.id.desc()).limit(limit)).all()
        return [job_record(job, images=tuple(image_record(image) for image in job.images)) for job in jobs]
