"""From the history of the jobs to deliveries, and each delivery's way through its tries. The only writer of its state.

Every event becomes its deliveries in the transaction that moves the cursor past it: none is missed, none is made twice,
and a submit or a worker's commit pays nothing for it. A delivery is claimed under a lease, like a job, and what ends it
must hold the same attempt.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import structlog
import uuid_utils.compat
from sqlalchemy import and_, func, insert, or_, select, text, tuple_, update
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.elements import ColumnElement

from darkroom import events
from darkroom.db import Database, now
from darkroom.errors import DeliveryNotFound
from darkroom.models import (
    LEASED,
    PENDING,
    DeliveryState,
    Job,
    JobEvent,
    WebhookCursor,
    WebhookDelivery,
    WebhookEndpoint,
)
from darkroom.webhooks.sending import Answer
from darkroom.webhooks.subscriptions import PREFIX

logger = structlog.get_logger(__name__)

BATCH = 1000
THE_CURSOR = 1
# The pauses between tries, from the moment a try has ended: almost 16 hours in all.
RETRY_SECONDS = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0)
JITTER = 0.1
# Longer than a try can take: a delivery whose lease has run out is in nobody's hands.
LEASE_SECONDS = 60.0
# Deliveries under way to one origin, over all processes: those who answer slowly leave room for the others.
MOST_PER_ORIGIN = 2
GONE = 410
JOB = "job"


@dataclass(frozen=True)
class DeliveryRecord:
    """One event on its way to one address. `id` is the webhook-id that the receiver sees, however often it comes."""

    id: UUID
    job_id: UUID
    seq: int
    type: str
    endpoint_id: UUID | None
    state: DeliveryState
    num_tries: int
    last_status: int | None
    last_error: str | None
    created_at: datetime
    due_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True)
class Claimed:
    """A delivery in this process's hands, for this attempt."""

    id: UUID
    owner: str
    job_id: UUID
    seq: int
    endpoint_id: UUID | None
    attempt: int
    num_tries: int


def plan(database: Database) -> bool:
    """Turn the next events into deliveries. Returns whether there may be more.

    Reads below the oldest open transaction only, as events.read_all does. Whoever finds the cursor locked leaves the
    work to its holder.
    """
    with database.read() as session:
        if _next_place(session, _cursor(session, is_locked=False) or (0, 0), limit=1) is None:
            return False
    with database.write() as session:
        place = _cursor(session, is_locked=True)
        if place is None:
            return False
        read = _next_place(session, place, limit=BATCH)
        if read is None:
            return False
        xid, position, num_read = read
        deliveries = list(_deliveries(session, place, (xid, position)))
        if deliveries:
            session.execute(insert(WebhookDelivery), deliveries)
        moved = update(WebhookCursor).where(WebhookCursor.id == THE_CURSOR).values(xid=xid, position=position)
        session.execute(moved)
    return num_read == BATCH


def _cursor(session: Session, *, is_locked: bool) -> tuple[int, int] | None:
    """The place to go on from; None when another process has it."""
    query = select(WebhookCursor.xid, WebhookCursor.position).where(WebhookCursor.id == THE_CURSOR)
    if is_locked:
        query = query.with_for_update(skip_locked=True)
        _make_cursor(session)
    row = session.execute(query).one_or_none()
    return (row.xid, row.position) if row else None


def _make_cursor(session: Session) -> None:
    """Begin at the beginning of the history, once: endpoints are told only what happens after they were registered."""
    session.execute(
        text("INSERT INTO webhook_cursor (id, xid, position) VALUES (:id, 0, 0) ON CONFLICT DO NOTHING"),
        {"id": THE_CURSOR},
    )


def _next_place(session: Session, after: tuple[int, int], *, limit: int) -> tuple[int, int, int] | None:
    """Where so many events after a place end, and how many there are as yet; None where there is none."""
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    query = select(JobEvent.xid, JobEvent.position).where(events.is_behind(*after, is_postgresql=is_postgresql))
    if is_postgresql:
        query = query.where(text("xid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint"))
        query = query.order_by(JobEvent.xid)
    # Few of them are of anybody's interest, so only the last one leaves the database.
    next_ones = query.order_by(JobEvent.position).limit(limit).subquery()
    last = select(next_ones.c.xid, next_ones.c.position, func.count().over())
    row = session.execute(last.order_by(next_ones.c.xid.desc(), next_ones.c.position.desc()).limit(1)).one_or_none()
    return (row[0], row[1], row[2]) if row else None


