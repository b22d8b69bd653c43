"""What a receiver is told: one line of a job's history, as JSON. The same bytes at every try.

No prompt is in it: whoever may see that can ask for the job. Addresses are relative to the Darkroom that sent it.
"""

import json
from dataclasses import dataclass
from datetime import UTC
from typing import Any
from uuid import UUID

from sqlalchemy import select

from darkroom.db import Database
from darkroom.models import Image, Job, JobEvent, JobState, WebhookEndpoint, WebhookSecret
from darkroom.webhooks.deliveries import Claimed
from darkroom.webhooks.endpoints import job_secret, keys_of
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
    with database.read() as session:
        event = session.scalars(
            select(JobEvent).where(JobEvent.job_id == claimed.job_id, JobEvent.seq == claimed.seq)
        ).one_or_none()
        job = session.get(Job, claimed.job_id)
        if event is None or job is None:
            return None
        images = session.scalars(select(Image).where(Image.job_id == job.id).order_by(Image.n)).all()
        document = _document(event, job, list(images) if event.type == JobState.SUCCEEDED else [])
        if claimed.endpoint_id is None:
            url = job.webhook["url"] if job.webhook else None
            keys = session.execute(select(*keys_of(WebhookSecret)).where(WebhookSecret.owner == claimed.owner)).one()
            found = (url, *keys)
        else:
            mine = select(WebhookEndpoint.url, *keys_of(WebhookEndpoint))
            found = session.execute(mine.where(WebhookEndpoint.id == claimed.endpoint_id)).one_or_none()  # type: ignore[assignment]
    if found is None or found[0] is None:
        return None
    url, *signing = found
    return Message(str(url), json.dumps(document).encode(), tuple(str(key) for key in signing if key))


def _document(event: JobEvent, job: Job, images: list[Image]) -> dict[str, Any]:
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
