"""Developed pictures on their way out: encoded, then uploaded, so many at a time whatever the number of jobs.

Knows formats and the storage; knows no engine and no database.
"""

import hashlib
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import structlog

from darkroom.errors import StaleAttempt, StorageError
from darkroom.jobs import Claim, ImageRecord
from darkroom.storage import CONTENT_TYPES, Storage, image_key, thumb_key, walk_key
from darkroom_engine import Output
from darkroom_worker.images import encode, encode_thumb, encode_walk

logger = structlog.get_logger(__name__)

# Pictures that are encoded or uploaded at one time. Uploads mostly wait.
NUM_THREADS = 8
# Of them, how many are encoded: that takes a core each, and the steps need one too.
NUM_ENCODERS = 2
RETRY_PAUSE_SECONDS = 1.0
MAX_RETRY_PAUSE_SECONDS = 5.0


class Attempt(Protocol):
    """A job in this worker's hands, as far as its output is concerned."""

    claim: Claim
    is_lost: bool


@dataclass(frozen=True)
class Stored:
    """A picture that is stored, and the seconds that its file and its upload took."""

    record: ImageRecord
    compress_seconds: float
    upload_seconds: float


class Outlet:
    """Stores pictures. Each Future raises StorageError when the storage stayed away, StaleAttempt for a lost job."""

    def __init__(self, storage: Storage, *, patience_seconds: float) -> None:
        self._storage = storage
        self._patience_seconds = patience_seconds
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="output")
        self._encoders = threading.BoundedSemaphore(NUM_ENCODERS)

    def store_picture(self, held: Attempt, n: int, output: Output, *, texts: Mapping[str, str]) -> Future[Stored]:
        """Encode picture n and its thumbnail, and upload both."""
        return self._threads.submit(self._store_picture, held, n, output, texts)

    def store_walk(self, held: Attempt, frames: npt.NDArray[np.uint8]) -> Future[str]:
        """Encode a walk (F, h, w, 3) and upload it. Gives its key."""
        return self._threads.submit(self._store_walk, held, frames)

    def _store_picture(self, held: Attempt, n: int, output: Output, texts: Mapping[str, str]) -> Stored:
        claim, params = held.claim, held.claim.params
        with self._encoders:
            began = time.monotonic()
            body = encode(output.image, params.format, quality=params.quality, texts=texts)
            thumb = encode_thumb(output.image)
            encoded = time.monotonic()
        height, width = output.image.shape[:2]
        record = ImageRecord(
            n=n,
            key=image_key(claim.job_id, claim.attempt, n, params.format),
            thumb_key=thumb_key(claim.job_id, claim.attempt, n),
            content_type=CONTENT_TYPES[params.format],
            width=width,
            height=height,
            num_bytes=len(body),
            seed=output.seed,
            sha256=hashlib.sha256(body).hexdigest(),
            fingerprint=output.fingerprint,
            rows=output.rows,
        )
        uploading = time.monotonic()
        self._put(held, {record.key: (body, record.content_type), record.thumb_key: (thumb, CONTENT_TYPES["webp"])})
        return Stored(record, encoded - began, time.monotonic() - uploading)

    def _store_walk(self, held: Attempt, frames: npt.NDArray[np.uint8]) -> str:
        with self._encoders:
            body = encode_walk(frames)
        key = walk_key(held.claim.job_id, held.claim.attempt)
        self._put(held, {key: (body, CONTENT_TYPES["webp"])})
        return key

    def _put(self, held: Attempt, objects: Mapping[str, tuple[bytes, str]]) -> None:
        """Upload, again and again while the storage is away: the picture is not developed twice for a hiccup."""
        give_up_at = time.monotonic() + self._patience_seconds
        pause = RETRY_PAUSE_SECONDS
        for key, (body, content_type) in objects.items():
            while not self._try_to_put(held, key, body, content_type, retry=time.monotonic() + pause <= give_up_at):
                time.sleep(pause)
                pause = min(pause * 2, MAX_RETRY_PAUSE_SECONDS)

    def _try_to_put(self, held: Attempt, key: str, body: bytes, content_type: str, *, retry: bool) -> bool:
        if held.is_lost:
            raise StaleAttempt(held.claim.job_id, held.claim.attempt)
        try:
            self._storage.put(key, body, content_type=content_type)
        except StorageError as error:
            if not retry:
                raise
            logger.warning("upload_waits", job_id=str(held.claim.job_id), reason=error.reason)
            return False
        return True
