"""The loop of what time does, on a real storage: what it deletes, in which order, what it leaves for next time."""

from uuid import UUID

import pytest

from darkroom import fleet, jobs
from darkroom.config import Settings
from darkroom.errors import DatabaseUnavailable, JobNotFound, ObjectNotFound, StorageError
from darkroom.fleet import WorkerFacts
from darkroom.jobs import Claim, JobState
from darkroom.stack.servers import wait_until
from darkroom.storage import Storage, attempt_keys
from darkroom.sweeper import Sweeper

DAY = 86400.0
LONG = 3600.0


class Sweep:
    """A sweeper, its storage, and the jobs it put back."""

    def __init__(self, settings: Settings, database) -> None:
        self.settings = settings
        self.storage = Storage(settings)
        self.waiting: list[tuple[UUID, str]] = []
        self.sweeper = Sweeper(
            settings,
            database=database,
            storage=self.storage,
            on_waiting=lambda job_id, *, model: self.waiting.append((job_id, model)),
        )

    def chores(self) -> None:
        """Sweep once, and do the chores."""
        self.sweeper.sweep()
        self.sweeper.do_chores()

    def upload(self, claim: Claim) -> list[str]:
        keys = attempt_keys(claim.job_id, claim.attempt, claim.params.num_images, claim.params.format)
        for key in keys:
            self.storage.put(key, b"a picture", content_type="image/png")
        return keys

    def stored(self, keys: list[str]) -> list[str]:
        return [key for key in keys if self.has(key)]

    def has(self, key: str) -> bool:
        try:
            return bool(self.storage.get(key))
        except ObjectNotFound:
            return False


@pytest.fixture
def patient(settings: Settings) -> Settings:
    return settings.model_copy(update={"lease_seconds": LONG})


@pytest.fixture
def sweep(patient: Settings, queue) -> Sweep:
    return Sweep(patient, queue.database)


def test_objects_of_attempts_that_did_not_win_are_deleted(queue, sweep: Sweep) -> None:
    queue.submit(num_images=2)
    lost = queue.take()
    lost_keys = sweep.upload(lost)
    queue.requeue(lost)
    won = queue.take()
    won_keys = sweep.upload(won)
    queue.succeed(won)
    sweep.chores()
    assert sweep.stored(lost_keys) == []
    assert sweep.stored(won_keys) == won_keys


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELED, JobState.EXPIRED])
def test_every_object_of_a_job_that_ended_without_pictures_is_deleted(queue, sweep: Sweep, state: JobState) -> None:
    ended = queue.ended(state)
    keys = sweep.upload(ended)
    sweep.chores()
    assert sweep.stored(keys) == []


def test_objects_that_come_late_are_deleted_once_more(queue, sweep: Sweep) -> None:
    """A worker that lost its lease may upload for as long as an upload may take."""
    ended = queue.ended(JobState.CANCELED)
    sweep.chores()
    keys = sweep.upload(ended)
    sweep.chores()
    assert sweep.stored(keys) == keys, "not yet: more may come"
    row = queue.row(ended.job_id)
    late_seconds = (row.cleanup_at - row.finished_at).total_seconds()
    assert late_seconds >= sweep.settings.lease_seconds + sweep.settings.upload_limit_seconds
    queue.age(ended.job_id, finished_at=late_seconds + 10, cleanup_at=5)
    sweep.chores()
    assert sweep.stored(keys) == []
    assert queue.row(ended.job_id).cleanup_at is None


def test_job_that_was_kept_long_enough_goes_with_its_objects(queue, sweep: Sweep, final_state: JobState) -> None:
    old, young = queue.ended(final_state), queue.ended(final_state)
    keys = sweep.upload(old)
    days = 30 if final_state == JobState.SUCCEEDED else 7
    queue.age(old.job_id, finished_at=days * DAY + 60, cleanup_at=-LONG)
    queue.age(young.job_id, finished_at=days * DAY - 60, cleanup_at=-LONG)
    sweep.chores()
    assert sweep.stored(keys) == []
    with pytest.raises(JobNotFound):
        queue.get(old.job_id)
    assert queue.state(young.job_id) == final_state


