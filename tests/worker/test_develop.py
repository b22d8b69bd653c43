"""A claim becomes engine requests, pictures become bytes, a held job says how far it is."""

import io
import pickle
import queue
import threading
import time
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from claiming import claim_one
from PIL import Image

from darkroom import jobs
from darkroom.errors import ObjectNotFound
from darkroom.jobs import Claim, JobClass, JobState, Lines
from darkroom.params import GenerationParams
from darkroom.previews import MAX_PREVIEW_BYTES
from darkroom_engine.errors import RequestCanceled
from darkroom_engine.request import Handle, Request
from darkroom_worker.develop import UPLOAD, WALK_FRAMES, Developer, Held, to_requests
from darkroom_worker.images import (
    PREVIEW_PIXELS,
    THUMB_PIXELS,
    encode,
    encode_preview,
    encode_thumb,
    encode_walk,
)
from darkroom_worker.output import Outlet

FIELDS: dict[str, Any] = {
    "prompt": "a red house",
    "negative_prompt": "fog",
    "width": 64,
    "height": 96,
    "num_inference_steps": 5,
    "guidance_scale": 3.0,
    "sampler": "euler",
    "seed": 2**32 - 2,
    "num_images": 2,
    "format": "png",
    "quality": 90,
    "embed_metadata": True,
    "init_image": None,
    "mask": None,
    "strength": None,
    "loras": (),
    "exact": False,
    "walk": False,
}
OTHER: dict[str, Any] = {
    "prompt": "a green boat",
    "negative_prompt": "rain",
    "width": 128,
    "height": 128,
    "num_inference_steps": 9,
    "guidance_scale": 1.0,
    "sampler": "ddim",
    "seed": 3,
    "num_images": 4,
    "strength": 0.5,
    "loras": ({"name": "ink", "weight": 0.5},),
    "exact": True,
    "walk": True,
}
# What becomes of them in each of a job's two requests, where that is not what they are.
IN_THE_ENGINE: dict[str, tuple[str, list[Any]]] = {
    "loras": ("loras", [(("ink", 0.5),)] * 2),
    "exact": ("is_exact", [True, True]),
    "walk": ("num_walk_frames", [WALK_FRAMES, 0]),
}
# They concern the bytes of a picture, not its development: test_endings and test_embedding see them arrive.
OF_THE_FILE = {"embed_metadata", "format", "quality"}
# They are read from the storage first: test_inputs.
FETCHED = {"init_image", "mask"}


def claim_of(seconds_left: float = 60.0, job_class: JobClass = JobClass.BULK, **fields: Any) -> Claim:
    return Claim(
        job_id=uuid4(),
        owner="ann",
        model="a-model",
        job_class=job_class,
        params=GenerationParams(**FIELDS | fields),
        attempt=1,
        is_solo=False,
        seconds_left=seconds_left,
    )


def without_deadline(requests: list[Request]) -> list[dict[str, Any]]:
    return [{name: value for name, value in vars(request).items() if name != "deadline"} for request in requests]


def test_every_parameter_is_known_here() -> None:
    """A new one belongs into to_requests (and then into OTHER), into OF_THE_FILE, or into FETCHED."""
    assert set(GenerationParams.model_fields) == set(FIELDS) == set(OTHER) | OF_THE_FILE | FETCHED


@pytest.mark.parametrize("field", sorted(OTHER))
def test_every_parameter_reaches_the_engine(field: str) -> None:
    before, after = to_requests(claim_of()), to_requests(claim_of(**{field: OTHER[field]}))
    assert without_deadline(before) != without_deadline(after)
    if field not in {"seed", "num_images"}:
        name, values = IN_THE_ENGINE.get(field, (field, [OTHER[field]] * 2))
        assert [getattr(request, name) for request in after] == values


def test_each_picture_is_a_request_with_a_seed_of_its_own() -> None:
    requests = to_requests(claim_of(num_images=4))
    assert [request.seed for request in requests] == [2**32 - 2, 2**32 - 1, 0, 1]
    assert {request.model for request in requests} == {"a-model"}


@pytest.mark.parametrize("job_class", list(JobClass))
def test_the_class_becomes_the_priority(job_class: JobClass) -> None:
    assert {request.priority for request in to_requests(claim_of(job_class=job_class))} == {int(job_class)}


def test_the_deadline_is_put_on_this_machines_clock() -> None:
    before = time.monotonic()
    deadlines = {request.deadline for request in to_requests(claim_of(seconds_left=60))}
    assert len(deadlines) == 1
    assert before + 60 <= deadlines.pop() <= time.monotonic() + 60


