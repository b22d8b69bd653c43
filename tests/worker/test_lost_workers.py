"""Workers that die, freeze or are poisoned: their jobs run elsewhere, and every picture appears once."""

import signal
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from darkroom.jobs import JobState
from darkroom.models import Job


def objects_of(s3: Any, job_id: UUID) -> list[str]:
    folder = Path(s3.server.folder) / s3.bucket / "jobs" / str(job_id)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_killed_workers_job_runs_again_in_time_and_its_pictures_appear_once(place: Any, s3: Any) -> None:
    place.settings = place.settings.model_copy(update={"upload_limit_seconds": 5.0})
    killed = place.start_worker()
    job_id = place.submit("first-only:go", num_images=2)
    place.until(lambda: len(objects_of(s3, job_id)) == 2, "the first picture and its thumb are stored")
    place.start_worker()

    killed.end()
    began = time.monotonic()
    place.until(lambda: place.job(job_id).attempt == 2, "it runs again")
    assert time.monotonic() - began < place.settings.lease_seconds + 5
    place.release("go")
    place.until_state(JobState.SUCCEEDED, job_id)

    assert place.events(job_id) == ["queued", "running", "requeued", "running", "succeeded"]
    job = place.job(job_id)
    assert job.crashes == 1
    assert [image.key for image in job.images] == [f"jobs/{job_id}/2/{n}.png" for n in range(2)]
    kept = ["2/0.png", "2/0.thumb.webp", "2/1.png", "2/1.thumb.webp"]
    place.until(lambda: objects_of(s3, job_id) == kept, "the lost attempt's objects are deleted")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_killed_worker_that_is_started_again_takes_its_job_up_again(place: Any) -> None:
    killed = place.start_worker()
    job_id = place.submit("wait:go")
    place.until_developing(job_id)
    killed.end()
    place.start_worker()
    place.release("go")
    place.until_state(JobState.SUCCEEDED, job_id)
    assert place.events(job_id) == ["queued", "running", "requeued", "running", "succeeded"]


def test_a_worker_frozen_past_its_lease_writes_nothing_and_goes_on(place: Any) -> None:
    frozen = place.start_worker(worker_slots=1)
    job_id = place.submit("wait:go")
    place.until_developing(job_id)
    with place.database.write():  # nobody else writes: frozen with SQLite's lock in its hands, it would stop everybody
        frozen.send(signal.SIGSTOP)
    other = place.start_worker(worker_slots=1)
    place.until(lambda: place.job(job_id).attempt == 2, "another worker has it")
    place.release("go")
    place.until_state(JobState.SUCCEEDED, job_id)

    frozen.send(signal.SIGCONT)
    place.until(lambda: "job_was_lost" in frozen.log or "job_dropped" in frozen.log, "it knows that it lost the job")
    job = place.job(job_id)
    assert place.events(job_id) == ["queued", "running", "requeued", "running", "succeeded"]
    assert [image.key for image in job.images] == [f"jobs/{job_id}/2/0.png"]

    other.end()
    after = place.submit()
    place.until_state(JobState.SUCCEEDED, after)
    assert place.journal("developed", worker=frozen)[-1] == "a red house"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_job_that_kills_its_worker_three_times_alone_fails_and_its_neighbors_succeed(place: Any) -> None:
    poison = place.submit("crash")
    innocent = [place.submit(f"innocent {n}", num_inference_steps=60) for n in range(6)]
    num_workers = 0
    while place.job(poison).state is not JobState.FAILED:
        worker = place.start_worker(lease_seconds=1.0, heartbeat_seconds=0.25, worker_slots=4)
        num_workers += 1
        place.until(
            lambda worker=worker: worker.exit_code is not None or place.job(poison).state is JobState.FAILED,
            "the worker is lost, or the job given up",
        )
        assert num_workers < 10
    place.until_state(JobState.SUCCEEDED, *innocent)

    job = place.job(poison)
    assert job.error_code == "worker-lost"
    assert job.crashes == 3
    with place.database.read() as session:
        shared = dict(session.execute(select(Job.id, Job.shared_crashes)).all())
    assert shared[poison] == 2
    assert num_workers == 6  # two shared crashes, three alone, and the one that is left
    assert all(place.job(job_id).crashes == 0 for job_id in innocent)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_stalled_job_is_vouched_for_no_longer_and_its_neighbor_is(place: Any) -> None:
    place.start_worker(stall_limits={"denoise": 1.0, "wedged_extra": 60.0})
    stalled, neighbor = place.submit("stall:go"), place.submit("wait:go")
    place.until(lambda: "requeued" in place.events(stalled), "its lease has run out")
    place.release("go")
    place.until_state(JobState.SUCCEEDED, stalled, neighbor)
    assert place.events(neighbor) == ["queued", "running", "succeeded"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_whose_device_hangs_ends_itself_and_another_takes_over(place: Any) -> None:
    wedged = place.start_worker(stall_limits={"denoise": 0.5, "wedged_extra": 0.5})
    job_id = place.submit("stuck:go")
    place.until(lambda: wedged.exit_code is not None, "it ends itself")
    assert wedged.exit_code == 70
    place.release("go")
    place.start_worker()
    place.until_state(JobState.SUCCEEDED, job_id)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_that_lost_its_device_ends_itself_and_the_job_counts_as_crashed(place: Any) -> None:
    """Put back uncounted, a job that breaks devices would go round the fleet for ever."""
    job_id = place.submit("lose-device")
    for crashes in (0, 1):
        worker = place.start_worker(worker_slots=1, lease_seconds=1.0, heartbeat_seconds=0.25)
        place.until(lambda worker=worker: worker.exit_code is not None, "it ends itself")
        assert worker.exit_code == 70
        assert place.job(job_id).crashes == crashes