def test_storage_that_is_away_leaves_everything_for_next_time(queue, sweep: Sweep, s3) -> None:
    stray, old = queue.ended(JobState.CANCELED), queue.ended(JobState.SUCCEEDED)
    keys = sweep.upload(stray) + sweep.upload(old)
    queue.age(old.job_id, finished_at=31 * DAY)
    overdue = queue.submit()
    queue.age(overdue, deadline_at=1)
    s3.stop()
    with pytest.raises(StorageError):
        sweep.chores()
    assert queue.state(overdue) == JobState.EXPIRED, "what needs no storage was done"
    assert queue.row(stray.job_id).cleanup_at is not None
    assert queue.state(old.job_id) == JobState.SUCCEEDED
    s3.start()
    sweep.chores()
    sweep.chores()
    assert sweep.stored(keys) == []
    with pytest.raises(JobNotFound):
        queue.get(old.job_id)


def test_row_is_deleted_only_when_its_objects_are_gone(queue, sweep: Sweep, s3) -> None:
    old = queue.ended(JobState.SUCCEEDED)
    sweep.upload(old)
    queue.age(old.job_id, finished_at=31 * DAY)
    s3.stop()
    with pytest.raises(StorageError):
        sweep.chores()
    assert queue.state(old.job_id) == JobState.SUCCEEDED


def test_fresh_sweeper_waits_one_lease_before_it_expires_any(queue, sweep: Sweep) -> None:
    """After an outage of the database every lease has run out, and every worker is about to renew its own."""
    queue.submit()
    claim = queue.take()
    queue.age(claim.job_id, lease_expires_at=60)
    sweep.chores()
    assert queue.state(claim.job_id) == JobState.RUNNING


def test_sweeper_that_has_seen_a_lease_puts_jobs_back_and_says_so(queue, settings: Settings) -> None:
    impatient = Sweep(settings.model_copy(update={"lease_seconds": 0.05}), queue.database)
    queue.submit()
    claim = queue.take()
    queue.age(claim.job_id, lease_expires_at=60)

    def is_waiting() -> bool:
        impatient.sweeper.sweep()
        return queue.state(claim.job_id) == JobState.QUEUED

    wait_until(is_waiting, seconds=30, refusal=lambda: "the lease never ran out")
    assert impatient.waiting == [(claim.job_id, "small")]


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_sweeper_waits_another_lease_after_the_database_was_away(queue, settings: Settings, postgres) -> None:
    """The loop itself notices the outage, so it runs here: its lease is over before the outage, and begins anew."""
    quick = settings.model_copy(update={"lease_seconds": 5.0, "sweep_seconds": 0.01})
    sweep = Sweep(quick, queue.database)
    queue.submit()
    seen = queue.take()
    queue.age(seen.job_id, lease_expires_at=60)
    sweep.sweeper.ensure_alive()
    wait_until(lambda: bool(sweep.waiting), seconds=30, refusal=lambda: "the lease never ran out")
    claim = queue.take()
    postgres.stop()
    with pytest.raises(DatabaseUnavailable):
        queue.get(claim.job_id)
    assert queue_is_back(queue, postgres)
    queue.age(claim.job_id, lease_expires_at=60)
    overdue = queue.submit()
    queue.age(overdue, deadline_at=1)
    wait_until(lambda: queue.state(overdue) == JobState.EXPIRED, seconds=30, refusal=lambda: "nobody sweeps")
    assert queue.beat("first", {claim.job_id: claim.attempt}) == {claim.job_id}
    sweep.sweeper.stop()


def queue_is_back(queue, postgres) -> bool:
    postgres.start()
    return queue.submit() is not None


def test_chores_promote_and_forget(queue, sweep: Sweep) -> None:
    aged = queue.submit()
    queue.age(aged, queued_at=sweep.settings.bulk_promotion_seconds + 1)
    facts = WorkerFacts("first", "dark", 1, "cpu", 0, "cpu/test", ["small"], slots=1, version="0")
    fleet.register(queue.database, facts)
    sweep.chores()
    assert queue.get(aged).job_class == jobs.JobClass.INTERACTIVE
    assert len(fleet.list_workers(queue.database)) == 1


def test_loop_sweeps_until_it_is_stopped(queue, patient: Settings) -> None:
    sweep = Sweep(patient.model_copy(update={"sweep_seconds": 0.01}), queue.database)
    job_id = queue.submit()
    queue.age(job_id, deadline_at=1)
    sweep.sweeper.ensure_alive()
    wait_until(lambda: queue.state(job_id) == JobState.EXPIRED, seconds=30, refusal=lambda: "nobody sweeps")
    sweep.sweeper.stop()
    sweep.sweeper.stop()