def noise(width: int, height: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("format", ["png", "webp", "jpeg", "avif"])
def test_a_picture_decodes_at_its_size_in_every_format(format: Any) -> None:
    pixels = noise(96, 64)
    with Image.open(io.BytesIO(encode(pixels, format, quality=90))) as image:
        assert (image.format, image.size, image.mode) == (format.upper(), (96, 64), "RGB")
        if format == "png":
            assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("format", ["webp", "jpeg", "avif"])
def test_quality_counts_in_the_lossy_formats(format: Any) -> None:
    assert len(encode(noise(96, 64), format, quality=95)) > len(encode(noise(96, 64), format, quality=20))


@pytest.mark.parametrize(
    ("size", "thumb_size"),
    [((512, 512), (256, 256)), ((1024, 256), (256, 64)), ((64, 512), (32, 256)), ((64, 96), (64, 96))],
)
def test_a_thumb_is_a_webp_whose_longer_side_fits(size: tuple[int, int], thumb_size: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(encode_thumb(noise(*size)))) as thumb:
        assert (thumb.format, thumb.size) == ("WEBP", thumb_size)
        assert max(thumb.size) <= THUMB_PIXELS


@pytest.mark.parametrize(
    ("size", "preview_size"),
    [((64, 64), (128, 128)), ((16, 8), (128, 64)), ((24, 96), (32, 128)), ((200, 1), (128, 1))],
)
def test_a_preview_is_a_small_webp_of_one_size(size: tuple[int, int], preview_size: tuple[int, int]) -> None:
    body = encode_preview(noise(*size))
    with Image.open(io.BytesIO(body)) as preview:
        assert (preview.format, preview.size, max(preview.size)) == ("WEBP", preview_size, PREVIEW_PIXELS)
    assert len(body) < MAX_PREVIEW_BYTES / 4


def test_a_walk_is_a_strip_of_its_frames() -> None:
    frames = np.stack([np.full((300, 150, 3), level, np.uint8) for level in (0, 100, 200)])
    with Image.open(io.BytesIO(encode_walk(frames))) as strip:
        assert (strip.format, strip.size) == ("WEBP", (3 * 128, 256))
        levels = [np.asarray(strip)[:, place * 128 + 20 : place * 128 + 108].mean() for place in range(3)]
    assert levels == pytest.approx([0, 100, 200], abs=4)  # WebP is lossy


def held_with(num_images: int) -> tuple[Held, list[Handle]]:
    held = Held(claim_of(num_images=num_images))
    held.handles = [Handle(request, num_steps=5) for request in to_requests(held.claim)]
    return held, held.handles


def test_progress_is_over_all_pictures_of_a_job() -> None:
    held, (first, second) = held_with(2)
    assert held.progress == {"stage": "waiting", "step": 0, "num_steps": 10}
    first.advance("denoise", 3)
    second.advance("denoise", 1)
    assert held.progress == {"stage": "denoise", "step": 4, "num_steps": 10}


def test_progress_names_the_upload_once_every_picture_is_developed() -> None:
    held, handles = held_with(2)
    for handle in handles:
        handle.advance("decode", 5)
        handle.succeed(noise(64, 96), "here")
    held.enter(UPLOAD)
    assert held.progress == {"stage": UPLOAD, "step": 10, "num_steps": 10}


def test_a_job_of_which_nothing_was_submitted_yet_waits() -> None:
    assert Held(claim_of()).progress == {"stage": "waiting", "step": 0, "num_steps": 0}
    assert Held(claim_of()).stage_age_seconds[0] == "waiting"


def test_a_jobs_stage_is_as_old_as_its_latest_move() -> None:
    held, (first, second) = held_with(2)
    first.advance("encode", 0)
    second.advance("denoise", 1)
    stage, age_seconds = held.stage_age_seconds
    assert stage == "denoise"
    assert age_seconds == pytest.approx(time.monotonic() - second.progress.changed_at, abs=0.5)


def test_a_picture_that_is_done_does_not_make_its_neighbor_look_alive() -> None:
    held, (first, second) = held_with(2)
    second.advance("encode", 0)
    first.fail(RequestCanceled())
    assert held.stage_age_seconds[0] == "encode"


def test_a_lost_job_asks_the_engine_to_drop_every_request() -> None:
    held, handles = held_with(3)
    held.lose()
    assert held.is_lost
    assert all(handle.is_canceled for handle in handles)


class Engine:
    """One whose pictures are finished by hand."""

    def __init__(self) -> None:
        self.handles: queue.Queue[Handle] = queue.Queue()

    def submit(self, request: Request) -> Handle:
        handle = Handle(request, request.num_inference_steps)
        self.handles.put(handle)
        return handle


def test_an_error_of_the_storage_crosses_processes_as_it_is() -> None:
    error = pickle.loads(pickle.dumps(ObjectNotFound("put", key="a/key", reason="it is away")))
    assert (type(error), error.operation, error.key, error.reason) == (ObjectNotFound, "put", "a/key", "it is away")


def test_a_picture_of_an_attempt_that_was_lost_meanwhile_is_refused(place: Any) -> None:
    """It is stored, and stays unseen until it is deleted with the job's end."""
    engine, job_id = Engine(), place.submit()

    def claim(worker_id: str) -> Claim:
        claim = claim_one(
            place.database, worker_id=worker_id, models=["darkroom-seeded"], num_held=0, lease_seconds=60, lines=Lines()
        )
        assert claim
        return claim

    outlet = Outlet(place.settings)
    developer = Developer(engine, storage=place.storage, outlet=outlet, database=place.database, embeds_metadata=True)
    held = Held(claim("first"))
    developing = threading.Thread(target=developer.develop, args=(held,))
    developing.start()
    handle = engine.handles.get(timeout=10)
    jobs.requeue(place.database, job_id, reason="the worker was lost")
    second = claim("second")
    handle.succeed(noise(64, 64), "here")
    developing.join(20)
    outlet.close()

    job = place.job(job_id)
    assert (job.state, job.attempt, job.images) == (JobState.RUNNING, second.attempt, ())
    assert place.storage.get(f"jobs/{job_id}/1/0.png")
