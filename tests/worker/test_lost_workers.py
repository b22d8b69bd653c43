"""Workers that die, freeze or are poisoned: their jobs run elsewhere, and every picture appears once."""

import os
import signal
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from freezing import freeze
from sqlalchemy import select

from darkroom import events, fleet
from darkroom.jobs import JobState
from darkroom.models import Job, WorkerState
from darkroom_worker.worker import life_sign


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
        freeze(frozen.pid)
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


def test_jobs_whose_engine_is_killed_wait_again_at_once_and_run_once_more(place: Any, s3: Any) -> None:
    """The worker lives on: it reports the crash long before a lease would, and opens another engine."""
    worker = place.start_worker(is_apart=True, lease_seconds=600.0)
    alone = place.submit("wait:go")
    place.until_developing(alone)
    os.kill(place.process_of("wait:go"), signal.SIGKILL)
    place.until(lambda: "requeued" in place.events(alone), "it waits again", seconds=5)
    place.until(lambda: place.job(alone).attempt == 2, "it runs again")
    together = [place.submit(f"wait:go-{n}") for n in range(2)]
    place.until_developing(*together)
    os.kill(place.process_of("wait:go-1"), signal.SIGKILL)
    place.release("go")
    place.release("go-0")
    place.release("go-1")
    place.until_state(
        JobState.SUCCEEDED, alone, *together, seconds=3 * place.patience_seconds
    )  # two engines are started

    assert worker.exit_code is None
    assert place.events(alone) == ["queued", *["running", "requeued"] * 2, "running", "succeeded"]
    for job_id in together:
        assert place.events(job_id) == ["queued", "running", "requeued", "running", "succeeded"]
        assert objects_of(s3, job_id)[-2:] == ["2/0.png", "2/0.thumb.webp"]
    reasons = [event.payload["reason"] for event in events.read(place.database, alone) if event.type == "requeued"]
    assert reasons == ["the engine was lost: its process was ended by SIGKILL"] * 2
    with place.database.read() as session:
        counted = session.execute(select(Job.id, Job.crashes, Job.shared_crashes)).all()
    assert {row.id: (row.crashes, row.shared_crashes) for row in counted} == {
        alone: (1, 1),
        **dict.fromkeys(together, (0, 1)),
    }


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_says_that_it_takes_no_jobs_while_its_engine_is_away(place: Any) -> None:
    worker = place.start_worker(is_apart=True)
    job_id = place.submit("wait:go")
    place.until_developing(job_id)
    (place.folder / "slow").touch()  # the next engine waits for it to go
    os.kill(place.process_of("wait:go"), signal.SIGKILL)
    place.until(lambda: state_of(place, worker) is WorkerState.DRAINING, "it takes no jobs")
    sign = life_sign(place.settings, worker.id)
    before = sign.stat().st_mtime_ns
    (place.folder / "slow").unlink()
    place.until(lambda: state_of(place, worker) is WorkerState.READY, "it takes jobs")
    place.until(lambda: sign.stat().st_mtime_ns > before, "it shows that it lives")
    place.release("go")
    place.until_state(JobState.SUCCEEDED, job_id)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_engine_that_hangs_is_ended_and_its_worker_goes_on(place: Any) -> None:
    worker = place.start_worker(is_apart=True, stall_limits={"denoise": 0.5, "wedged_extra": 0.5})
    job_id = place.submit("stuck:go")
    place.until(lambda: "device_is_stuck" in worker.log, "the worker has seen it")
    place.release("go")
    place.until_state(JobState.SUCCEEDED, job_id)
    assert worker.exit_code is None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_whose_engine_cannot_be_opened_again_ends_when_it_holds_nothing(place: Any) -> None:
    worker = place.start_worker(is_apart=True)
    job_id = place.submit("wait:go")
    place.until_developing(job_id)
    place.release("broken")
    os.kill(place.process_of("wait:go"), signal.SIGKILL)
    place.until(lambda: worker.exit_code is not None, "it ends itself")
    assert worker.exit_code == 70
    assert place.job(job_id).state is JobState.QUEUED


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_drains_with_its_engine(place: Any) -> None:
    worker = place.start_worker(is_apart=True, worker_grace_seconds=20.0)
    job_id = place.submit("wait:go")
    place.until_developing(job_id)
    engine = place.process_of("wait:go")
    worker.send(signal.SIGTERM)
    place.until(lambda: "worker_drains" in worker.log, "it drains")
    place.release("go")
    place.until(lambda: worker.exit_code is not None, "it has ended")
    assert worker.exit_code == 0
    assert place.events(job_id) == ["queued", "running", "succeeded"]
    with pytest.raises(ProcessLookupError):
        os.kill(engine, 0)


def state_of(place: Any, worker: Any) -> WorkerState:
    [record] = [each for each in fleet.list_workers(place.database) if each.id == worker.id]
    return record.state
