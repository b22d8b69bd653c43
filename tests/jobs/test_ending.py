"""How a job ends or comes back, and the fence: who no longer holds it can write nothing."""

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import select

from darkroom import events, jobs
from darkroom.errors import JobFinished, JobNotFound, StaleAttempt
from darkroom.jobs import Claim, ImageRecord, JobState, Success
from darkroom.models import Job


def image_of(job_id: UUID, attempt: int, n: int) -> ImageRecord:
    key, thumb_key = f"jobs/{job_id}/{attempt}/{n}.png", f"jobs/{job_id}/{attempt}/{n}.thumb.webp"
    return ImageRecord(n, key, thumb_key, "image/png", 64, 64, num_bytes=9, seed=7 + n, sha256="0" * 64)


def test_succeeded_job_shows_its_pictures(queue) -> None:
    queue.submit(num_images=2)
    claim = queue.take()
    assert queue.get(claim.job_id).images == ()
    queue.succeed(claim)
    record = queue.get(claim.job_id)
    assert record.state == JobState.SUCCEEDED
    assert record.finished_at
    assert record.timings == {"denoise": 1.5}
    assert [image.key for image in record.images] == [f"jobs/{claim.job_id}/1/0.png"]
    assert queue.history(claim.job_id) == ["queued", "running", "succeeded"]


def successes_of(*claims: Claim, num_images: int = 1) -> list[Success]:
    successes = []
    for seconds, claim in enumerate(claims):
        images = [image_of(claim.job_id, claim.attempt, n) for n in range(num_images)]
        successes.append(Success(claim.job_id, claim.attempt, images, {"denoise": seconds}))
    return successes


def test_several_jobs_succeed_together_each_with_its_own_pictures(queue) -> None:
    claims = [queue.take() for _ in range(3) if queue.submit()]
    successes = successes_of(*claims, num_images=2)
    assert jobs.succeed_some(queue.database, successes) == {claim.job_id for claim in claims}
    for success in successes:
        record = queue.get(success.job_id)
        assert (record.state, record.timings) == (JobState.SUCCEEDED, success.timings)
        assert record.images == tuple(success.images)
        assert queue.history(success.job_id) == ["queued", "running", "succeeded"]
        assert events.read(queue.database, success.job_id)[-1].payload == {"attempt": 1}


def test_job_that_is_not_held_any_more_ends_not_with_the_others(queue) -> None:
    held, lost, canceled = claims = [queue.take() for _ in range(3) if queue.submit()]
    queue.requeue(lost)
    again = queue.take("second")
    assert again.job_id == lost.job_id
    queue.cancel(canceled.job_id)
    assert jobs.succeed_some(queue.database, successes_of(*claims)) == {held.job_id}
    assert queue.state(lost.job_id) == JobState.RUNNING
    assert queue.get(lost.job_id).images == queue.get(canceled.job_id).images == ()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_several_that_succeed_wait_for_nobody_who_has_locked_one_of_them(queue) -> None:
    free, locked = claims = [queue.take() for _ in range(2) if queue.submit()]
    with queue.database.write() as session:
        session.execute(select(Job.id).where(Job.id == locked.job_id).with_for_update())
        assert jobs.succeed_some(queue.database, successes_of(*claims)) == {free.job_id}
    assert jobs.succeed_some(queue.database, successes_of(locked)) == {locked.job_id}


def test_failed_job_says_why(queue) -> None:
    queue.submit()
    claim = queue.take()
    queue.fail(claim)
    record = queue.get(claim.job_id)
    assert (record.state, record.error_code, record.error_message) == (JobState.FAILED, "develop-failed", "no")
    assert events.read(queue.database, claim.job_id)[-1].payload == {
        "attempt": 1,
        "code": "develop-failed",
        "message": "no",
    }


def test_ended_job_holds_no_lease(queue, final_state: JobState) -> None:
    row = queue.row(queue.ended(final_state).job_id)
    assert row.lease_expires_at is None
    assert row.finished_at is not None


