"""Reads a folder of captioned pictures in the Hugging Face `imagefolder` convention, and refuses what cannot be used.

Every refusal names the file. Knows nothing of training.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from darkroom_train.errors import FolderError, PictureError

METADATA = "metadata.jsonl"
MAX_PIXELS = 100_000_000
MIN_PICTURES = 16
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Entry:
    """A line of metadata.jsonl: where a picture lies and what it shows."""

    path: Path
    text: str


@dataclass(frozen=True)
class FolderReading:
    """What a folder gave: pictures (3, size, size), their captions, and what was skipped and why."""

    pictures: list[npt.NDArray[np.uint8]]
    captions: list[str]
    skipped: list[str]


def read_folder(folder: Path, size: int, *, skip_bad: bool = False, at_least: int = MIN_PICTURES) -> FolderReading:
    """Read every picture as `size` square, cropped around its center. Raises PictureError or FolderError.

    With `skip_bad`, what would raise PictureError is left out and listed.
    """
    reading = FolderReading([], [], [])
    for line, entry in _lines(folder):
        try:
            entry = _entry(folder, line, entry) if isinstance(entry, str) else entry
            picture = read_picture(entry.path, size)
        except PictureError as error:
            if not skip_bad:
                raise
            reading.skipped.append(str(error))
            continue
        reading.pictures.append(picture)
        reading.captions.append(entry.text)
    if len(reading.pictures) < at_least:
        skipped = f", {len(reading.skipped)} were skipped" if reading.skipped else ""
        raise FolderError(
            folder, f"has {len(reading.pictures)} usable pictures{skipped}; training needs at least {at_least}"
        )
    return reading


def read_picture(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """Read one picture as uint8 (3, size, size), cropped around its center. Raises PictureError."""
    try:
        with Image.open(path) as image:
            _check(path, image, size)
            upright = ImageOps.exif_transpose(image)
            square = ImageOps.fit(_flattened(upright), (size, size), Image.Resampling.LANCZOS)
    except FileNotFoundError as error:
        raise PictureError(path, "is not there") from error
    except UnidentifiedImageError as error:
        raise PictureError(path, "is no picture that can be read") from error
    except Image.DecompressionBombError as error:
        raise PictureError(path, f"has more than {MAX_PIXELS} pixels") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise PictureError(path, f"is broken: {error}") from error
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _lines(folder: Path) -> Iterator[tuple[int, str | Entry]]:
    path = folder / METADATA
    if not path.is_file():
        raise FolderError(folder, f"has no {METADATA} with a file_name and a text for each picture")
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.strip():
            yield number, line


def _entry(folder: Path, number: int, line: str) -> Entry:
    path = folder / METADATA
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise PictureError(path, f"line {number} is not JSON: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("file_name"), str):
        raise PictureError(path, f"line {number} has no file_name")
    name, text = fields["file_name"], fields.get("text")
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise PictureError(path, f"line {number}: {name} lies outside the folder")
    if not isinstance(text, str) or not text.strip():
        raise PictureError(folder / name, f"has no caption: line {number} of {METADATA} has no text")
    return Entry(folder / name, text.strip())


def _check(path: Path, image: Image.Image, size: int) -> None:
    width, height = image.size
    if getattr(image, "n_frames", 1) > 1:
        raise PictureError(path, "is animated; give one picture a file")
    if image.mode == "CMYK":
        raise PictureError(path, "is CMYK; convert it to RGB, as its colors depend on a printer's profile")
    if image.mode in DEEP_MODES:
        raise PictureError(path, "has 16 or more bits a channel; convert it to 8")
    if width * height > MAX_PIXELS:
        raise PictureError(path, f"has {width}x{height} pixels, more than {MAX_PIXELS}")
    if min(width, height) < size:
        raise PictureError(path, f"is {width}x{height}, smaller than the {size} pixels trained on")


def _flattened(image: Image.Image) -> Image.Image:
    """Give an RGB picture, what is transparent on white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")
