"""Every way a job can end, or not end, in a worker that stays alive."""

import io
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from darkroom import events, jobs
from darkroom.jobs import JobState

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgres = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)


@on_sqlite
def test_pictures_and_thumbs_are_stored_as_their_rows_say(place: Any) -> None:
    place.start_worker()
    job_id = place.submit(num_images=3, width=64, height=96, seed=7, format="webp", quality=80)
    place.until_state(JobState.SUCCEEDED, job_id)
    job = place.job(job_id)
    assert [(image.n, image.seed) for image in job.images] == [(0, 7), (1, 8), (2, 9)]
    for image in job.images:
        body = place.storage.get(image.key)
        with (
            Image.open(io.BytesIO(body)) as picture,
            Image.open(io.BytesIO(place.storage.get(image.thumb_key))) as thumb,
        ):
            assert (picture.format, picture.size, thumb.format) == ("WEBP", (64, 96), "WEBP")
        assert (image.num_bytes, image.width, image.height) == (len(body), 64, 96)
    assert set(job.timings) == {"wait", "denoise", "compress", "upload"}


@on_sqlite
def test_a_canceled_job_leaves_the_engine_at_the_redis_message(place: Any, valkey: Any) -> None:
    """Long before the heartbeat, and also after somebody wrote rubbish into the channel."""
    place.start_worker(lease_seconds=120.0, heartbeat_seconds=60.0)
    board = events.ProgressBoard(place.settings.redis_url)
    canceled, neighbor = place.submit("wait:never", num_images=2), place.submit("wait:go")
    place.until_developing(canceled, neighbor)
    with valkey.client() as client:
        client.publish(events.CANCEL_CHANNEL, "no id at all")
    jobs.cancel(place.database, canceled, owner="ann")
    board.announce_cancel(canceled)
    place.until(lambda: place.journal("dropped") == ["wait:never"] * 2, "its requests are dropped")
    place.release("go")
    place.until_state(JobState.SUCCEEDED, neighbor)
    assert place.events(canceled) == ["queued", "running", "canceled"]


@on_sqlite
def test_a_canceled_job_leaves_the_engine_at_the_heartbeat_without_redis(place: Any, valkey: Any) -> None:
    place.start_worker()
    canceled, neighbor = place.submit("wait:never"), place.submit("wait:go")
    place.until_developing(canceled, neighbor)
    valkey.stop()
    jobs.cancel(place.database, canceled, owner="ann")
    place.until(lambda: place.journal("dropped") == ["wait:never"], "its request is dropped")
    place.release("go")
    place.until_state(JobState.SUCCEEDED, neighbor)


def test_a_job_whose_deadline_passes_while_it_runs_expires_and_leaves_the_engine(place: Any) -> None:
    place.start_worker()
    late, neighbor = place.submit("wait:never", num_images=2, ttl_seconds=1.5), place.submit("wait:go")
    place.until_developing(late, neighbor)
    place.until_state(JobState.EXPIRED, late)
    place.until(lambda: len(place.journal("overdue") + place.journal("dropped")) == 2, "its requests are dropped")
    place.release("go")
    place.until_state(JobState.SUCCEEDED, neighbor)
    assert place.events(late) == ["queued", "running", "expired"]


@on_sqlite
def test_a_request_that_the_engine_refuses_fails_its_job_with_the_reason(place: Any) -> None:
    worker = place.start_worker()
    failing, neighbor = place.submit("fail"), place.submit("wait:go")
    place.until_state(JobState.FAILED, failing)
    job = place.job(failing)
    assert (job.error_code, job.error_message) == ("develop-failed", "the latents are not a number")
    place.release("go")
    place.until_state(JobState.SUCCEEDED, neighbor)
    assert worker.exit_code is None


@on_sqlite
def test_what_nobody_expected_fails_the_job_as_internal_and_the_worker_goes_on(place: Any) -> None:
    worker = place.start_worker()
    broken = place.submit("break")
    place.until_state(JobState.FAILED, broken)
    assert place.job(broken).error_code == "internal"
    assert "nobody expected this" not in place.job(broken).error_message  # that is for the log
    after = place.submit()
    place.until_state(JobState.SUCCEEDED, after)
    assert worker.exit_code is None