def test_only_an_attempt_after_the_first_leaves_objects_of_forerunners(queue) -> None:
    queue.submit()
    first = queue.take()
    queue.succeed(first)
    assert queue.row(first.job_id).cleanup_at is None
    queue.submit()
    queue.requeue(queue.take())
    second = queue.take()
    queue.succeed(second)
    assert queue.row(second.job_id).cleanup_at is not None


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELED, JobState.EXPIRED])
def test_job_that_ends_without_pictures_has_objects_to_delete(queue, state: JobState) -> None:
    assert queue.row(queue.ended(state).job_id).cleanup_at is not None


def test_job_is_canceled_while_it_waits(queue) -> None:
    job_id = queue.submit()
    assert queue.cancel(job_id).state == JobState.CANCELED
    assert queue.claim() is None


def test_job_is_canceled_while_it_runs(queue) -> None:
    queue.submit()
    claim = queue.take()
    assert queue.cancel(claim.job_id).state == JobState.CANCELED
    assert queue.beat() == frozenset(), "the heartbeat tells its worker"


def test_canceling_again_changes_nothing(queue) -> None:
    job_id = queue.submit()
    first = queue.cancel(job_id)
    assert queue.cancel(job_id) == first
    assert queue.history(job_id) == ["queued", "canceled"]


def test_only_its_owner_cancels_a_job(queue, nobody: UUID) -> None:
    job_id = queue.submit("ann")
    with pytest.raises(JobNotFound):
        queue.cancel(job_id, "bob")
    with pytest.raises(JobNotFound):
        queue.cancel(nobody, "ann")
    assert queue.state(job_id) == JobState.QUEUED


def test_job_that_is_put_back_counts_nothing_against_it(queue) -> None:
    queue.submit()
    claim = queue.take()
    before = queue.row(claim.job_id)
    queue.requeue(claim)
    after = queue.row(claim.job_id)
    assert (after.state, after.worker_id, after.started_at, after.lease_expires_at) == ("queued", None, None, None)
    assert (after.crashes, after.shared_crashes, after.is_solo, after.is_alone) == (0, 0, False, False)
    assert (after.job_class, after.start_tag, after.finish_tag, after.attempt, after.deadline_at) == (
        before.job_class,
        before.start_tag,
        before.finish_tag,
        before.attempt,
        before.deadline_at,
    )
    assert queue.history(claim.job_id) == ["queued", "running", "requeued"]


def test_operator_puts_back_whatever_attempt_runs(queue) -> None:
    queue.submit()
    claim = queue.take()
    jobs.requeue(queue.database, claim.job_id, reason="the operator asked")
    assert queue.state(claim.job_id) == JobState.QUEUED
    assert queue.take().attempt == 2


def test_operator_is_told_what_cannot_be_put_back(queue, nobody: UUID, final_state: JobState) -> None:
    ended = queue.ended(final_state)
    with pytest.raises(JobFinished, match=final_state):
        jobs.requeue(queue.database, ended.job_id, reason="the operator asked")
    with pytest.raises(JobNotFound):
        jobs.requeue(queue.database, nobody, reason="the operator asked")


def test_operator_may_put_back_a_job_that_waits(queue) -> None:
    job_id = queue.submit()
    jobs.requeue(queue.database, job_id, reason="the operator asked")
    assert queue.history(job_id) == ["queued"]


def renew(queue, claim: Claim) -> None:
    """A renewal is refused by not being answered."""
    if claim.job_id not in queue.beat("first", {claim.job_id: claim.attempt}):
        raise StaleAttempt(claim.job_id, claim.attempt)


