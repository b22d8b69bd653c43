"""Pixels to bytes: the picture in the format that was asked for, with what it says of itself; thumbnail, walk, preview.

Knows no storage, and not what the texts mean.
"""

import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from darkroom.picture_metadata import EXIF_IFD, PARAMETERS, USER_COMMENT, user_comment

THUMB_PIXELS = 256
PREVIEW_PIXELS = 128
# Level 1 costs a fifth of the default's time and a sixth more bytes (measured at 1024 x 1024).
PNG_LEVEL = 1
# What one segment of a JPEG holds.
MOST_JPEG_EXIF_BYTES = 65533
NO_TEXTS: Mapping[str, str] = MappingProxyType({})


def encode(
    pixels: npt.NDArray[np.uint8],
    format: Literal["png", "webp", "jpeg", "avif"],
    *,
    quality: int,
    texts: Mapping[str, str] = NO_TEXTS,
) -> bytes:
    """Encode a picture (H, W, 3). `quality` is of the lossy formats.

    Texts become chunks of a PNG; of the others, EXIF keeps the `parameters`, unless they are too long for a JPEG.
    """
    image = Image.fromarray(pixels)
    if format == "png":
        return _save(image, format, compress_level=PNG_LEVEL, pnginfo=_chunks(texts))
    exif = _exif(texts.get(PARAMETERS))
    fits = format != "jpeg" or len(exif) <= MOST_JPEG_EXIF_BYTES
    return _save(image, format, quality=quality, exif=exif if fits else b"")


def _chunks(texts: Mapping[str, str]) -> PngInfo:
    chunks = PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)  # tEXt for Latin, iTXt for all else
    return chunks


def _exif(parameters: str | None) -> bytes:
    if parameters is None:
        return b""
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = user_comment(parameters)
    return exif.tobytes()


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
