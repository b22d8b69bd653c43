"""What time does to jobs: deadlines, age, the second cleaning, retention. Done twice is done once."""

import pytest

from darkroom import jobs
from darkroom.errors import JobNotFound
from darkroom.jobs import JobClass, JobState

DAY = 86400.0


@pytest.mark.parametrize("is_running", [False, True])
def test_job_past_its_deadline_expires(queue, is_running: bool) -> None:
    job_id = queue.submit()
    if is_running:
        queue.take()
    queue.age(job_id, deadline_at=1)
    assert jobs.expire_overdue(queue.database) == 1
    assert jobs.expire_overdue(queue.database) == 0
    record = queue.get(job_id)
    assert (record.state, record.error_code) == (JobState.EXPIRED, None)
    assert queue.history(job_id)[-1] == "expired"


def test_job_before_its_deadline_lives(queue) -> None:
    job_id = queue.submit(ttl_seconds=60)
    assert jobs.expire_overdue(queue.database) == 0
    assert queue.state(job_id) == JobState.QUEUED


def test_bulk_that_has_waited_long_enough_is_claimed_as_interactive(queue) -> None:
    young = queue.submit("ann", model="small")
    aged = queue.submit("bob")
    queue.age(aged, queued_at=601)
    interactive = queue.submit("carl", job_class=JobClass.INTERACTIVE)
    assert jobs.promote_aged_bulk(queue.database, age_seconds=600) == 1
    assert jobs.promote_aged_bulk(queue.database, age_seconds=600) == 0
    assert queue.get(aged).job_class == JobClass.INTERACTIVE
    assert set(queue.order(num=2)) == {interactive, aged}
    assert queue.order() == [young]


def test_aged_bulk_keeps_its_cost_at_its_new_place(queue) -> None:
    for _ in range(2):
        queue.submit("bob", cost=3, job_class=JobClass.INTERACTIVE)
    aged = [queue.submit("ann", cost=cost) for cost in (5, 7)]
    for job_id in aged:
        queue.age(job_id, queued_at=601)
    queue.succeed(queue.take())
    jobs.promote_aged_bulk(queue.database, age_seconds=600)
    places = [(row.start_tag, row.finish_tag) for row in map(queue.row, aged)]
    assert places == [(3, 8), (8, 15)]


def test_flood_of_aged_bulk_does_not_hold_up_an_interactive_newcomer(queue) -> None:
    for _ in range(20):
        queue.age(queue.submit("ann"), queued_at=601)
    assert jobs.promote_aged_bulk(queue.database, age_seconds=600) == 20
    newcomer = queue.submit("bob", job_class=JobClass.INTERACTIVE)
    assert newcomer in queue.order(num=2)


def test_running_bulk_is_not_promoted(queue) -> None:
    queue.submit()
    claim = queue.take()
    queue.age(claim.job_id, queued_at=601)
    assert jobs.promote_aged_bulk(queue.database, age_seconds=600) == 0


def test_strays_are_deleted_when_the_job_ends_and_once_more(queue) -> None:
    ended = queue.ended(JobState.CANCELED)
    (due,) = jobs.due_for_cleanup(queue.database)
    assert (due.job_id, due.state, due.attempt, due.params) == (ended.job_id, JobState.CANCELED, 1, ended.params)
    jobs.cleaned(queue.database, ended.job_id, late_seconds=150)
    assert jobs.due_for_cleanup(queue.database) == []
    row = queue.row(ended.job_id)
    assert (row.cleanup_at - row.finished_at).total_seconds() == pytest.approx(150, abs=2)
    queue.age(ended.job_id, finished_at=200, cleanup_at=50)
    assert len(jobs.due_for_cleanup(queue.database)) == 1
    jobs.cleaned(queue.database, ended.job_id, late_seconds=150)
    assert queue.row(ended.job_id).cleanup_at is None
    assert jobs.due_for_cleanup(queue.database) == []


def test_two_sweeps_at_once_do_not_skip_the_second_cleaning(queue) -> None:
    ended = queue.ended(JobState.CANCELED)
    for _ in range(2):  # both saw it due before either was done
        jobs.cleaned(queue.database, ended.job_id, late_seconds=150)
    assert queue.row(ended.job_id).cleanup_at is not None


def test_each_state_is_kept_for_its_own_time(queue, final_state: JobState) -> None:
    old, young = queue.ended(final_state), queue.ended(final_state)
    queue.age(old.job_id, finished_at=8 * DAY)
    queue.age(young.job_id, finished_at=6 * DAY)
    retention = {state: 100 * DAY for state in JobState} | {final_state: 7 * DAY}
    due = jobs.due_for_deletion(queue.database, retention_seconds=retention)
    assert [ended.job_id for ended in due] == [old.job_id]


def test_deleted_job_takes_its_pictures_and_its_history_along(queue) -> None:
    ended = queue.ended(JobState.SUCCEEDED)
    jobs.delete_ended(queue.database, ended.job_id)
    assert queue.history(ended.job_id) == []
    with pytest.raises(JobNotFound):
        queue.get(ended.job_id)


@pytest.mark.parametrize("is_running", [False, True])
def test_live_job_is_never_deleted(queue, is_running: bool) -> None:
    job_id = queue.submit()
    if is_running:
        queue.take()
    queue.age(job_id, created_at=900 * DAY, queued_at=900 * DAY)
    assert jobs.due_for_deletion(queue.database, retention_seconds=dict.fromkeys(JobState, 1.0)) == []
    jobs.delete_ended(queue.database, job_id)
    assert queue.get(job_id)
