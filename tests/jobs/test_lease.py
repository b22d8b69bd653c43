"""Leases, and what is held against a job whose worker was lost."""

import pytest

from darkroom import jobs
from darkroom.jobs import JobState
from darkroom.jobs.sweeping import MAX_CRASHES, SUSPECT_SHARED_CRASHES

SOLO = {"wait_seconds": 60, "hold_seconds": 15}


def test_heartbeat_renews_the_lease_by_the_databases_clock(queue) -> None:
    queue.submit()
    claim = queue.take()
    queue.age(claim.job_id, lease_expires_at=-3)
    assert queue.beat() == {claim.job_id}
    row = queue.row(claim.job_id)
    assert 29 < (row.lease_expires_at - row.started_at).total_seconds() < 60


def test_heartbeat_of_nothing_asks_nothing(queue) -> None:
    assert queue.beat("first", {}) == frozenset()


def test_heartbeat_answers_which_jobs_are_still_held(queue) -> None:
    for _ in range(3):
        queue.submit()
    kept, canceled, ended = queue.take(), queue.take(), queue.take()
    attempts = {claim.job_id: claim.attempt for claim in (kept, canceled, ended)}
    queue.cancel(canceled.job_id)
    queue.succeed(ended)
    assert queue.beat("first", attempts) == {kept.job_id}


def test_worker_cannot_renew_what_another_worker_holds(queue) -> None:
    queue.submit()
    claim = queue.take("first")
    assert queue.beat("second", {claim.job_id: claim.attempt}) == frozenset()


def test_lease_that_ran_out_is_revived_unless_somebody_swept(queue) -> None:
    queue.submit()
    claim = queue.take()
    queue.age(claim.job_id, lease_expires_at=3600)
    assert queue.beat() == {claim.job_id}
    assert jobs.expire_leases(queue.database) == []
    assert queue.state(claim.job_id) == JobState.RUNNING


def test_lease_that_holds_is_left_alone(queue) -> None:
    queue.submit()
    claim = queue.take()
    assert jobs.expire_leases(queue.database) == []
    assert queue.beat() == {claim.job_id}


def test_job_whose_lease_ran_out_waits_again(queue) -> None:
    queue.submit()
    claim = queue.take()
    assert queue.crash(claim) == [(claim.job_id, "small")]
    assert queue.state(claim.job_id) == JobState.QUEUED
    assert queue.history(claim.job_id)[-1] == "requeued"
    assert jobs.expire_leases(queue.database) == []


def test_crash_alone_counts_against_the_job(queue) -> None:
    queue.submit()
    for crashes in range(1, MAX_CRASHES):
        queue.crash(queue.take())
        (record,) = jobs.list_jobs(queue.database, owner="ann")
        assert (record.crashes, record.state) == (crashes, JobState.QUEUED)


def test_last_crash_alone_ends_the_job_as_failed(queue) -> None:
    job_id = queue.submit()
    for _ in range(MAX_CRASHES - 1):
        queue.crash(queue.take())
    assert queue.crash(queue.take()) == [], "it does not wait again"
    record = queue.get(job_id)
    assert (record.state, record.crashes, record.error_code) == (JobState.FAILED, MAX_CRASHES, "worker-lost")
    assert queue.row(job_id).cleanup_at is not None
    assert queue.history(job_id) == ["queued", *["running", "requeued"] * (MAX_CRASHES - 1), "running", "failed"]


def test_crash_in_company_counts_against_nobody_and_makes_suspects(queue) -> None:
    both = {queue.submit(), queue.submit()}
    for num_shared in range(1, SUSPECT_SHARED_CRASHES + 1):
        claims = [queue.take("first", num_held=held) for held in (0, 1)]
        queue.crash(*claims)
        for job_id in both:
            row = queue.row(job_id)
            assert (row.crashes, row.shared_crashes) == (0, num_shared)
            assert row.is_solo == (num_shared >= SUSPECT_SHARED_CRASHES)
    assert queue.take(num_held=0).is_solo
    assert queue.claim(num_held=1) is None


def report_crash(queue, *claims) -> None:
    jobs.report_crash(queue.database, {claim.job_id: claim.attempt for claim in claims}, reason="the engine was lost")


