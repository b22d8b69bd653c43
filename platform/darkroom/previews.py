"""Previews of running jobs, on their way from worker to watcher in Redis. Knows neither engine nor HTTP.

Lossy, and free while nobody watches: a worker asks which of its jobs are watched before it makes any.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from redis import Redis

from darkroom.brokers import LossyRedis

WATCH_KEY = "darkroom:watch:{job_id}"
# A stream that is listened to watches again at half of it.
WATCH_SECONDS = 10
PREVIEW_KEY = "darkroom:preview:{job_id}:{n}"
PREVIEW_LIFE_SECONDS = 60
# A frame of noise at the previews' size has a fifth of it.
MAX_PREVIEW_BYTES = 65_536


@dataclass(frozen=True)
class Preview:
    """What picture n of a job looked like after a step: `body` is a small WebP."""

    n: int
    step: int
    body: bytes


class PreviewBoard:
    """Who watches which job, and the latest preview of each. Bounded in time, silent when Redis is away."""

    def __init__(self, redis_url: str) -> None:
        self._redis = LossyRedis(redis_url)

    def watch(self, job_id: UUID) -> None:
        """Ask for a job's previews for the next WATCH_SECONDS."""
        self._redis.ask(lambda client: client.set(WATCH_KEY.format(job_id=job_id), 1, ex=WATCH_SECONDS), None)

    def watched(self, job_ids: Collection[UUID]) -> set[UUID]:
        """Say which of these jobs somebody watches, in one round trip; none when Redis does not answer in time."""
        if not job_ids:
            return set()
        keys = [WATCH_KEY.format(job_id=job_id) for job_id in job_ids]
        nobody: list[bytes | str | None] = [None] * len(keys)
        marks = self._redis.ask(lambda client: client.mget(keys), nobody)
        return {job_id for job_id, mark in zip(job_ids, marks, strict=True) if mark is not None}

    def publish(self, job_id: UUID, n: int, *, step: int, body: bytes) -> None:
        """Show a preview of picture n, in place of the one before."""
        header = json.dumps({"n": n, "step": step}).encode()

        def write(client: Redis) -> None:
            client.set(PREVIEW_KEY.format(job_id=job_id, n=n), header + b"\n" + body, ex=PREVIEW_LIFE_SECONDS)

        self._redis.ask(write, None)

    def read(self, job_id: UUID, n: int = 0) -> Preview | None:
        """Read the latest preview of picture n, or None: there is none, it is rubbish, or Redis does not answer."""
        raw: Any = self._redis.ask(lambda client: client.get(PREVIEW_KEY.format(job_id=job_id, n=n)), None)
        return _preview(raw) if raw else None


def _preview(raw: bytes) -> Preview | None:
    """Take from Redis what has the shape of a preview, and nothing else: whoever can write there has no power here."""
    header, _, body = raw.partition(b"\n")
    try:
        found = json.loads(header)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(type(found.get(name)) is int for name in ("n", "step")):
        return None
    is_webp = body[:4] == b"RIFF" and body[8:12] == b"WEBP"
    return Preview(found["n"], found["step"], body) if is_webp and len(body) <= MAX_PREVIEW_BYTES else None