WRITES: dict[str, Callable[..., object]] = {
    "succeed": lambda queue, claim: queue.succeed(claim),
    "fail": lambda queue, claim: queue.fail(claim),
    "requeue": lambda queue, claim: queue.requeue(claim),
    "renew": renew,
}
OTHERS: dict[str, Callable[..., object]] = {
    "cancel": lambda queue, claim: queue.cancel(claim.job_id),
    "expire the lease": lambda queue, claim: queue.crash(claim),
    "expire": lambda queue, claim: (queue.age(claim.job_id, deadline_at=1), jobs.expire_overdue(queue.database)),
    "promote": lambda queue, claim: (
        queue.age(claim.job_id, queued_at=10),
        jobs.promote_aged_bulk(queue.database, age_seconds=5),
    ),
    "claim": lambda queue, claim: queue.claim(models=("ending",)),
}


@pytest.fixture(params=WRITES)
def write(request: pytest.FixtureRequest) -> Callable[..., object]:
    return WRITES[request.param]


def everything(queue, job_id: UUID) -> tuple[object, ...]:
    row = queue.row(job_id)
    kept = {name: value for name, value in vars(row).items() if not name.startswith("_")}
    for name in ("lease_expires_at", "deadline_at", "queued_at"):  # a test moves these itself
        kept.pop(name)
    return kept, queue.get(job_id).images, queue.history(job_id)


def test_worker_can_write_nothing_to_a_job_that_has_ended(queue, final_state: JobState, write) -> None:
    ended = queue.ended(final_state)
    before = everything(queue, ended.job_id)
    with pytest.raises(StaleAttempt) as refusal:
        write(queue, ended)
    assert (refusal.value.job_id, refusal.value.attempt) == (ended.job_id, 1)
    assert everything(queue, ended.job_id) == before


@pytest.mark.parametrize("other", OTHERS)
def test_ended_job_never_changes(queue, final_state: JobState, other: str) -> None:
    ended = queue.ended(final_state)
    before = everything(queue, ended.job_id)
    if other == "cancel" and final_state != JobState.CANCELED:
        with pytest.raises(JobFinished):
            OTHERS[other](queue, ended)
    else:
        OTHERS[other](queue, ended)
    assert everything(queue, ended.job_id) == before


def test_stale_attempt_can_write_nothing_while_another_runs(queue, write) -> None:
    queue.submit()
    stale = queue.take("first")
    queue.crash(stale)
    fresh = queue.take("second")
    before = everything(queue, fresh.job_id)
    with pytest.raises(StaleAttempt):
        write(queue, stale)
    assert everything(queue, fresh.job_id) == before
    queue.succeed(fresh)
    assert [image.key for image in queue.get(fresh.job_id).images] == [f"jobs/{fresh.job_id}/2/0.png"]


def test_stale_attempt_can_write_nothing_while_the_job_waits_again(queue, write) -> None:
    queue.submit()
    stale = queue.take()
    queue.crash(stale)
    before = everything(queue, stale.job_id)
    with pytest.raises(StaleAttempt):
        write(queue, stale)
    assert everything(queue, stale.job_id) == before


def test_attempt_to_come_can_write_nothing_yet(queue, write) -> None:
    queue.submit()
    claim = queue.take()
    with pytest.raises(StaleAttempt):
        write(queue, Claim(**(vars(claim) | {"attempt": 2})))
    assert queue.state(claim.job_id) == JobState.RUNNING


def test_second_finish_of_one_attempt_is_refused(queue) -> None:
    queue.submit()
    claim = queue.take()
    queue.succeed(claim)
    with pytest.raises(StaleAttempt):
        queue.succeed(claim)
    assert len(queue.get(claim.job_id).images) == 1


def test_job_that_is_put_back_ages_on(queue) -> None:
    """Bulk that has waited too long is promoted, however often its worker was drained meanwhile."""
    queue.submit()
    claim = queue.take()
    queue.age(claim.job_id, queued_at=500)
    queue.requeue(claim)
    assert jobs.promote_aged_bulk(queue.database, age_seconds=400) == 1
