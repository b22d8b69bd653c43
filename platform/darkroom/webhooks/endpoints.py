"""The addresses that owners have registered, and their secrets. Somebody else's endpoint does not exist."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog
import uuid_utils.compat
from sqlalchemy import case, delete, func, insert, null, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from darkroom.db import Database, now
from darkroom.errors import TooManyWebhooks, WebhookNotFound
from darkroom.models import WebhookEndpoint, WebhookSecret
from darkroom.webhooks.deliveries import abandon
from darkroom.webhooks.secrets import OVERLAP_SECONDS, new_secret
from darkroom.webhooks.subscriptions import Subscription

logger = structlog.get_logger(__name__)

MOST_ENDPOINTS = 20


@dataclass(frozen=True)
class EndpointRecord:
    """A registered address, without its secret."""

    id: UUID
    url: str
    events: tuple[str, ...]
    created_at: datetime
    disabled_at: datetime | None


def register(database: Database, subscription: Subscription, *, owner: str) -> tuple[EndpointRecord, str]:
    """Register an address; return it with its secret, which is not shown again. Raises TooManyWebhooks."""
    secret = new_secret()
    with database.write() as session:
        _alone(session, owner)
        mine = select(func.count()).select_from(WebhookEndpoint).where(WebhookEndpoint.owner == owner)
        if session.scalars(mine).one() >= MOST_ENDPOINTS:
            raise TooManyWebhooks(MOST_ENDPOINTS)
        values = {"id": uuid_utils.compat.uuid7(), "owner": owner, "secret": secret, **subscription.document()}
        endpoint = session.scalars(insert(WebhookEndpoint).values(values).returning(WebhookEndpoint)).one()
        record = _record(endpoint)
    logger.info("webhook_registered", endpoint=str(record.id), owner=owner)
    return record, secret


def _alone(session: Session, owner: str) -> None:
    """One registration of an owner at a time, so that two cannot both be the last that is taken."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"webhooks\n{owner}", 0))))


def list_endpoints(database: Database, *, owner: str) -> list[EndpointRecord]:
    """Read an owner's endpoints, the oldest first."""
    with database.read() as session:
        mine = select(WebhookEndpoint).where(WebhookEndpoint.owner == owner).order_by(WebhookEndpoint.id)
        return [_record(endpoint) for endpoint in session.scalars(mine)]


def get_endpoint(database: Database, endpoint_id: UUID, *, owner: str) -> EndpointRecord:
    """Read one endpoint. Raises WebhookNotFound."""
    with database.read() as session:
        mine = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.owner == owner)
        endpoint = session.scalars(mine).one_or_none()
        if endpoint is None:
            raise WebhookNotFound(endpoint_id)
        return _record(endpoint)


def change(
    database: Database,
    endpoint_id: UUID,
    *,
    owner: str,
    events: Sequence[str] | None = None,
    is_enabled: bool | None = None,
) -> EndpointRecord:
    """Change what an endpoint is told of, and whether it is told at all. Raises WebhookNotFound.

    What waits for an endpoint that is disabled is given up; what happens while it is disabled it is never told.
    """
    values: dict[str, object] = {} if events is None else {"events": list(events)}
    if is_enabled is not None:
        values["disabled_at"] = null() if is_enabled else func.coalesce(WebhookEndpoint.disabled_at, now())
    with database.write() as session:
        statement = update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.owner == owner)
        # A change of nothing finds its row all the same.
        found = session.execute(statement.values(values or {"owner": owner}))
        if not found.rowcount:  # type: ignore[attr-defined]
            raise WebhookNotFound(endpoint_id)
        if is_enabled is False:
            abandon(session, endpoint_id, "the endpoint was disabled")
    return get_endpoint(database, endpoint_id, owner=owner)


def remove(database: Database, endpoint_id: UUID, *, owner: str) -> None:
    """Forget an endpoint and its deliveries. Raises WebhookNotFound."""
    with database.write() as session:
        mine = delete(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.owner == owner)
        if session.scalars(mine.returning(WebhookEndpoint.id)).one_or_none() is None:
            raise WebhookNotFound(endpoint_id)
    logger.info("webhook_removed", endpoint=str(endpoint_id), owner=owner)


def rotate(database: Database, endpoint_id: UUID, *, owner: str) -> str:
    """Give an endpoint a new secret and return it. The earlier one signs too for a while. Raises WebhookNotFound."""
    secret = new_secret()
    with database.write() as session:
        mine = update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.owner == owner)
        rotated = mine.values(
            secret=secret,
            previous_secret=WebhookEndpoint.secret,
            previous_secret_expires_at=now(OVERLAP_SECONDS),
        )
        if session.scalars(rotated.returning(WebhookEndpoint.id)).one_or_none() is None:
            raise WebhookNotFound(endpoint_id)
    logger.info("webhook_secret_rotated", endpoint=str(endpoint_id), owner=owner)
    return secret


def job_secret(database: Database, *, owner: str) -> str:
    """Read what signs the webhooks that an owner's jobs name; it is drawn when it is first wanted."""
    with database.read() as session:
        secret = session.scalar(select(WebhookSecret.secret).where(WebhookSecret.owner == owner))
    return secret or _keep_job_secret(database, owner)


def _keep_job_secret(database: Database, owner: str) -> str:
    with database.write() as session:
        _alone(session, owner)
        kept = session.scalar(select(WebhookSecret.secret).where(WebhookSecret.owner == owner))
        if kept:
            return kept
        secret = new_secret()
        session.execute(insert(WebhookSecret).values(owner=owner, secret=secret))
        return secret


def rotate_job_secret(database: Database, *, owner: str) -> str:
    """Give an owner's jobs a new secret and return it. The earlier one signs too for a while."""
    job_secret(database, owner=owner)
    secret = new_secret()
    with database.write() as session:
        session.execute(
            update(WebhookSecret)
            .where(WebhookSecret.owner == owner)
            .values(
                secret=secret,
                previous_secret=WebhookSecret.secret,
                previous_secret_expires_at=now(OVERLAP_SECONDS),
            )
        )
    logger.info("webhook_secret_rotated", owner=owner)
    return secret


def earlier_secret(row: type[WebhookEndpoint] | type[WebhookSecret]) -> ColumnElement[str | None]:
    """The secret before the last rotation, as long as it still signs."""
    return case((row.previous_secret_expires_at > now(), row.previous_secret), else_=None)


def _record(endpoint: WebhookEndpoint) -> EndpointRecord:
    return EndpointRecord(endpoint.id, endpoint.url, tuple(endpoint.events), endpoint.created_at, endpoint.disabled_at)
