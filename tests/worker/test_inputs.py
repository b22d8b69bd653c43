"""A job's init image and mask come out of the storage at its size; what is not there ends the job with a reason."""

import io
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image

from darkroom.jobs import JobState
from darkroom.jobs.inputs import add_upload
from darkroom.params import GenerationParams
from darkroom_worker.errors import InputUnreadable
from darkroom_worker.inputs import fetch_inputs

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def picture(mode: str, size: tuple[int, int], color: Any, *, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, format, **options)
    return buffer.getvalue()


def params(**fields: Any) -> GenerationParams:
    values = {"prompt": "p", "width": 64, "height": 96, "num_inference_steps": 2, "guidance_scale": 1.0}
    return GenerationParams(**{"sampler": "euler", "seed": 0} | values | fields)


class Shelf:
    """A storage in memory."""

    def __init__(self, **objects: bytes) -> None:
        self._objects = objects

    def get(self, key: str) -> bytes:
        return self._objects[key]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA"])
@pytest.mark.parametrize("size", [(64, 96), (200, 50), (8, 8)])
def test_a_picture_is_stretched_to_the_jobs_size(mode: str, size: tuple[int, int]) -> None:
    color: Any = 255 if mode in {"L", "P"} else (255, 255) if mode == "LA" else (255,) * len(mode)
    shelf: Any = Shelf(init=picture("L" if mode == "P" else mode, size, color))
    inputs = fetch_inputs(shelf, params(init_image="init"))
    assert inputs.image is not None
    assert (inputs.image.shape, inputs.image.dtype) == ((96, 64, 3), np.uint8)
    assert inputs.image.min() == 255
    assert inputs.mask is None


def test_a_mask_is_gray_and_of_the_same_size() -> None:
    mask = Image.new("L", (64, 96), 0)
    mask.paste(255, (0, 0, 32, 96))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    shelf: Any = Shelf(init=picture("RGB", (64, 96), "red"), mask=buffer.getvalue())
    inputs = fetch_inputs(shelf, params(init_image="init", mask="mask"))
    assert inputs.mask is not None
    assert (inputs.mask.shape, inputs.mask.dtype) == ((96, 64), np.uint8)
    assert (inputs.mask[:, :32].min(), inputs.mask[:, 32:].max()) == (255, 0)


def test_a_picture_is_turned_as_its_camera_says() -> None:
    sideways = Image.new("RGB", (96, 64), "black")
    sideways.paste((255, 255, 255), (0, 0, 48, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn it by 90 degrees
    buffer = io.BytesIO()
    sideways.save(buffer, "JPEG", exif=exif.tobytes(), quality=95)
    shelf: Any = Shelf(init=buffer.getvalue())
    inputs = fetch_inputs(shelf, params(init_image="init"))
    assert inputs.image is not None
    assert (inputs.image[:40].min(), inputs.image[56:].max()) == (255, 0)


@pytest.mark.parametrize("body", [b"", b"no picture", picture("RGB", (64, 64), "red")[:60], b"%PDF-1.4"])
def test_what_is_no_picture_is_named(body: bytes) -> None:
    shelf: Any = Shelf(init=body)
    with pytest.raises(InputUnreadable, match="init_image"):
        fetch_inputs(shelf, params(init_image="init"))


def upload(place: Any, body: bytes | None) -> str:
    """Give a job's owner an upload; its object is lost where there is no body."""
    upload_id = uuid4()
    key = f"uploads/ann/{upload_id}.png"
    size = {"width": 64, "height": 64, "num_bytes": 100}
    add_upload(place.database, upload_id, owner="ann", key=key, life_seconds=3600, **size)
    if body is not None:
        place.storage.put(key, body, content_type="image/png")
    return key


@on_sqlite
def test_the_picture_that_a_job_begins_from_reaches_the_engine(place: Any) -> None:
    place.start_worker()
    job_id = place.submit(init_image=upload(place, picture("RGB", (128, 32), (250, 20, 90))), strength=0.5)
    place.until_state(JobState.SUCCEEDED, job_id)
    job = place.job(job_id)
    with Image.open(io.BytesIO(place.storage.get(job.images[0].key))) as developed:
        assert developed.getpixel((30, 30)) == (250, 20, 90)
    assert "fetch" in job.timings


@on_sqlite
def test_a_picture_that_is_gone_fails_its_job_and_no_other(place: Any) -> None:
    place.start_worker()
    gone = place.submit(init_image=upload(place, None))
    broken = place.submit(init_image=upload(place, b"no picture"))
    place.until_state(JobState.FAILED, gone, broken)
    after = place.submit()
    place.until_state(JobState.SUCCEEDED, after)
    assert [place.job(job_id).error_code for job_id in (gone, broken)] == ["input-missing", "input-unreadable"]
    assert place.job(gone).error_message == "init_image: the picture is no longer stored"
