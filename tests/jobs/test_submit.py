"""Into the queue: what is stored, at which place, and what the reader is told."""

from uuid import UUID

import pytest

from darkroom import events, jobs
from darkroom.errors import ImageNotFound, JobNotFound
from darkroom.jobs import JobClass, JobState, NewJob


def test_submitted_job_waits(queue) -> None:
    job_id = queue.submit("ann", cost=20, job_class=JobClass.INTERACTIVE, ttl_seconds=600)
    record = queue.get(job_id)
    assert (record.id, record.owner, record.model, record.state) == (job_id, "ann", "small", JobState.QUEUED)
    assert (record.job_class, record.attempt, record.crashes, record.worker_id) == (JobClass.INTERACTIVE, 0, 0, None)
    assert (record.started_at, record.finished_at, record.error_code, record.images) == (None, None, None, ())
    assert (record.deadline_at - record.created_at).total_seconds() == pytest.approx(600, abs=0.1)


def test_submit_returns_what_a_reader_reads(queue) -> None:
    params = queue.get(queue.submit()).params
    first = jobs.submit(queue.database, NewJob("small", params, JobClass.BULK, ttl_seconds=60), owner="ann")
    assert queue.get(first.id) == first


def test_submit_writes_the_first_line_of_the_history(queue) -> None:
    job_id = queue.submit()
    (event,) = events.read(queue.database, job_id)
    assert (event.seq, event.type, event.job_id) == (1, "queued", job_id)


def test_retry_names_the_job_that_it_retries(queue, final_state: JobState) -> None:
    ended = queue.ended(final_state)
    retry = jobs.retry(queue.database, ended.job_id, owner="ann", ttl_seconds=60)
    assert (retry.retry_of, retry.state) == (ended.job_id, JobState.QUEUED)
    assert queue.state(ended.job_id) == final_state


def test_start_tag_is_the_owners_last_finish_tag(queue) -> None:
    tags = [queue.row(queue.submit("ann", cost=cost)).start_tag for cost in (5, 7, 1)]
    assert tags == [0, 5, 12]


def test_start_tag_of_a_newcomer_is_the_front_of_the_line(queue) -> None:
    for _ in range(3):
        queue.submit("ann", cost=5)
    queue.succeed(queue.take())
    assert queue.row(queue.submit("bob")).start_tag == 5


def test_classes_and_models_have_tags_of_their_own(queue) -> None:
    queue.submit("ann", cost=50)
    assert queue.row(queue.submit("ann", job_class=JobClass.INTERACTIVE)).start_tag == 0
    assert queue.row(queue.submit("ann", model="large")).start_tag == 0


def test_somebody_elses_job_does_not_exist(queue, nobody: UUID) -> None:
    job_id = queue.submit("ann")
    assert jobs.get(queue.database, job_id, owner="ann").id == job_id
    for wrong, owner in ((job_id, "bob"), (nobody, "ann"), (nobody, None)):
        with pytest.raises(JobNotFound):
            jobs.get(queue.database, wrong, owner=owner)


def test_list_is_newest_first_and_goes_on_where_it_stopped(queue) -> None:
    submitted = [queue.submit("ann") for _ in range(5)]
    queue.submit("bob")
    newest = jobs.list_jobs(queue.database, owner="ann", limit=2)
    older = jobs.list_jobs(queue.database, owner="ann", before=newest[-1].id)
    assert [record.id for record in newest + older] == submitted[::-1]


def test_list_holds_one_state_or_one_model(queue) -> None:
    ended = queue.ended(JobState.SUCCEEDED)
    waiting = queue.submit("ann")
    by_state = jobs.list_jobs(queue.database, owner="ann", state=JobState.SUCCEEDED)
    by_model = jobs.list_jobs(queue.database, owner="ann", model="small")
    assert [record.id for record in by_state] == [ended.job_id]
    assert len(by_state[0].images) == 1
    assert [record.id for record in by_model] == [waiting]


def test_picture_is_found_by_its_number(queue) -> None:
    ended = queue.ended(JobState.SUCCEEDED)
    assert jobs.get_image(queue.database, ended.job_id, 0, owner="ann").key.endswith("/1/0.png")
    with pytest.raises(ImageNotFound):
        jobs.get_image(queue.database, ended.job_id, 1, owner="ann")
    with pytest.raises(JobNotFound):
        jobs.get_image(queue.database, ended.job_id, 0, owner="bob")
