"""The pictures that a job begins from, out of the storage and at the job's size. Knows Pillow; knows no engine.

They are stretched to width and height, as diffusers' pipelines and A1111's "just resize" do; whoever wants them cropped
sends them cropped.
"""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from darkroom.errors import ObjectNotFound
from darkroom.params import GenerationParams
from darkroom.storage import Storage
from darkroom_worker.errors import InputMissing, InputUnreadable

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF")


@dataclass(frozen=True)
class Inputs:
    """The init image (height, width, 3) and the mask (height, width), both uint8, of a job that has them."""

    image: npt.NDArray[np.uint8] | None = None
    mask: npt.NDArray[np.uint8] | None = None


def fetch_inputs(storage: Storage, params: GenerationParams) -> Inputs:
    """Read what a job begins from. Raises InputMissing, InputUnreadable or StorageError."""
    return Inputs(
        image=_fetch(storage, params, "init_image", params.init_image, mode="RGB"),
        mask=_fetch(storage, params, "mask", params.mask, mode="L"),
    )


def _fetch(
    storage: Storage, params: GenerationParams, field: str, key: str | None, *, mode: str
) -> npt.NDArray[np.uint8] | None:
    if key is None:
        return None
    try:
        body = storage.get(key)
    except ObjectNotFound as error:
        raise InputMissing(field) from error
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as stored:
            image = ImageOps.exif_transpose(stored).convert(mode)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise InputUnreadable(field) from error
    return np.asarray(image.resize((params.width, params.height), Image.Resampling.LANCZOS))
