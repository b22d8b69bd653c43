"""The same request only once; many jobs in one transaction; what is erased is gone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from darkroom import jobs
from darkroom.db import now
from darkroom.errors import BatchNotFound, InputGone, JobNotFound, RequestDiffers, UploadNotFound
from darkroom.jobs import JobClass, JobState, NewJob, Request
from darkroom.models import Batch, IdempotentRequest, Image, Job, JobEvent, JobInput, Upload

DAY = 86400.0
RETENTION = dict.fromkeys((JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.EXPIRED), 30 * DAY)


def new(params, **values) -> NewJob:
    return NewJob("small", params, JobClass.BULK, 3600.0, **values)


@pytest.fixture
def params(queue):
    return queue.get(queue.submit("somebody")).params


def count(queue, table, *where) -> int:
    with queue.database.read() as session:
        return session.scalar(select(func.count()).select_from(table).where(*where))


def submit_again(queue, params, *, key: str = "k", sha256: str = "a" * 64, owner: str = "ann"):
    return jobs.submit(queue.database, new(params), owner=owner, request=Request(key, sha256))


def test_same_request_gets_the_job_it_made(queue, params) -> None:
    first = submit_again(queue, params)
    queue.cancel(first.id)
    again = submit_again(queue, params)
    assert (again.id, again.state) == (first.id, JobState.CANCELED)
    assert count(queue, Job, Job.owner == "ann") == 1


def test_same_key_with_another_request_is_refused(queue, params) -> None:
    submit_again(queue, params)
    with pytest.raises(RequestDiffers):
        submit_again(queue, params, sha256="b" * 64)
    assert count(queue, Job, Job.owner == "ann") == 1


def test_another_owner_may_use_the_same_key(queue, params) -> None:
    assert submit_again(queue, params).id != submit_again(queue, params, owner="bob").id


def test_key_is_free_again_after_a_day(queue, params) -> None:
    first = submit_again(queue, params)
    age_requests(queue, DAY - 60)
    assert submit_again(queue, params).id == first.id
    age_requests(queue, DAY + 60)
    second = submit_again(queue, params, sha256="b" * 64)
    assert second.id != first.id
    assert submit_again(queue, params, sha256="b" * 64).id == second.id


def test_request_that_is_no_repetition_makes_another_job_which_repetitions_then_get(queue, params) -> None:
    first = submit_again(queue, params)
    request = Request("k", "b" * 64, is_new=True)
    second = jobs.submit(queue.database, new(params), owner="ann", request=request)
    assert jobs.find_made(queue.database, request, owner="ann") is None
    assert second.id != first.id
    assert submit_again(queue, params, sha256="b" * 64).id == second.id


def test_live_jobs_are_found_by_what_their_metadata_says(queue, params) -> None:
    marked, other, ended = (
        jobs.submit(queue.database, new(params, metadata=metadata), owner="ann").id
        for metadata in ({"api": "x", "more": 1}, {"api": "y"}, {"api": "x"})
    )
    queue.cancel(ended)
    jobs.submit(queue.database, new(params, metadata={"api": "x"}), owner="bob")
    jobs.submit(queue.database, new(params), owner="ann")

    def found(**metadata: str) -> list[UUID]:
        return [job.id for job in jobs.list_live(queue.database, owner="ann", metadata=metadata)]

    assert (found(api="x"), found(api="y"), found(api="z")) == ([marked], [other], [])
    second = jobs.submit(queue.database, new(params, metadata={"api": "x"}), owner="ann").id
    assert found(api="x") == [marked, second]


def age_requests(queue, seconds: float) -> None:
    with queue.database.write() as session:
        session.execute(update(IdempotentRequest).values(created_at=now(-seconds)))


def test_sweep_forgets_requests_after_a_day_and_not_before(queue, params) -> None:
    submit_again(queue, params)
    age_requests(queue, DAY - 60)
    jobs.forget_requests(queue.database)
    assert count(queue, IdempotentRequest) == 1
    age_requests(queue, DAY + 60)
    jobs.forget_requests(queue.database)
    assert count(queue, IdempotentRequest) == 0


def test_sixty_four_equal_requests_at_once_make_one_job(queue, params) -> None:
    start = threading.Barrier(16)

    def submit(n: int) -> UUID:
        if n < 16:
            start.wait(30)
        return submit_again(queue, params).id

    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(submit, range(64)))
    assert len(set(ids)) == 1
    assert count(queue, Job, Job.owner == "ann") == 1
    assert count(queue, JobEvent, JobEvent.job_id == ids[0]) == 1


def test_request_whose_job_is_gone_makes_no_second_one(queue, params) -> None:
    first = submit_again(queue, params)
    jobs.erase(queue.database, first.id, owner="ann")
    with pytest.raises(JobNotFound):
        submit_again(queue, params)


def batch_of(queue, params, num_jobs: int, **values):
    made = jobs.submit_batch(queue.database, [new(params) for _ in range(num_jobs)], owner="ann", **values)
    job_ids = jobs.batch_job_ids(queue.database, made.id, owner="ann")
    return made, job_ids


def test_batch_gets_the_places_that_its_jobs_would_have_got_one_by_one(queue, params) -> None:
    ours = [new(params), NewJob("large", params, JobClass.BULK, 60.0), new(params), new(params)]
    for each in ours:
        jobs.submit(queue.database, each, owner="bob", weight=2.0)
    made = jobs.submit_batch(queue.database, ours, owner="ann", weight=2.0)
    ann, bob = (
        [
            (row.model, row.start_tag, row.finish_tag, row.deadline_at - row.created_at, row.event_seq)
            for row in rows_of(queue, owner)
        ]
        for owner in ("ann", "bob")
    )
    assert [row[:3] for row in ann] == [row[:3] for row in bob]
    assert [round(row[3].total_seconds()) for row in ann] == [3600, 60, 3600, 3600]
    assert made.num_jobs == 4


def rows_of(queue, owner: str) -> list[Job]:
    with queue.database.read() as session:
        return list(session.scalars(select(Job).where(Job.owner == owner).order_by(Job.id)))


def test_jobs_of_a_batch_are_claimed_in_its_order(queue, params) -> None:
    _, job_ids = batch_of(queue, params, 5)
    assert [job_id for job_id in queue.order() if job_id in job_ids] == job_ids
    assert queue.history(job_ids[0]) == ["queued", "running"]


def test_batch_that_was_just_submitted_is_told_as_whoever_reads_it_now_finds_it(queue, params) -> None:
    made, job_ids = batch_of(queue, params, 3)
    assert made == jobs.get_batch(queue.database, made.id, owner="ann")
    assert made.job_ids == tuple(job_ids)


def test_batch_says_how_far_it_is(queue, params) -> None:
    made, job_ids = batch_of(queue, params, 3)
    queue.cancel(job_ids[0])
    states = jobs.get_batch(queue.database, made.id, owner="ann").states
    assert states == {JobState.CANCELED: 1, JobState.QUEUED: 2}


def test_canceling_a_batch_ends_what_lives_and_nothing_else(queue, params) -> None:
    queue.cancel(queue.row(rows_of(queue, "somebody")[0].id).id, "somebody")
    made, job_ids = batch_of(queue, params, 3)
    queue.succeed(queue.take())
    running = queue.take()
    alone = queue.submit("ann")
    assert set(jobs.cancel_batch(queue.database, made.id, owner="ann")) == {running.job_id, job_ids[2]}
    assert [queue.state(job_id) for job_id in job_ids] == ["succeeded", "canceled", "canceled"]
    assert queue.history(job_ids[1]) == ["queued", "running", "canceled"]
    assert queue.state(alone) == JobState.QUEUED
    assert jobs.cancel_batch(queue.database, made.id, owner="ann") == []


def test_somebody_elses_batch_does_not_exist(queue, params) -> None:
    made, job_ids = batch_of(queue, params, 1)
    with pytest.raises(BatchNotFound):
        jobs.get_batch(queue.database, made.id, owner="bob")
    assert jobs.cancel_batch(queue.database, made.id, owner="bob") == []
    assert queue.state(job_ids[0]) == JobState.QUEUED


def test_repeated_batch_is_the_same_batch(queue, params) -> None:
    made, job_ids = batch_of(queue, params, 2, request=Request("k", "a" * 64))
    again, same_ids = batch_of(queue, params, 2, request=Request("k", "a" * 64))
    assert (again.id, same_ids) == (made.id, job_ids)


def test_batch_goes_with_its_last_job(queue, params) -> None:
    made, job_ids = batch_of(queue, params, 2)
    jobs.cancel_batch(queue.database, made.id, owner="ann")
    jobs.delete_ended(queue.database, job_ids[0])
    assert count(queue, Batch) == 1
    jobs.delete_ended(queue.database, job_ids[1])
    assert count(queue, Batch) == 0


def test_list_holds_one_batch(queue, params) -> None:
    made, job_ids = batch_of(queue, params, 2)
    queue.submit("ann")
    found = jobs.list_jobs(queue.database, owner="ann", batch_id=made.id)
    assert [job.id for job in found] == job_ids[::-1]


def test_erased_job_is_nobodys_and_says_nothing(queue, params) -> None:
    made = jobs.submit(queue.database, new(params, metadata={"of": "ann"}, webhook={"url": "x"}), owner="ann")
    assert jobs.erase(queue.database, made.id, owner="ann")
    with pytest.raises(JobNotFound):
        jobs.get(queue.database, made.id, owner="ann")
    assert jobs.list_jobs(queue.database, owner="ann") == []
    row = queue.row(made.id)
    assert (row.state, row.params["prompt"], row.client_metadata, row.webhook) == ("canceled", "", None, None)
    with pytest.raises(JobNotFound):
        jobs.erase(queue.database, made.id, owner="ann")


def test_somebody_elses_job_is_not_erased(queue) -> None:
    job_id = queue.submit("ann")
    with pytest.raises(JobNotFound):
        jobs.erase(queue.database, job_id, owner="bob")
    assert queue.state(job_id) == JobState.QUEUED


def test_erased_success_is_due_for_deletion_at_once(queue) -> None:
    ended = queue.ended(JobState.SUCCEEDED)
    assert jobs.due_for_deletion(queue.database, retention_seconds=RETENTION) == []
    assert not jobs.erase(queue.database, ended.job_id, owner="ann")
    (due,) = jobs.due_for_deletion(queue.database, retention_seconds=RETENTION)
    assert (due.job_id, due.params.num_images) == (ended.job_id, 1)


def test_job_erased_while_it_ran_waits_for_what_its_worker_may_be_writing(queue) -> None:
    job_id = queue.submit("ann")
    queue.take()
    jobs.erase(queue.database, job_id, owner="ann")
    assert jobs.due_for_deletion(queue.database, retention_seconds=RETENTION) == []
    jobs.cleaned(queue.database, job_id, late_seconds=0)
    jobs.cleaned(queue.database, job_id, late_seconds=0)
    assert len(jobs.due_for_deletion(queue.database, retention_seconds=RETENTION)) == 1


def test_job_is_kept_for_its_own_time(queue, params) -> None:
    briefly = jobs.submit(queue.database, new(params, retention_seconds=60), owner="ann").id
    longer = jobs.submit(queue.database, new(params, retention_seconds=40 * DAY), owner="ann").id
    for job_id in (briefly, longer):
        queue.cancel(job_id)
        queue.set(job_id, cleanup_at=None)
    assert jobs.due_for_deletion(queue.database, retention_seconds=RETENTION) == []
    queue.age(briefly, delete_at=1)
    queue.age(longer, finished_at=35 * DAY)
    (due,) = jobs.due_for_deletion(queue.database, retention_seconds=RETENTION)
    assert due.job_id == briefly


def test_walk_and_what_pictures_depend_on_are_kept_with_the_job(queue) -> None:
    claim = queue.take() if queue.submit("ann") else None
    image = jobs.ImageRecord(0, "k", "t", "image/png", 64, 64, 9, 7, "0" * 64, fingerprint="cpu/x", rows=4)
    walk_key = f"jobs/{claim.job_id}/1/walk.webp"
    jobs.succeed(queue.database, jobs.Success(claim.job_id, 1, [image], timings={}, walk_key=walk_key))
    record = queue.get(claim.job_id)
    assert record.walk_key == f"jobs/{claim.job_id}/1/walk.webp"
    assert record.images == (image,)


def upload(queue, owner: str = "ann", *, life_seconds: float = DAY):
    upload_id = UUID(int=count(queue, Upload) + 1)
    values = {"key": f"uploads/{upload_id}.png", "width": 8, "height": 8, "num_bytes": 9}
    return jobs.add_upload(queue.database, upload_id, owner=owner, life_seconds=life_seconds, **values)


def begin_from(queue, params, key: str, owner: str = "ann") -> UUID:
    changed = params.model_copy(update={"init_image": key, "strength": 0.5})
    return jobs.submit(queue.database, new(changed), owner=owner).id


def test_upload_is_its_owners_until_it_expires(queue) -> None:
    mine = upload(queue)
    assert jobs.get_upload(queue.database, mine.id, owner="ann") == mine
    with pytest.raises(UploadNotFound):
        jobs.get_upload(queue.database, mine.id, owner="bob")
    expired = upload(queue, life_seconds=-1)
    with pytest.raises(UploadNotFound):
        jobs.get_upload(queue.database, expired.id, owner="ann")


@pytest.mark.parametrize("owner", ["ann", "bob"])
def test_job_begins_only_from_what_its_owner_has(queue, params, owner: str) -> None:
    key = upload(queue, life_seconds=DAY if owner == "bob" else -1).key
    with pytest.raises(InputGone):
        begin_from(queue, params, key, owner)
    assert count(queue, Job, Job.owner == owner) == 0


def test_expired_upload_stays_while_a_job_needs_it(queue, params) -> None:
    needed, other = upload(queue), upload(queue)
    job_id = begin_from(queue, params, needed.key)
    with queue.database.write() as session:
        session.execute(update(Upload).values(expires_at=now(-3600)))
    assert [each.id for each in jobs.due_uploads(queue.database)] == [other.id]
    queue.cancel(job_id)
    assert {each.id for each in jobs.due_uploads(queue.database)} == {needed.id, other.id}
    jobs.forget_upload(queue.database, needed.id)
    assert count(queue, Upload) == 1


def test_upload_that_has_just_expired_is_left_for_jobs_on_their_way(queue) -> None:
    upload(queue, life_seconds=-1)
    assert jobs.due_uploads(queue.database) == []


def test_expiring_an_upload_by_hand_closes_it(queue) -> None:
    mine = upload(queue)
    with pytest.raises(UploadNotFound):
        jobs.expire_upload(queue.database, mine.id, owner="bob")
    jobs.expire_upload(queue.database, mine.id, owner="ann")
    with pytest.raises(UploadNotFound):
        jobs.get_upload(queue.database, mine.id, owner="ann")


def test_picture_that_a_live_job_begins_from_outlives_its_own_job(queue, params) -> None:
    source = queue.ended(JobState.SUCCEEDED)
    key = jobs.get_image(queue.database, source.job_id, 0, owner="ann").key
    job_id = begin_from(queue, params, key)
    jobs.erase(queue.database, source.job_id, owner="ann")
    assert jobs.due_for_deletion(queue.database, retention_seconds=RETENTION) == []
    queue.cancel(job_id)
    (due,) = jobs.due_for_deletion(queue.database, retention_seconds=RETENTION)
    assert due.job_id == source.job_id
    jobs.delete_ended(queue.database, source.job_id)
    assert count(queue, Image) == 0
    assert count(queue, JobInput) == 1


def test_retry_of_a_job_whose_input_is_gone_is_refused(queue, params) -> None:
    mine = upload(queue)
    job_id = begin_from(queue, params, mine.key)
    queue.cancel(job_id)
    assert jobs.retry(queue.database, job_id, owner="ann", ttl_seconds=60).params.init_image == mine.key
    jobs.expire_upload(queue.database, mine.id, owner="ann")
    with pytest.raises(InputGone):
        jobs.retry(queue.database, job_id, owner="ann", ttl_seconds=60)


def said(queue, params, prompt: str, owner: str = "ann") -> UUID:
    return jobs.submit(queue.database, new(params.model_copy(update={"prompt": prompt})), owner=owner).id


def test_search_finds_all_the_words_in_any_case_and_script(queue, params) -> None:
    first = said(queue, params, "A RED house by the Sea")
    second = said(queue, params, "ÖRTLICHE Straße, red")
    said(queue, params, "a blue house")
    said(queue, params, "a red house", owner="bob")
    for words, found in {"red": [second, first], "HOUSE red": [first], "örtliche STRASSE": [second], "50%": []}.items():
        records, rest = jobs.search(queue.database, words, owner="ann")
        assert ([record.id for record in records], rest) == (found, None)


def test_search_goes_on_where_it_stopped(queue, params) -> None:
    made = [said(queue, params, f"house {n}") for n in range(5)]
    seen, before = [], None
    while True:
        page, before = jobs.search(queue.database, "house", owner="ann", before=before, limit=2)
        seen += [record.id for record in page]
        if before is None:
            break
    assert seen == made[::-1]


def test_search_looks_at_a_bounded_number_of_jobs_and_says_where_it_stopped(queue, params) -> None:
    wanted = said(queue, params, "a house")
    others = [said(queue, params, "a boat") for _ in range(4)]
    found, rest = jobs.search(queue.database, "house", owner="ann", most_looked_at=3)
    assert (found, rest) == ([], others[1])
    found, rest = jobs.search(queue.database, "house", owner="ann", before=rest)
    assert [record.id for record in found] == [wanted]


def test_lines_count_what_waits_and_what_runs(queue) -> None:
    queue.submit("ann")
    queue.take()
    old, _ = queue.submit("ann"), queue.submit("bob")
    queue.submit("ann", job_class=JobClass.INTERACTIVE)
    queue.age(old, queued_at=90)
    interactive, bulk = jobs.lines(queue.database)
    assert (interactive.job_class, interactive.queued, interactive.running) == (JobClass.INTERACTIVE, 1, 0)
    assert (bulk.queued, bulk.running) == (2, 1)
    assert bulk.oldest_seconds == pytest.approx(90, abs=10)


def test_latest_done_are_the_models_own_successes(queue) -> None:
    ended = queue.ended(JobState.SUCCEEDED)
    queue.age(ended.job_id, started_at=8)
    queue.ended(JobState.FAILED)
    (done,) = jobs.latest_done(queue.database, "ending")
    assert (done.cost, jobs.latest_done(queue.database, "small")) == (1, [])
    assert done.seconds == pytest.approx(8, abs=2)
