"""The stored pictures that jobs begin from: uploads, and pictures of earlier jobs. Knows their rows, not their bytes.

An object is kept at least until every job that begins from it has ended; who deletes it asks here first.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import and_, delete, exists, insert, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement, SQLColumnExpression

from darkroom.db import Database, now
from darkroom.errors import InputGone, UploadNotFound
from darkroom.models import LIVE, Image, Job, JobInput, Upload
from darkroom.params import GenerationParams

UPLOAD_BATCH = 100
# A job that was let in just before an upload expired has committed by then.
LATE_SECONDS = 300.0


@dataclass(frozen=True)
class UploadRecord:
    """A picture that somebody sent, as it is stored."""

    id: UUID
    owner: str
    key: str
    width: int
    height: int
    num_bytes: int
    created_at: datetime
    expires_at: datetime


def input_keys(params: GenerationParams) -> list[str]:
    """The objects that a job with these parameters begins from."""
    return [key for key in (params.init_image, params.mask) if key is not None]


def check_inputs(session: Session, keys: Iterable[str], *, owner: str) -> None:
    """See that an owner still has these objects. Raises InputGone."""
    for key in sorted(keys):
        upload = select(Upload.id).where(Upload.key == key, Upload.owner == owner, Upload.expires_at > now())
        image = select(Image.n).join(Job).where(Image.key == key, Job.owner == owner)
        if session.scalar(upload) is None and session.execute(image).first() is None:
            raise InputGone(key)


def is_needed(key: SQLColumnExpression[str]) -> ColumnElement[bool]:
    """Whether a job that has not ended begins from the object of this key."""
    return exists().where(and_(LIVE, JobInput.key == key, JobInput.job_id == Job.id)).correlate_except(JobInput, Job)


def add_upload(
    database: Database,
    upload_id: UUID,
    *,
    owner: str,
    key: str,
    width: int,
    height: int,
    num_bytes: int,
    life_seconds: float,
) -> UploadRecord:
    """Note an upload before its object is written, so that a crash in between leaves nothing unnamed."""
    values = {"id": upload_id, "owner": owner, "key": key, "width": width, "height": height, "num_bytes": num_bytes}
    with database.write() as session:
        row = session.scalars(insert(Upload).values(expires_at=now(life_seconds), **values).returning(Upload)).one()
        return _record(row)


def get_upload(database: Database, upload_id: UUID, *, owner: str) -> UploadRecord:
    """Read an upload that has not expired. Raises UploadNotFound, also for somebody else's."""
    mine = select(Upload).where(Upload.id == upload_id, Upload.owner == owner, Upload.expires_at > now())
    with database.read() as session:
        row = session.scalar(mine)
        if row is None:
            raise UploadNotFound(upload_id)
        return _record(row)


def expire_upload(database: Database, upload_id: UUID, *, owner: str) -> None:
    """Let no further job begin from an upload; it is deleted soon. Raises UploadNotFound, also for somebody else's."""
    mine = and_(Upload.id == upload_id, Upload.owner == owner, Upload.expires_at > now())
    with database.write() as session:
        if session.scalar(update(Upload).where(mine).values(expires_at=now()).returning(Upload.id)) is None:
            raise UploadNotFound(upload_id)


def due_uploads(database: Database) -> list[UploadRecord]:
    """The uploads that have expired and that no job needs."""
    old = select(Upload).where(Upload.expires_at < now(-LATE_SECONDS), ~is_needed(Upload.key))
    with database.read() as session:
        return [_record(row) for row in session.scalars(old.order_by(Upload.expires_at).limit(UPLOAD_BATCH))]


def forget_upload(database: Database, upload_id: UUID) -> None:
    """Delete an upload's row. Its object must be gone already."""
    with database.write() as session:
        session.execute(delete(Upload).where(Upload.id == upload_id))


def _record(row: Upload) -> UploadRecord:
    return UploadRecord(
        id=row.id,
        owner=row.owner,
        key=row.key,
        width=row.width,
        height=row.height,
        num_bytes=row.num_bytes,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