def _deliveries(session: Session, after: tuple[int, int], last: tuple[int, int]) -> Iterator[Mapping[str, Any]]:
    place = tuple_(JobEvent.xid, JobEvent.position)
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    in_batch = and_(events.is_behind(*after, is_postgresql=is_postgresql), place <= tuple_(*last))
    event = (JobEvent.job_id, JobEvent.seq, JobEvent.type, Job.owner)
    order = (JobEvent.xid, JobEvent.position)
    named = select(*event, Job.webhook).join(Job, Job.id == JobEvent.job_id).where(in_batch, Job.webhook.is_not(None))
    for row in session.execute(named.order_by(*order)):
        if PREFIX + row.type in row.webhook["events"]:
            yield _delivery(row, JOB, row.webhook["url"], None)
    endpoint = (WebhookEndpoint.id, WebhookEndpoint.url, WebhookEndpoint.events)
    heard = and_(
        WebhookEndpoint.owner == Job.owner,
        WebhookEndpoint.disabled_at.is_(None),
        WebhookEndpoint.created_at <= JobEvent.created_at,
    )
    registered = select(*event, *endpoint).join(Job, Job.id == JobEvent.job_id).join(WebhookEndpoint, heard)
    for row in session.execute(registered.where(in_batch).order_by(*order)):
        if PREFIX + row.type in row.events:
            yield _delivery(row, str(row.id), row.url, row.id)


def _delivery(row: Any, destination: str, url: str, endpoint_id: UUID | None) -> Mapping[str, Any]:
    parts = urlsplit(url)
    return {
        "id": uuid_utils.compat.uuid7(),
        "owner": row.owner,
        "job_id": row.job_id,
        "seq": row.seq,
        "type": PREFIX + row.type,
        "endpoint_id": endpoint_id,
        "destination": destination,
        "origin": f"{parts.scheme}://{parts.netloc.lower()}",
        "state": DeliveryState.PENDING,
    }


def claim(database: Database) -> Claimed | None:
    """Take the delivery that has been due longest, if nothing before it in its line still waits."""
    with database.read() as session:
        if session.scalar(_due(_busy(session))) is None:
            return None
    with database.write() as session:
        due = _due(_busy(session)).with_for_update(skip_locked=True).scalar_subquery()
        statement = (
            update(WebhookDelivery)
            .where(WebhookDelivery.id == due)
            .values(
                attempt=WebhookDelivery.attempt + 1,
                num_tries=WebhookDelivery.num_tries + 1,
                lease_expires_at=now(LEASE_SECONDS),
            )
            .returning(WebhookDelivery)
            .execution_options(synchronize_session=False)
        )
        row = session.scalars(statement).one_or_none()
        if row is None:
            return None
        return Claimed(row.id, row.owner, row.job_id, row.seq, row.endpoint_id, row.attempt, row.num_tries)


def _busy(session: Session) -> list[str]:
    """The origins that have their share of deliveries under way."""
    under_way = select(WebhookDelivery.origin).where(LEASED, WebhookDelivery.lease_expires_at > now())
    counted = under_way.group_by(WebhookDelivery.origin).having(func.count() >= MOST_PER_ORIGIN)
    return list(session.scalars(counted))


def _due(busy: list[str]) -> Any:
    earlier = aliased(WebhookDelivery)
    is_first = ~(
        select(earlier.id)
        .where(
            earlier.job_id == WebhookDelivery.job_id,
            earlier.destination == WebhookDelivery.destination,
            earlier.seq < WebhookDelivery.seq,
            earlier.state == DeliveryState.PENDING,
        )
        .exists()
    )
    is_free = or_(WebhookDelivery.lease_expires_at.is_(None), WebhookDelivery.lease_expires_at <= now())
    front = select(WebhookDelivery.id).where(PENDING, WebhookDelivery.due_at <= now(), is_free, is_first)
    if busy:
        front = front.where(WebhookDelivery.origin.not_in(busy))
    return front.order_by(WebhookDelivery.due_at).limit(1)


def finish(database: Database, claimed: Claimed, answer: Answer) -> DeliveryState | None:
    """Write down what became of a try. None, and nothing is written, when the delivery is in other hands by now."""
    state = _state_after(claimed, answer)
    values: dict[str, Any] = {"last_status": answer.status, "last_error": answer.error, "lease_expires_at": None}
    if state is DeliveryState.PENDING:
        pause = RETRY_SECONDS[claimed.num_tries - 1] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - jitter
        values["due_at"] = now(pause)
    else:
        values |= {"state": state, "ended_at": now()}
    with database.write() as session:
        statement = update(WebhookDelivery).where(_is_held(claimed)).values(values).returning(WebhookDelivery.id)
        if session.scalars(statement.execution_options(synchronize_session=False)).one_or_none() is None:
            return None
        if state is DeliveryState.PENDING:
            _hold_back(session, claimed, pause)
        if answer.status == GONE and claimed.endpoint_id:
            _disable(session, claimed.endpoint_id)
    return state


