"""Whether jobs may enter the queue at all: the intake is open, and their key has quota left. Decides no state."""

from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from darkroom import intake, keys
from darkroom.db import Database
from darkroom.errors import QuotaExceeded
from darkroom.models import QUEUED_BY_KEY, Job

# When a place may have become free; nobody can know.
QUEUE_RETRY_SECONDS = 10.0


def admit(session: Session, *, key_id: UUID | None, cost: float, num_jobs: int = 1) -> None:
    """Let jobs of this cost together into the queue, in the transaction that stores them.

    Raises IntakePaused, KeyRevoked or QuotaExceeded; then nothing of the transaction may be kept. A key's submits wait
    for each other here, so that no two of them take the same last place.
    """
    intake.check(session)
    if key_id is None:
        return
    max_queued = keys.charge(session, key_id, cost=cost)
    if max_queued is None:
        return
    waiting = select(Job.id).where(QUEUED_BY_KEY, Job.key_id == key_id).limit(max_queued).subquery()
    used = session.scalar(select(func.count()).select_from(waiting)) or 0
    if used + num_jobs > max_queued:
        seconds = QUEUE_RETRY_SECONDS
        raise QuotaExceeded("max_queued", limit=max_queued, used=used, asked=num_jobs, seconds_left=seconds)


def num_queued(database: Database, key_id: UUID) -> int:
    """How many jobs of a key wait."""
    with database.read() as session:
        waiting = select(func.count()).select_from(Job).where(QUEUED_BY_KEY, Job.key_id == key_id)
        return session.scalar(waiting) or 0