def test_crash_that_a_worker_reports_counts_at_once_whatever_the_lease(queue) -> None:
    job_id = queue.submit()
    for crashes in range(1, MAX_CRASHES):
        report_crash(queue, queue.take())
        assert (queue.row(job_id).crashes, queue.row(job_id).shared_crashes) == (crashes, 0)
        assert queue.history(job_id)[-1] == "requeued"
    report_crash(queue, queue.take())
    record = queue.get(job_id)
    assert (record.state, record.crashes, record.error_code) == (JobState.FAILED, MAX_CRASHES, "worker-lost")
    assert record.error_message == "the engine was lost; that happened 3 times while this job ran alone"


def test_crash_that_a_worker_reports_of_several_makes_suspects(queue) -> None:
    both = {queue.submit(), queue.submit()}
    for _ in range(SUSPECT_SHARED_CRASHES):
        report_crash(queue, *(queue.take("first", num_held=held) for held in (0, 1)))
    for job_id in both:
        row = queue.row(job_id)
        assert (row.crashes, row.shared_crashes, row.is_solo) == (0, SUSPECT_SHARED_CRASHES, True)


def test_crash_that_is_reported_too_late_changes_nothing(queue) -> None:
    job_id = queue.submit()
    old = queue.take()
    queue.requeue(old)
    new = queue.take()
    report_crash(queue, old)
    report_crash(queue)
    assert (queue.state(job_id), queue.row(job_id).crashes) == (JobState.RUNNING, 0)
    assert queue.beat() == {new.job_id}


def test_being_put_back_counts_nothing_and_forgives_nothing(queue) -> None:
    job_id = queue.submit()
    queue.crash(queue.take())
    for _ in range(5):
        queue.requeue(queue.take())
    row = queue.row(job_id)
    assert (row.crashes, row.shared_crashes, row.is_solo) == (1, 0, False)


def test_job_is_alone_again_when_its_company_has_gone(queue) -> None:
    queue.submit()
    queue.submit()
    first, second = queue.take(), queue.take()
    queue.beat()
    assert not queue.row(first.job_id).is_alone
    queue.succeed(second)
    queue.beat()
    assert queue.row(first.job_id).is_alone


def test_job_that_stalls_still_keeps_the_other_company(queue) -> None:
    """A heartbeat does not name a job that has stalled; what then brings the worker down is not the other's fault."""
    queue.submit()
    queue.submit()
    moving, stalled = queue.take(), queue.take()
    assert queue.beat("first", {moving.job_id: moving.attempt}) == {moving.job_id}
    queue.crash(moving, stalled)
    assert [queue.row(claim.job_id).crashes for claim in (moving, stalled)] == [0, 0]


def suspect(queue, *, waited: float = 61, **how):
    job_id = queue.submit(**how)
    queue.set(job_id, is_solo=True)
    queue.age(job_id, queued_at=waited)
    return job_id


def reserve(queue, worker: str, models: tuple[str, ...] = ("small",)) -> bool:
    return jobs.reserve_solo(queue.database, worker_id=worker, models=models, **SOLO)


def test_suspect_that_has_waited_long_enough_is_reserved_for_one_worker(queue) -> None:
    suspect(queue)
    assert reserve(queue, "first")
    assert not reserve(queue, "second")
    assert reserve(queue, "first"), "asking again renews it"


def test_suspect_that_has_not_waited_long_enough_empties_no_worker(queue) -> None:
    suspect(queue, waited=59)
    assert not reserve(queue, "first")


@pytest.mark.parametrize("models", [("large",), ()])
def test_suspect_empties_no_worker_that_does_not_hold_its_model(queue, models: tuple[str, ...]) -> None:
    suspect(queue)
    assert not reserve(queue, "first", models)


def test_job_without_suspicion_empties_no_worker(queue) -> None:
    queue.age(queue.submit(), queued_at=3600)
    assert not reserve(queue, "first")


def test_reservation_lapses(queue) -> None:
    job_id = suspect(queue)
    assert reserve(queue, "first")
    queue.age(job_id, solo_reserved_until=1)
    assert reserve(queue, "second")
    assert not reserve(queue, "first")


def test_reservation_ends_with_the_claim(queue) -> None:
    job_id = suspect(queue)
    reserve(queue, "first")
    claim = queue.take("second", num_held=0)
    assert claim.job_id == job_id, "an empty worker need not wait for another to run empty"
    assert not reserve(queue, "first")
    queue.requeue(claim)
    row = queue.row(job_id)
    assert (row.solo_worker_id, row.solo_reserved_until, row.is_solo) == (None, None, True)


def test_two_suspects_are_reserved_for_two_workers(queue) -> None:
    suspect(queue)
    suspect(queue)
    assert reserve(queue, "first")
    assert reserve(queue, "second")
    assert not reserve(queue, "third")