def _state_after(claimed: Claimed, answer: Answer) -> DeliveryState:
    if answer.is_delivered:
        return DeliveryState.DELIVERED
    is_last = claimed.num_tries > len(RETRY_SECONDS)
    return DeliveryState.DEAD if is_last or answer.status == GONE else DeliveryState.PENDING


def _is_held(claimed: Claimed) -> ColumnElement[bool]:
    return and_(PENDING, WebhookDelivery.id == claimed.id, WebhookDelivery.attempt == claimed.attempt)


def _hold_back(session: Session, claimed: Claimed, seconds: float) -> None:
    """Those behind it in its line are due with it: a search for what is due does not meet them again and again."""
    destination = str(claimed.endpoint_id) if claimed.endpoint_id else JOB
    behind = and_(
        WebhookDelivery.job_id == claimed.job_id,
        WebhookDelivery.destination == destination,
        WebhookDelivery.seq > claimed.seq,
        WebhookDelivery.state == DeliveryState.PENDING,
    )
    statement = update(WebhookDelivery).where(behind).values(due_at=now(seconds))
    session.execute(statement.execution_options(synchronize_session=False))


def _disable(session: Session, endpoint_id: UUID) -> None:
    """Tell an endpoint nothing more that has answered that it is gone for good."""
    statement = update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id).values(disabled_at=now())
    session.execute(statement.execution_options(synchronize_session=False))
    abandon(session, endpoint_id, "the endpoint has answered that it is gone")
    logger.warning("webhook_disabled", endpoint=str(endpoint_id))


def abandon(session: Session, endpoint_id: UUID, reason: str) -> None:
    """Give up all that still waits for an endpoint."""
    waiting = and_(WebhookDelivery.endpoint_id == endpoint_id, WebhookDelivery.state == DeliveryState.PENDING)
    values = {"state": DeliveryState.DEAD, "ended_at": now(), "last_error": reason, "lease_expires_at": None}
    statement = update(WebhookDelivery).where(waiting).values(values)
    session.execute(statement.execution_options(synchronize_session=False))


def replay(database: Database, delivery_id: UUID, *, owner: str) -> DeliveryRecord:
    """Make a delivery due now, with all its tries before it. One under way is left to it. Raises DeliveryNotFound."""
    with database.write() as session:
        statement = (
            update(WebhookDelivery)
            .where(WebhookDelivery.id == delivery_id, WebhookDelivery.owner == owner)
            .values(state=DeliveryState.PENDING, num_tries=0, due_at=now(), ended_at=None)
            .execution_options(synchronize_session=False)
        )
        session.execute(statement)
    return get_delivery(database, delivery_id, owner=owner)


def get_delivery(database: Database, delivery_id: UUID, *, owner: str) -> DeliveryRecord:
    """Read one delivery. Raises DeliveryNotFound."""
    with database.read() as session:
        mine = select(WebhookDelivery).where(WebhookDelivery.id == delivery_id, WebhookDelivery.owner == owner)
        row = session.scalars(mine).one_or_none()
        if row is None:
            raise DeliveryNotFound(delivery_id)
        return _record(row)


def list_deliveries(
    database: Database,
    *,
    owner: str,
    state: DeliveryState | None = None,
    endpoint_id: UUID | None = None,
    job_id: UUID | None = None,
    before: UUID | None = None,
    limit: int = 50,
) -> list[DeliveryRecord]:
    """Read an owner's deliveries, newest first, beginning below `before`."""
    query = select(WebhookDelivery).where(WebhookDelivery.owner == owner)
    filters = {"state": state, "endpoint_id": endpoint_id, "job_id": job_id}
    for name, value in filters.items():
        if value is not None:
            query = query.where(getattr(WebhookDelivery, name) == value)
    if before is not None:
        query = query.where(WebhookDelivery.id < before)
    with database.read() as session:
        return [_record(row) for row in session.scalars(query.order_by(WebhookDelivery.id.desc()).limit(limit))]


def _record(row: WebhookDelivery) -> DeliveryRecord:
    return DeliveryRecord(
        id=row.id,
        job_id=row.job_id,
        seq=row.seq,
        type=row.type,
        endpoint_id=row.endpoint_id,
        state=DeliveryState(row.state),
        num_tries=row.num_tries,
        last_status=row.last_status,
        last_error=row.last_error,
        created_at=row.created_at,
        due_at=row.due_at,
        ended_at=row.ended_at,
    )
