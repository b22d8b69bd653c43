"""What leaves a worker beside the picture, and how pictures on their way out make room for the next jobs."""

import io
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from darkroom import fleet
from darkroom.jobs import JobState
from darkroom.previews import PreviewBoard

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def opened(body: bytes) -> Image.Image:
    return Image.open(io.BytesIO(body))


@pytest.mark.parametrize("format", ["png", "webp", "jpeg", "avif"])
def test_a_picture_is_stored_in_the_format_that_was_asked_for(place: Any, format: str) -> None:
    place.start_worker()
    job_id = place.submit(seed=200, format=format)
    place.until_state(JobState.SUCCEEDED, job_id)
    [image] = place.job(job_id).images
    assert (image.key, image.content_type) == (f"jobs/{job_id}/1/0.{format}", f"image/{format}")
    assert (image.fingerprint, image.rows) == ("fake", None)
    with opened(place.storage.get(image.key)) as picture:
        assert (picture.format, picture.size) == (format.upper(), (64, 64))
        assert np.asarray(picture.convert("RGB")).mean() == pytest.approx(200, abs=2)  # three are lossy


def test_a_walk_is_stored_for_the_first_picture_of_a_job_that_asked(place: Any) -> None:
    place.start_worker()
    walked, plain = place.submit(walk=True, num_images=2, seed=200), place.submit()
    place.until_state(JobState.SUCCEEDED, walked, plain)
    assert place.job(walked).walk_key == f"jobs/{walked}/1/walk.webp"
    assert place.job(plain).walk_key is None
    with opened(place.storage.get(place.job(walked).walk_key)) as strip:
        assert (strip.format, strip.size) == ("WEBP", (8 * 64, 64))
        assert np.asarray(strip)[:, -60:-4].mean() == pytest.approx(200, abs=4)  # WebP is lossy


def test_a_picture_on_its_way_out_leaves_its_place_in_the_engine_to_the_next_job(place: Any, s3: Any) -> None:
    first, second = place.submit("wait:go"), place.submit("wait:later")
    place.start_worker(worker_slots=1, poll_seconds=60.0)
    place.until_developing(first)
    s3.pause()
    place.release("go")
    place.until_developing(second)
    assert place.job(first).state is JobState.RUNNING
    s3.resume()
    place.until_state(JobState.SUCCEEDED, first)
    place.release("later")
    place.until_state(JobState.SUCCEEDED, second)


def test_a_worker_whose_pictures_do_not_get_away_claims_no_more(place: Any, s3: Any) -> None:
    place.start_worker(worker_slots=1)
    first, second, third = place.submit("wait:go"), place.submit("wait:later"), place.submit("third")
    place.until_developing(first)
    s3.pause()
    place.release("go")
    place.until_developing(second)
    place.release("later")
    place.until(lambda: len(place.journal("developed")) == 2, "two are developed")
    since = heartbeat_of(place)
    place.until(lambda: heartbeat_of(place) > since + timedelta(seconds=1.6), "it has looked for jobs thrice since")
    assert place.journal("began", worker=place.workers[0]) == ["wait:go", "wait:later"]
    assert place.job(third).state is JobState.QUEUED
    s3.resume()
    place.until_state(JobState.SUCCEEDED, first, second, third)


def heartbeat_of(place: Any) -> datetime:
    [worker] = fleet.list_workers(place.database)
    at: datetime = worker.heartbeat_at
    return at


def test_a_watched_job_is_shown_and_no_other(place: Any, valkey: Any) -> None:
    place.start_worker()
    board = PreviewBoard(valkey.url)
    watched, unwatched = place.submit("wait:go", num_images=2, seed=40), place.submit("wait:go")
    place.until_developing(watched, unwatched)

    def seen(n: int) -> Any:
        board.watch(watched)
        return board.read(watched, n)

    place.until(lambda: seen(0) and seen(1), "both pictures are shown")
    first = seen(1)
    with opened(first.body) as frame:
        assert np.asarray(frame).mean() == pytest.approx(41, abs=3)  # WebP is lossy
    place.until(lambda: seen(1).step > first.step, "a later step is shown")
    place.release("go")
    place.until_state(JobState.SUCCEEDED, watched, unwatched)
    assert board.read(unwatched) is None


def test_pictures_outlive_the_process_that_stores_them(place: Any, s3: Any) -> None:
    worker = place.start_worker()
    job_id = place.submit("wait:go", seed=200)
    place.until_developing(job_id)
    s3.pause()
    place.release("go")
    place.until(lambda: output_processes(worker.pid), "a process stores it")
    place.until(lambda: place.journal("developed"), "it is developed")
    for process in output_processes(worker.pid):
        process.kill()
    s3.resume()
    place.until_state(JobState.SUCCEEDED, job_id)
    assert place.events(job_id) == ["queued", "running", "requeued", "running", "succeeded"]
    assert place.job(job_id).crashes == 0


def test_no_output_process_outlives_a_worker_that_was_killed(place: Any) -> None:
    worker = place.start_worker()
    place.until_state(JobState.SUCCEEDED, place.submit())
    processes = output_processes(worker.pid)
    assert processes
    worker.end()
    place.until(lambda: not any(is_alive(process) for process in processes), "they have ended")


def output_processes(pid: int) -> list[psutil.Process]:
    """The worker's children that store pictures; Python gives them a helper that stores none."""
    return [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
