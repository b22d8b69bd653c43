"""Pictures that people send, made safe: read as what they are, held to limits before they are decoded, encoded anew.

What leaves here is a PNG of our own making, upright, without a byte of what came with the picture. Stores nothing.
"""

import struct
import threading
from base64 import b64decode
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from darkroom.errors import FieldError, InvalidParameters

MOST_UPLOAD_BYTES = 20 * 1024 * 1024
MOST_UPLOAD_PIXELS = 4096 * 4096
LARGEST_SIDE = 8192
SMALLEST_SIDE = 8
FORMATS = ("PNG", "JPEG", "WEBP")
# A decoded picture takes four bytes a pixel, twice while it is turned: two at once are as many as a small host bears.
DECODERS_AT_ONCE = 2
FAST = 1
THUMB_SIDE = 256

LIMIT = (
    f"a PNG, JPEG or WebP of at most {MOST_UPLOAD_BYTES} bytes and {MOST_UPLOAD_PIXELS} pixels, "
    f"each side from {SMALLEST_SIDE} to {LARGEST_SIDE}"
)
# What Pillow raises for a file that is not what it says: its own, and what its readers let through.
BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, IndexError)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True)
class SafePicture:
    """A PNG that was made here."""

    body: bytes
    width: int
    height: int


class PictureReader:
    """Makes pictures safe, a few at a time. Safe to share between threads."""

    def __init__(self) -> None:
        self._turns = threading.BoundedSemaphore(DECODERS_AT_ONCE)

    def read(self, body: bytes, *, field: str) -> SafePicture:
        """Decode and encode anew. Raises InvalidParameters naming the field it came in."""
        if len(body) > MOST_UPLOAD_BYTES:
            raise refused(field, f"has {len(body)} bytes")
        with self._turns:
            try:
                return _remake(body, field)
            except BOMBS as error:
                raise refused(field, "has too many pixels") from error
            except BROKEN as error:
                raise refused(field, "cannot be read as a picture") from error

    def shrink(self, body: bytes) -> bytes:
        """A small WebP of a picture that was made here."""
        with self._turns, Image.open(BytesIO(body), formats=("PNG",)) as picture:
            picture.thumbnail((THUMB_SIDE, THUMB_SIDE))
            made = BytesIO()
            picture.save(made, "WEBP")
        return made.getvalue()


def _remake(body: bytes, field: str) -> SafePicture:
    with Image.open(BytesIO(body), formats=FORMATS) as opened:
        width, height = opened.size  # of the header: nothing has been decoded
        if width * height > MOST_UPLOAD_PIXELS or max(width, height) > LARGEST_SIDE:
            raise refused(field, f"is {width} x {height} pixels")
        if min(width, height) < SMALLEST_SIDE:
            raise refused(field, f"is {width} x {height} pixels")
        upright = ImageOps.exif_transpose(opened)
    clean = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    clean.info = {}
    made = BytesIO()
    clean.save(made, "PNG", compress_level=FAST)
    return SafePicture(made.getvalue(), *clean.size)


def read_data_url(url: str, *, field: str) -> bytes:
    """Read the bytes of a data: URL; what type it claims does not matter. Raises InvalidParameters."""
    head, comma, text = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise refused(field, "is not a base64 data: URL")
    try:
        return b64decode(text, validate=True)
    except ValueError as error:
        raise refused(field, "is not base64") from error


def refused(field: str, problem: str) -> InvalidParameters:
    """A picture that is not taken."""
    return InvalidParameters([FieldError(field, problem, LIMIT)])
