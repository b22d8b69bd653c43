"""What people see of the queue, and what they do to many jobs at once."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import update
from uuid_utils.compat import uuid7

from darkroom import jobs
from darkroom.db import now
from darkroom.errors import JobNotFound
from darkroom.jobs import MOST_COUNTED, JobClass, JobState
from darkroom.models import Job
from darkroom.params import GenerationParams


def ids_of(records: list[jobs.JobRecord]) -> list[UUID]:
    return [record.id for record in records]


def test_places_are_those_of_the_claims(queue) -> None:
    bulk = [queue.submit() for _ in range(3)]
    hurried = queue.submit(job_class=JobClass.INTERACTIVE)
    other = queue.submit(model="large")
    running = queue.take()
    assert running.job_id == hurried
    places = jobs.places(queue.database, [*bulk, hurried, other])
    assert places == {bulk[0]: 0, bulk[1]: 1, bulk[2]: 2, other: 0}
    assert jobs.places(queue.database, []) == {}


def test_places_are_counted_just_beyond_a_bound(queue) -> None:
    made = [queue.submit() for _ in range(MOST_COUNTED + 3)]
    places = jobs.places(queue.database, made[-2:])
    assert set(places.values()) == {MOST_COUNTED + 1}


def test_oldest_go_first_and_on_from_where_a_page_ended(queue) -> None:
    made = [queue.submit() for _ in range(3)]
    queue.submit("bob")
    waiting: Any = {"owner": "ann", "state": JobState.QUEUED, "limit": 2}
    first = jobs.list_oldest(queue.database, **waiting)
    assert ids_of(first) == made[:2]
    assert ids_of(jobs.list_oldest(queue.database, after=first[-1].id, **waiting)) == made[2:]


def test_fronts_hold_every_line_in_the_order_of_its_claims(queue) -> None:
    slow = [queue.submit("ann") for _ in range(3)]
    fair = queue.submit("bob")
    hurried = queue.submit("cy", job_class=JobClass.INTERACTIVE)
    large = queue.submit(model="large")
    fronts = jobs.list_fronts(queue.database, limit=4)
    assert {model: ids_of(line) for model, line in fronts.items()} == {
        "large": [large],
        "small": [hurried, slow[0], fair, slow[1]],
    }


def test_running_are_listed_by_how_long_they_run(queue) -> None:
    claims = [queue.submit() and queue.take() for _ in range(3)]
    queue.age(claims[2].job_id, started_at=60)
    queue.submit()
    running = jobs.list_running(queue.database, limit=10)
    assert ids_of(running) == [claims[2].job_id, claims[0].job_id, claims[1].job_id]
    assert len(jobs.list_running(queue.database, limit=2)) == 2


def test_line_is_read_on_from_where_a_page_ended_and_no_other_line(queue) -> None:
    waiting = [queue.submit() for _ in range(5)]
    queue.submit(model="large")
    rest = jobs.list_line(queue.database, after=waiting[1], limit=2)
    assert ids_of(rest) == waiting[2:4]
    assert queue.take().job_id == waiting[0]
    assert ids_of(jobs.list_line(queue.database, after=waiting[0], limit=9)) == waiting[1:], "where it stood"


def test_running_are_read_on_from_where_a_page_ended_also_among_those_begun_at_once(queue) -> None:
    running = [claim.job_id for claim in (queue.submit() and queue.take() for _ in range(5))]
    with queue.database.write() as session:
        session.execute(update(Job).values(started_at=now()))
    first = jobs.list_running(queue.database, limit=2)
    rest = jobs.list_running(queue.database, after=first[-1].id, limit=9)
    assert ids_of([*first, *rest]) == sorted(running)


def test_ended_are_read_on_from_where_a_page_ended_also_among_those_that_ended_at_once(queue) -> None:
    made = [queue.submit() for _ in range(5)]
    jobs.cancel_some(queue.database, owner="ann", before=uuid7(), limit=9)
    early = queue.ended(JobState.CANCELED).job_id
    queue.age(early, finished_at=120)
    canceled: Any = {"state": JobState.CANCELED, "limit": 3}
    first = jobs.list_ended(queue.database, **canceled)
    rest = jobs.list_ended(queue.database, after=first[-1].id, **canceled)
    assert ids_of([*first, *rest]) == [*sorted(made, reverse=True), early]


def test_page_behind_a_job_that_is_gone_is_refused(queue) -> None:
    gone = uuid7()
    for read in (
        lambda: jobs.list_line(queue.database, after=gone, limit=1),
        lambda: jobs.list_running(queue.database, after=gone, limit=1),
        lambda: jobs.list_ended(queue.database, state=JobState.FAILED, after=gone, limit=1),
    ):
        with pytest.raises(JobNotFound):
            read()


def test_latest_that_ended_come_first_whatever_became_of_them(queue, final_state: JobState) -> None:
    early = queue.ended(final_state).job_id
    late = queue.ended(JobState.SUCCEEDED).job_id
    others = queue.ended(JobState.FAILED, "bob").job_id
    queue.submit()
    queue.age(early, finished_at=120)
    queue.age(late, finished_at=60)
    assert ids_of(jobs.list_latest_ended(queue.database, owner="ann", limit=5)) == [late, early]
    assert ids_of(jobs.list_latest_ended(queue.database, limit=2)) == [others, late]
    assert early in ids_of(jobs.list_ended(queue.database, state=final_state, limit=5))


def test_what_was_erased_is_not_among_what_has_ended(queue) -> None:
    erased, left = (queue.ended(JobState.FAILED).job_id for _ in range(2))
    jobs.erase(queue.database, erased, owner="ann")
    assert ids_of(jobs.list_latest_ended(queue.database, limit=5)) == [left]
    assert ids_of(jobs.list_ended(queue.database, state=JobState.FAILED, limit=5)) == [left]


def test_count_stops_just_beyond_its_bound(queue) -> None:
    for _ in range(4):
        queue.submit()
    queue.submit("bob")
    assert jobs.count(queue.database, state=JobState.QUEUED, owner="ann", most=10) == 4
    assert jobs.count(queue.database, state=JobState.QUEUED, most=10) == 5
    assert jobs.count(queue.database, state=JobState.QUEUED, most=2) == 3


def test_failed_job_counts_as_retried_only_by_its_owner(queue) -> None:
    failed = [queue.ended(JobState.FAILED).job_id for _ in range(2)]
    queue.ended(JobState.CANCELED)
    jobs.retry(queue.database, failed[0], owner="ann", ttl_seconds=60)
    assert ids_of(jobs.list_unretried(queue.database, owner="ann", limit=5)) == [failed[1]]
    assert jobs.retried(queue.database, failed, owner="ann") == {failed[0]}
    assert jobs.retried(queue.database, failed, owner="bob") == frozenset()
    assert jobs.retried(queue.database, [], owner="ann") == frozenset()


def test_many_are_canceled_those_that_wait_first_and_only_one_s_own(queue) -> None:
    running = (queue.submit() and queue.take()).job_id
    waiting = [queue.submit() for _ in range(3)]
    bobs = queue.submit("bob")
    now = uuid7()
    assert set(jobs.cancel_some(queue.database, owner="ann", before=now, limit=2)) == set(waiting[1:])
    later = queue.submit()
    assert set(jobs.cancel_some(queue.database, owner="ann", before=now, limit=9)) == {waiting[0], running}
    assert jobs.cancel_some(queue.database, owner="ann", before=now, limit=9) == []
    assert (queue.state(later), queue.state(bobs)) == (JobState.QUEUED, JobState.QUEUED)
    assert queue.history(running)[-1] == JobState.CANCELED


def test_many_are_erased_at_once_and_those_that_are_not_there_passed_over(queue, nobody: UUID) -> None:
    ended = queue.ended(JobState.SUCCEEDED).job_id
    live = queue.submit()
    bobs = queue.submit("bob")
    assert jobs.erase_many(queue.database, [ended, live, bobs, nobody], owner="ann") == [live]
    for job_id in (ended, live):
        row = queue.row(job_id)
        assert (row.owner, row.params["prompt"]) == ("", "")
        assert GenerationParams.model_validate(row.params)
        assert row.delete_at
    assert queue.row(bobs).owner == "bob"
    assert queue.state(live) == JobState.CANCELED


@pytest.mark.parametrize("num", [0, 1])
def test_erasing_nothing_is_fine(queue, nobody: UUID, num: int) -> None:
    assert jobs.erase_many(queue.database, [nobody][:num], owner="ann") == []
