"""Pixels to bytes: the picture in the format that was asked for, with what it says of itself; thumbnail, walk, preview.

Knows no storage, and not what the texts mean.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from darkroom import picture_files
from darkroom.params import ImageFormat
from darkroom.picture_files import NO_TEXTS

THUMB_PIXELS = 256
PREVIEW_PIXELS = 128


def encode(
    pixels: npt.NDArray[np.uint8], format: ImageFormat, *, quality: int, texts: Mapping[str, str] = NO_TEXTS
) -> bytes:
    """Encode a picture (H, W, 3), with what it says of its making."""
    return picture_files.encode(Image.fromarray(pixels), format, quality=quality, texts=texts)


def encode_thumb(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode a WebP of a picture (H, W, 3) whose longer side has at most THUMB_PIXELS pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMB_PIXELS, THUMB_PIXELS))
    return _save(image, "webp", quality=80)


def encode_walk(frames: npt.NDArray[np.uint8]) -> bytes:
    """Encode a WebP of frames (F, h, w, 3) side by side, each shrunk to fit THUMB_PIXELS."""
    images = [Image.fromarray(frame) for frame in frames]
    for image in images:
        image.thumbnail((THUMB_PIXELS, THUMB_PIXELS))
    width, height = images[0].size
    strip = Image.new("RGB", (width * len(images), height))
    for place, image in enumerate(images):
        strip.paste(image, (place * width, 0))
    return _save(strip, "webp", quality=80)


def encode_preview(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode a WebP of a preview (h, w, 3), its longer side PREVIEW_PIXELS: a few kB, softened where it had fewer."""
    image = Image.fromarray(pixels)
    scale = PREVIEW_PIXELS / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return _save(image.resize(size, Image.Resampling.BICUBIC), "webp", quality=70)


def _save(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()
