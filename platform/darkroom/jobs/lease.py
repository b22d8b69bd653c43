"""Holding a claimed job: its heartbeat, and the turn of a suspect that waits for an empty worker."""

from collections.abc import Iterable, Mapping
from uuid import UUID

from sqlalchemy import and_, func, or_, select, tuple_, update

from darkroom.db import Database, now
from darkroom.models import QUEUED, RUNNING, SUSPECT, Job


def heartbeat(
    database: Database, *, worker_id: str, attempts: Mapping[UUID, int], lease_seconds: float
) -> frozenset[UUID]:
    """Renew the leases of these jobs (job -> attempt) and return which of them the worker still holds.

    A lease that ran out but was not swept yet is revived: a database that was away costs no work. A job that stalls
    and is not named here still keeps the others company.
    """
    if not attempts:
        return frozenset()
    mine = select(func.count()).select_from(Job).where(RUNNING, Job.worker_id == worker_id).correlate(None)
    statement = (
        update(Job)
        .where(RUNNING, Job.worker_id == worker_id, tuple_(Job.id, Job.attempt).in_(list(attempts.items())))
        .values(lease_expires_at=now(lease_seconds), is_alone=mine.scalar_subquery() == 1)
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    with database.write() as session:
        return frozenset(session.scalars(statement))


def reserve_solo(
    database: Database, *, worker_id: str, models: Iterable[str], wait_seconds: float, hold_seconds: float
) -> bool:
    """Whether this worker must run empty for a suspect that has waited too long for a worker without jobs.

    The reservation keeps the rest of the fleet at work; it lapses `hold_seconds` after it was last asked for.
    """
    mine = and_(Job.solo_worker_id == worker_id, Job.solo_reserved_until >= now())
    free = or_(Job.solo_reserved_until.is_(None), Job.solo_reserved_until < now())
    waiting = (
        select(Job.id)
        .where(QUEUED, SUSPECT, Job.model.in_(list(models)), or_(mine, free), Job.queued_at < now(-wait_seconds))
        .order_by(Job.queued_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    statement = (
        update(Job)
        .where(Job.id == waiting)
        .values(solo_worker_id=worker_id, solo_reserved_until=now(hold_seconds))
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    with database.write() as session:
        return session.scalar(statement) is not None
