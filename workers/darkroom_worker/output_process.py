"""What the processes do through which pictures leave a worker: encode, and upload until the storage has it.

Each has an interpreter of its own and less priority than the worker, so that the engine's steps wait for neither its
lock nor its core. Knows formats and the storage; knows no engine, no database and no job's fate, and imports none of
them: a process is to start fast.
"""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import numpy.typing as npt
import structlog

from darkroom import logs
from darkroom.config import Settings
from darkroom.errors import StorageError
from darkroom.storage import CONTENT_TYPES, Storage, image_key, thumb_key, walk_key
from darkroom_worker.images import encode, encode_thumb, encode_walk

if TYPE_CHECKING:
    from darkroom.params import ImageFormat

logger = structlog.get_logger(__name__)

NICENESS = 10
PARENT_CHECK_SECONDS = 1.0
RETRY_PAUSE_SECONDS = 1.0
MAX_RETRY_PAUSE_SECONDS = 5.0


@dataclass(frozen=True)
class Place:
    """Where an attempt's objects go."""

    job_id: UUID
    attempt: int


@dataclass(frozen=True)
class Picture:
    """A picture (H, W, 3), and what becomes of it."""

    n: int
    pixels: npt.NDArray[np.uint8]
    format: "ImageFormat"
    quality: int
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Stored:
    """A picture that is stored; `num_bytes` and `sha256` are of its file. The seconds are of file and upload."""

    key: str
    thumb_key: str
    content_type: str
    num_bytes: int
    sha256: str
    compress_seconds: float
    upload_seconds: float


def begin(settings: Settings, parent: int) -> None:
    """Make this process one of a worker's, which ends it; signals to the whole group are the worker's to act on."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)
    logs.configure(settings)
    threading.Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()
    os.nice(NICENESS)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(0)


def store_picture(settings: Settings, place: Place, picture: Picture) -> Stored:
    """Encode a picture and its thumbnail, and upload both. Raises StorageError when the storage stayed away."""
    began = time.monotonic()
    body = encode(picture.pixels, picture.format, quality=picture.quality, texts=picture.texts)
    thumb = encode_thumb(picture.pixels)
    encoded = time.monotonic()
    key = image_key(place.job_id, place.attempt, picture.n, picture.format)
    key_of_thumb = thumb_key(place.job_id, place.attempt, picture.n)
    content_type = CONTENT_TYPES[picture.format]
    _put(settings, {key: (body, content_type), key_of_thumb: (thumb, CONTENT_TYPES["webp"])})
    return Stored(
        key=key,
        thumb_key=key_of_thumb,
        content_type=content_type,
        num_bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        compress_seconds=encoded - began,
        upload_seconds=time.monotonic() - encoded,
    )


def store_walk(settings: Settings, place: Place, frames: npt.NDArray[np.uint8]) -> str:
    """Encode a walk (F, h, w, 3) and upload it; give its key. Raises StorageError when the storage stayed away."""
    key = walk_key(place.job_id, place.attempt)
    _put(settings, {key: (encode_walk(frames), CONTENT_TYPES["webp"])})
    return key


def _put(settings: Settings, objects: Mapping[str, tuple[bytes, str]]) -> None:
    """Upload, again and again while the storage is away: the picture is not developed twice for a hiccup."""
    give_up_at = time.monotonic() + settings.upload_limit_seconds
    pause = RETRY_PAUSE_SECONDS
    left = dict(objects)
    while left:
        key, (body, content_type) = next(iter(left.items()))
        try:
            _storage(settings).put(key, body, content_type=content_type)
            del left[key]
        except StorageError as error:
            if time.monotonic() + pause > give_up_at:
                raise
            logger.warning("upload_waits", key=key, reason=error.reason, seconds=pause)
            time.sleep(pause)
            pause = min(pause * 2, MAX_RETRY_PAUSE_SECONDS)


@cache
def _storage(settings: Settings) -> Storage:
    return Storage(settings)