@on_sqlite
def test_a_short_outage_of_the_storage_develops_nothing_twice(place: Any, s3: Any) -> None:
    place.start_worker()
    job_id = place.submit("wait:go", num_images=2)
    place.until_developing(job_id)
    s3.stop()
    place.release("go")
    place.until(lambda: "upload_waits" in place.workers[0].log, "the upload waits")
    s3.start()
    place.until_state(JobState.SUCCEEDED, job_id)
    assert place.events(job_id) == ["queued", "running", "succeeded"]
    assert len(place.journal("developed")) == 2


@on_sqlite
def test_a_long_outage_of_the_storage_puts_jobs_back_and_pauses_claims_until_it_is_over(place: Any, s3: Any) -> None:
    worker = place.start_worker(upload_limit_seconds=1.5)
    job_id = place.submit("first-only:go", num_images=2)
    place.until_developing(job_id)
    s3.stop()
    place.until(lambda: place.events(job_id)[-1] == "requeued", "it waits again")
    place.until(lambda: "claims_pause" in worker.log, "claims pause")
    place.until(lambda: place.journal("dropped") == ["first-only:go"], "its other request left the engine")
    after = place.submit()
    place.until(lambda: "loop_waits" in worker.log, "the storage was asked for, in vain")
    assert [place.job(each).state for each in (job_id, after)] == [JobState.QUEUED] * 2
    s3.start()
    place.release("go")
    place.until_state(JobState.SUCCEEDED, job_id, after)
    assert place.events(job_id) == ["queued", "running", "requeued", "running", "succeeded"]
    assert place.job(job_id).crashes == 0


@on_postgres
def test_an_outage_of_the_database_costs_no_work(place: Any, postgres: Any) -> None:
    """Longer than a lease, begun while one job develops, and over after its picture is done."""
    worker = place.start_worker()
    other = place.start_worker(worker_slots=1)
    job_ids = [place.submit(f"wait:go-{n}") for n in range(3)]
    place.until_developing(*job_ids)
    postgres.stop()
    place.release("go-0")
    place.release("go-1")
    place.until(lambda: len(place.journal("developed")) >= 2, "two are developed")
    place.until(lambda: "commit_waits" in worker.log + other.log, "a commit waits")
    # Past the lease, so that every lease has run out when the database is back.
    place.until(lambda: (worker.log + other.log).count("loop_waits") > 8, "the heart beat in vain for a while")
    postgres.start()
    place.release("go-2")
    place.until_state(JobState.SUCCEEDED, *job_ids)
    for job_id in job_ids:
        assert place.events(job_id) == ["queued", "running", "succeeded"]
    assert len(place.journal("developed")) == 3
    assert [each.exit_code for each in (worker, other)] == [None, None]


@on_postgres
def test_a_worker_drains_in_time_without_its_database(place: Any, postgres: Any) -> None:
    worker = place.start_worker(worker_grace_seconds=1.0)
    job_id = place.submit("wait:never")
    place.until_developing(job_id)
    postgres.stop()
    worker.send(signal.SIGTERM)
    place.until(lambda: worker.exit_code is not None, "it has ended", seconds=15)
    postgres.start()
    assert worker.exit_code == 0
    place.start_worker()
    place.until(lambda: place.job(job_id).attempt == 2, "the job was left to its lease, and runs again")


@on_sqlite
def test_a_worker_shows_that_it_lives_while_its_database_is_locked(place: Any) -> None:
    """The sign is for the one who would restart the worker: a restart helps no database."""
    place.start_worker()
    signs = lambda: list((Path(place.settings.home) / "run").glob("worker-*.alive"))  # noqa: E731
    place.until(signs, "it has shown a sign")
    with place.database.write():
        before = signs()[0].stat().st_mtime_ns
        place.until(lambda: signs()[0].stat().st_mtime_ns > before, "it shows another", seconds=5)
