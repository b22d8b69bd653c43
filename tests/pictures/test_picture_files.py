"""Pictures as files: what they say of their making, and what is left of them without it."""

from io import BytesIO
from typing import get_args

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from darkroom.errors import PictureUnreadable
from darkroom.params import ImageFormat
from darkroom.picture_files import encode, without_texts
from darkroom.picture_metadata import PictureParameters, embedded, read_file

TEXTS = embedded(PictureParameters(prompt="a secret, Größe", num_inference_steps=20, seed=7, width=64, height=48))
PIXELS = Image.radial_gradient("L").resize((64, 48)).convert("RGB")


def decoded(body: bytes) -> bytes:
    with Image.open(BytesIO(body)) as image:
        return image.convert("RGB").tobytes()


@pytest.mark.parametrize("format", get_args(ImageFormat))
def test_nothing_is_left_of_the_texts_and_every_pixel_of_the_picture(format: ImageFormat) -> None:
    told = encode(PIXELS, format, quality=90, texts=TEXTS)
    assert read_file(told).parameters.seed == 7
    untold = without_texts(told)
    assert decoded(untold) == decoded(told)
    assert read_file(untold).parameters.known == {}
    for word in ("secret", "Größe", "darkroom"):
        assert not any(word.encode(encoding) in untold for encoding in ("utf-8", "latin-1", "utf-16-be"))


@pytest.mark.parametrize("format", get_args(ImageFormat))
def test_file_that_says_nothing_stays_as_it_is(format: ImageFormat) -> None:
    body = encode(PIXELS, format, quality=90)
    assert without_texts(body) == body


def test_what_stands_behind_the_end_of_a_png_goes_too() -> None:
    late = PngInfo()
    late.add(b"tEXt", b"Comment\0behind the pixels", after_idat=True)
    file = BytesIO()
    PIXELS.save(file, "PNG", pnginfo=late)
    assert without_texts(file.getvalue() + b"more") == encode_plainly(PIXELS)


def encode_plainly(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("length", [0, 3, 8, 40, 200])
@pytest.mark.parametrize("format", get_args(ImageFormat))
def test_file_that_was_cut_is_none_of_ours(format: ImageFormat, length: int) -> None:
    body = encode(PIXELS, format, quality=90, texts=TEXTS)
    with pytest.raises(PictureUnreadable):
        without_texts(body[:length])
