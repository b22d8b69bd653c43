"""What a picture's file says of its making, in every format, and that it says nothing where that is wanted."""

import io
import queue
import threading
from typing import Any

import numpy as np
import pytest
from claiming import claim_one
from PIL import Image

from darkroom.jobs import Lines
from darkroom.picture_files import MOST_JPEG_EXIF_BYTES
from darkroom.picture_metadata import (
    LONGEST_TEXT,
    PARAMETERS,
    PictureParameters,
    embedded,
    parameters_of,
    read_file,
)
from darkroom_engine import Handle, Request
from darkroom_worker.develop import Developer, Held
from darkroom_worker.images import encode
from darkroom_worker.output import Outlet

MODEL = "darkroom-seeded"
PIXELS = np.random.default_rng(7).integers(0, 256, (64, 96, 3), np.uint8)
HOUSE = PictureParameters(
    prompt="a red house",
    width=96,
    height=64,
    num_inference_steps=20,
    guidance_scale=7.0,
    sampler="euler",
    seed=7,
    model="small",
)
FORMATS: list[Any] = ["png", "webp", "jpeg", "avif"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("prompt", ["a red house", "ein rotes Häuschen, 5 €", "红色的房子 🏠\nNegative prompt: no"])
def test_file_says_how_it_was_made(format: Any, prompt: str) -> None:
    parameters = HOUSE.model_copy(update={"prompt": prompt})
    texts = embedded(parameters)
    found = read_file(encode(PIXELS, format, quality=90, texts=texts))
    assert found.text == texts[PARAMETERS]
    assert not found.parameters.negative_prompt
    assert found.parameters.model_copy(update={"negative_prompt": None}) == parameters


@pytest.mark.parametrize("format", FORMATS)
def test_file_without_texts_says_nothing(format: Any) -> None:
    body = encode(PIXELS, format, quality=90)
    assert (read_file(body).text, read_file(body).parameters) == (None, PictureParameters())


@pytest.mark.parametrize("format", FORMATS)
def test_pixels_are_the_same_with_and_without_texts(format: Any) -> None:
    bodies = [encode(PIXELS, format, quality=90, texts=texts) for texts in ({}, embedded(HOUSE))]
    plain, told = (np.asarray(Image.open(io.BytesIO(body))) for body in bodies)
    assert np.array_equal(plain, told)


@pytest.mark.parametrize(("prompt", "kind"), [("a house, é", b"tEXtparameters\0"), ("房子", b"iTXtparameters\0")])
def test_latin_text_is_a_plain_chunk_and_any_other_an_international_one(prompt: str, kind: bytes) -> None:
    body = encode(PIXELS, "png", quality=90, texts=embedded(HOUSE.model_copy(update={"prompt": prompt})))
    assert kind in body
    assert body.index(kind) < body.index(b"IDAT"), "a reader need not decode the picture to find it"


@pytest.mark.parametrize(("num_over", "is_told"), [(0, True), (1, False)])
def test_text_that_no_jpeg_can_hold_is_left_out(num_over: int, is_told: bool) -> None:
    def exif_bytes(text: str) -> int:
        return len(Image.open(io.BytesIO(encode(PIXELS, "jpeg", quality=90, texts={PARAMETERS: text}))).info["exif"])

    room = (MOST_JPEG_EXIF_BYTES - exif_bytes("")) // 2
    body = encode(PIXELS, "jpeg", quality=90, texts={PARAMETERS: "a" * (room + num_over)})
    assert (read_file(body).text is not None) is is_told
    assert room < LONGEST_TEXT


class Engine:
    """One whose pictures are finished by hand."""

    def __init__(self) -> None:
        self.handles: queue.Queue[Handle] = queue.Queue()

    def submit(self, request: Request) -> Handle:
        handle = Handle(request, request.num_inference_steps)
        self.handles.put(handle)
        return handle


@pytest.mark.parametrize(
    ("by_deployment", "by_job", "is_told"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_job_and_deployment_decide_whether_a_picture_tells(
    place: Any, by_deployment: bool, by_job: bool, is_told: bool
) -> None:
    job_id = place.submit(num_images=2, seed=7, embed_metadata=by_job)
    claim = claim_one(place.database, worker_id="w", models=[MODEL], num_held=0, lease_seconds=60, lines=Lines())
    assert claim
    engine = Engine()
    outlet = Outlet(place.settings)
    developer = Developer(
        engine,
        storage=place.storage,
        outlet=outlet,
        database=place.database,
        embeds_metadata=by_deployment,
    )
    developing = threading.Thread(target=developer.develop, args=(Held(claim),))
    developing.start()
    for _ in range(2):
        engine.handles.get(timeout=10).succeed(PIXELS, "here")
    developing.join(20)
    outlet.close()
    for n in range(2):
        found = read_file(place.storage.get(f"jobs/{job_id}/1/{n}.png"))
        told = parameters_of(claim.params, model=MODEL, seed=7 + n) if is_told else PictureParameters()
        assert found.parameters == told
