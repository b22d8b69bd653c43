"""Stored pictures in another format. Knows Pillow; stores nothing."""

import threading
from io import BytesIO

from PIL import Image

from darkroom.errors import PictureUnreadable
from darkroom.params import ImageFormat
from darkroom.picture_files import encode
from darkroom.picture_metadata import BROKEN, FORMATS, texts_in

# Of the lossy formats: hardly to be told from the picture, at a fifth of its bytes.
QUALITY = 92
# Each holds a thread, and a decoded picture.
CONVERSIONS_AT_ONCE = 2


class Converter:
    """Converts pictures, a few at a time. Safe to share between threads."""

    def __init__(self) -> None:
        self._turns = threading.BoundedSemaphore(CONVERSIONS_AT_ONCE)

    def convert(self, body: bytes, format: ImageFormat) -> bytes:
        """Encode a picture anew; it says of its making what it said. Raises PictureUnreadable."""
        with self._turns:
            try:
                with Image.open(BytesIO(body), formats=FORMATS) as image:
                    texts = texts_in(image)
                    pixels = image.convert("RGB")
            except BROKEN as error:
                raise PictureUnreadable from error
            pixels.info = {}
            return encode(pixels, format, quality=QUALITY, texts=texts)
