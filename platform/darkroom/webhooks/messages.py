"""What a receiver is told: one line of a job's history, as JSON. The same bytes at every try.

No prompt is in it: whoever may see that can ask for the job. Addresses are relative to the Darkroom that sent it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from darkroom.db import Database
from darkroom.models import Image, Job, JobEvent, JobState, WebhookEndpoint, WebhookSecret
from darkroom.webhooks.deliveries import Claimed
from darkroom.webhooks.endpoints import earlier_secret, job_secret
from darkroom.webhooks.subscriptions import PREFIX, STATE_AFTER


@dataclass(frozen=True)
class Message:
    """One delivery, ready to be signed and sent."""

    url: str
    body: bytes
    keys: tuple[str, ...]


def compose(database: Database, claimed: Claimed) -> Message | None:
    """Read what a delivery says, and to whom. None when its job or its endpoint was deleted in the meantime."""
    if claimed.endpoint_id is None:
        job_secret(database, owner=claimed.owner)  # from now on there is one
    line = select(JobEvent).where(JobEvent.job_id == claimed.job_id, JobEvent.seq == claimed.seq)
    with database.read() as session:
        event = session.scalars(line).one_or_none()
        job = session.get(Job, claimed.job_id)
        receiver = _receiver(session, claimed)
        if event is None or job is None or receiver is None:
            return None
        shown = select(Image).where(Image.job_id == job.id).order_by(Image.n)
        images = session.scalars(shown).all() if event.type == JobState.SUCCEEDED else []
        body = json.dumps(_document(event, job, images)).encode()
    url, *keys = receiver
    return Message(url, body, tuple(key for key in keys if key))


def _receiver(session: Session, claimed: Claimed) -> tuple[str, str, str | None] | None:
    """The address, and the secrets that sign for it now."""
    if claimed.endpoint_id is not None:
        registered = select(WebhookEndpoint.url, WebhookEndpoint.secret, earlier_secret(WebhookEndpoint))
        found = session.execute(registered.where(WebhookEndpoint.id == claimed.endpoint_id)).one_or_none()
        return (found[0], found[1], found[2]) if found else None
    webhook = session.scalar(select(Job.webhook).where(Job.id == claimed.job_id))
    keys = select(WebhookSecret.secret, earlier_secret(WebhookSecret)).where(WebhookSecret.owner == claimed.owner)
    secret, earlier = session.execute(keys).one()
    return (webhook["url"], secret, earlier) if webhook else None


def _document(event: JobEvent, job: Job, images: Iterable[Image]) -> dict[str, Any]:
    path = f"/api/v1/jobs/{job.id}"
    return {
        "type": PREFIX + event.type,
        "timestamp": event.created_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "data": {
            "job_id": str(job.id),
            "seq": event.seq,
            "state": STATE_AFTER.get(event.type, event.type),
            "model": job.model,
            "metadata": job.client_metadata,
            "error": _error(event),
            "images": [_image(job.id, image) for image in images],
            "urls": {"self": path, "page": f"/jobs/{job.id}"},
        },
    }


def _error(event: JobEvent) -> dict[str, Any] | None:
    if event.type != JobState.FAILED:
        return None
    return {"code": event.payload["code"], "message": event.payload["message"]}


def _image(job_id: UUID, image: Image) -> dict[str, Any]:
    url = f"/api/v1/jobs/{job_id}/images/{image.n}"
    return {
        "n": image.n,
        "url": url,
        "thumb_url": f"{url}?variant=thumb",
        "content_type": image.content_type,
        "width": image.width,
        "height": image.height,
        "num_bytes": image.num_bytes,
        "seed": image.seed,
        "sha256": image.sha256,
    }
