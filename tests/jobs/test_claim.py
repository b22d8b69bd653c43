"""Who gets which job: order, fairness, suspects. A worker is a name here; see test_races.py for many at once."""

from uuid import UUID

import pytest
from sqlalchemy import delete, select, update

from darkroom import jobs
from darkroom.jobs import JobClass, JobState, Lines, NewJob
from darkroom.jobs.line import LINE_LAG_CLAIMS
from darkroom.models import Job

FLOOD = 500


def test_empty_line_gives_nothing(queue) -> None:
    assert queue.claim() is None


def test_claim_hands_over_all_that_the_worker_needs(queue) -> None:
    job_id = queue.submit("ann", cost=12, job_class=JobClass.INTERACTIVE, ttl_seconds=600)
    claim = queue.take("first")
    assert (claim.job_id, claim.owner, claim.model, claim.attempt) == (job_id, "ann", "small", 1)
    assert claim.job_class == JobClass.INTERACTIVE
    assert claim.params == queue.get(job_id).params
    assert 590 < claim.seconds_left <= 600
    assert not claim.is_solo


def test_claimed_job_runs_under_a_lease_of_its_worker(queue) -> None:
    claim = queue.take("first") if queue.submit() else None
    assert claim
    row = queue.row(claim.job_id)
    assert (row.state, row.worker_id, row.attempt) == (JobState.RUNNING, "first", 1)
    assert 29 < (row.lease_expires_at - row.started_at).total_seconds() < 31
    assert queue.history(claim.job_id) == ["queued", "running"]


def test_claimed_job_is_not_claimed_again(queue) -> None:
    queue.submit()
    assert queue.claim("first")
    assert queue.claim("second") is None


def test_job_of_a_model_that_the_worker_does_not_hold_waits(queue) -> None:
    queue.submit(model="large")
    assert queue.claim(models=("small",)) is None
    assert queue.claim(models=("small", "large"))


def test_worker_without_models_claims_nothing(queue) -> None:
    queue.submit()
    assert queue.claim(models=()) is None


def test_interactive_job_goes_before_every_bulk_job(queue) -> None:
    bulk = [queue.submit("ann") for _ in range(3)]
    interactive = queue.submit("ann", job_class=JobClass.INTERACTIVE)
    assert queue.order() == [interactive, *bulk]


def test_one_owner_gets_jobs_in_the_order_of_submission(queue) -> None:
    submitted = [queue.submit("ann", cost=cost) for cost in (5, 1, 9, 2)]
    assert queue.order() == submitted


def test_two_owners_take_turns(queue) -> None:
    ann = [queue.submit("ann") for _ in range(3)]
    bob = [queue.submit("bob") for _ in range(3)]
    assert queue.order() == [ann[0], bob[0], ann[1], bob[1], ann[2], bob[2]]


def test_owner_of_double_weight_gets_two_turns_of_three(queue) -> None:
    ann = [queue.submit("ann", cost=4, weight=2.0) for _ in range(4)]
    bob = [queue.submit("bob", cost=4, weight=1.0) for _ in range(2)]
    assert queue.order() == [ann[0], bob[0], ann[1], ann[2], bob[1], ann[3]]


def test_cost_counts_all_pictures_of_a_job(queue) -> None:
    queue.submit("ann", cost=2, num_images=3)
    second = queue.row(queue.submit("ann"))
    assert second.start_tag == pytest.approx(6)


def jobs_before(queue, newcomer: UUID, **how) -> int:
    """How many jobs are claimed before the newcomer's, by one worker that ends each before the next."""
    for turn in range(FLOOD):
        claim = queue.take(num_held=0, **how)
        if claim.job_id == newcomer:
            return turn
        queue.succeed(claim)
    raise AssertionError("the newcomer was never served")


def test_newcomer_waits_for_at_most_one_job_of_a_flood(queue) -> None:
    for _ in range(FLOOD):
        queue.submit("ann")
    newcomer = queue.submit("bob")
    assert jobs_before(queue, newcomer) <= 1
    for _ in range(3):
        queue.take()
    newcomer_of_ten_times_the_cost = queue.submit("carl", cost=10)
    assert jobs_before(queue, newcomer_of_ten_times_the_cost) <= 1


def test_newcomer_is_served_after_the_flood_has_flowed_for_a_while(queue) -> None:
    lines = remembering(queue)
    for _ in range(30):
        queue.submit("ann")
    for _ in range(10):
        queue.succeed(queue.take(lines=lines))
    newcomer = queue.submit("bob", cost=10)
    assert jobs_before(queue, newcomer, lines=lines) <= 1


def test_newcomer_is_served_when_the_flood_was_canceled_and_submitted_anew(queue) -> None:
    """A worker that is busy all the while has no time to notice that the line was empty for a moment."""
    lines = remembering(queue)
    flood = [queue.submit("ann", cost=10) for _ in range(5)]
    running = queue.take(lines=lines)
    for job_id in flood:
        queue.cancel(job_id)
    queue.drop(running)
    for _ in range(LINE_LAG_CLAIMS):
        queue.submit("ann", cost=10)
    newcomer = queue.submit("bob")
    assert jobs_before(queue, newcomer, lines=lines) <= 1


def test_canceling_and_submitting_anew_does_not_overtake_who_waits(queue) -> None:
    flood = [queue.submit("ann") for _ in range(20)]
    newcomer = queue.submit("bob")
    for job_id in flood:
        queue.cancel(job_id)
    for _ in range(20):
        queue.submit("ann")
    assert jobs_before(queue, newcomer) <= 1


def test_newcomer_finds_an_empty_line_behind_running_jobs(queue) -> None:
    for _ in range(5):
        queue.submit("ann")
    for _ in range(5):
        queue.take()
    newcomer = queue.submit("bob")
    for _ in range(20):
        queue.submit("ann")
    assert jobs_before(queue, newcomer) == 0


def test_second_model_that_runs_ahead_does_not_hold_up_a_newcomer(queue) -> None:
    """Tags of two lines are never compared: the faster one is thousands of megapixel-steps ahead."""
    for _ in range(12):
        queue.submit("ann", model="fast", cost=100)
        queue.submit("ann", model="slow")
    for _ in range(10):
        queue.succeed(queue.take(models=("fast",)))
    for model in ("slow", "fast"):
        newcomer = queue.submit("bob", model=model)
        assert jobs_before(queue, newcomer, models=(model,)) <= 1


@pytest.mark.parametrize(("flooded", "other"), [("fast", "slow"), ("slow", "fast")])
def test_flood_of_one_model_does_not_hold_up_another_model_of_the_same_worker(queue, flooded: str, other: str) -> None:
    for _ in range(30):
        queue.submit("ann", model=flooded)
    lines = Lines()
    for _ in range(5):
        queue.succeed(queue.take(models=("fast", "slow"), lines=lines))
    newcomer = queue.submit("bob", model=other)
    assert jobs_before(queue, newcomer, models=("fast", "slow"), lines=lines) <= 1


def test_interactive_job_of_one_model_goes_before_bulk_of_another(queue) -> None:
    lines = Lines()
    for _ in range(3):
        queue.submit(model="fast")
    interactive = queue.submit(model="slow", job_class=JobClass.INTERACTIVE)
    queue.submit(model="slow")
    assert queue.take(models=("fast", "slow"), lines=lines).job_id == interactive


def test_flood_cannot_overtake_while_an_old_job_is_back_at_the_front(queue) -> None:
    """A job that came back has an old tag: whoever took it as today's time would pass everybody who waits."""
    old = queue.take() if queue.submit("carl") else None
    for _ in range(2):
        queue.submit("ann", cost=50)
    for _ in range(2):
        queue.succeed(queue.take())
    queue.submit("ann")
    waiting = queue.submit("bob")
    queue.requeue(old)
    for _ in range(10):
        queue.submit("dora")
    assert jobs_before(queue, waiting) <= 3  # carl's, ann's, and one of dora's


def test_flood_cannot_overtake_jobs_that_all_came_back(queue) -> None:
    queue.submit("ann", cost=50)
    queue.submit("ann")
    claims = [queue.take(), queue.take()]
    waiting = queue.submit("bob")
    claims.append(queue.take())
    assert claims[-1].job_id == waiting
    for claim in claims:
        queue.requeue(claim)
    for _ in range(10):
        queue.submit("dora")
    assert jobs_before(queue, waiting) <= 3


@pytest.mark.parametrize("come_back", ["requeue", "crash"])
def test_job_that_comes_back_keeps_its_place(queue, come_back: str) -> None:
    submitted = [queue.submit(owner) for _ in range(2) for owner in ("ann", "bob")]
    getattr(queue, come_back)(queue.take())
    assert queue.order() == submitted


def test_every_claim_raises_the_attempt(queue) -> None:
    queue.submit()
    for attempt in (1, 2, 3):
        claim = queue.take()
        assert claim.attempt == attempt
        queue.requeue(claim)


def test_suspect_is_not_claimed_by_a_worker_that_holds_another_job(queue) -> None:
    suspect, other = queue.submit(), queue.submit()
    queue.set(suspect, is_solo=True)
    assert queue.take(num_held=1).job_id == other
    assert queue.claim(num_held=1) is None
    claim = queue.take(num_held=0)
    assert (claim.job_id, claim.is_solo) == (suspect, True)


def test_worker_that_ran_empty_for_a_suspect_gets_it_before_the_front_of_the_line(queue) -> None:
    queue.submit("ann", job_class=JobClass.INTERACTIVE)
    suspect = queue.submit("bob", model="large")
    queue.set(suspect, is_solo=True)
    queue.age(suspect, queued_at=61)
    models = ("small", "large")
    assert jobs.reserve_solo(queue.database, worker_id="first", models=models, wait_seconds=60, hold_seconds=15)
    assert queue.take("first", models=models, num_held=0).job_id == suspect


def test_lapsed_reservation_gives_no_precedence(queue) -> None:
    front, suspect = queue.submit("ann", job_class=JobClass.INTERACTIVE), queue.submit("bob")
    queue.set(suspect, is_solo=True, solo_worker_id="first")
    queue.age(suspect, solo_reserved_until=1)
    assert queue.take("first", num_held=0).job_id == front


def test_claim_marks_who_is_alone(queue) -> None:
    first, second = queue.submit(), queue.submit()
    queue.take("first")
    assert queue.row(first).is_alone
    queue.take("first")
    assert not queue.row(first).is_alone
    assert not queue.row(second).is_alone


def test_claim_of_one_worker_leaves_another_one_alone(queue) -> None:
    first = queue.submit()
    queue.submit()
    queue.submit()
    queue.take("first")
    queue.take("second")
    queue.take("second")
    assert queue.row(first).is_alone


def remembering(queue, job_class: JobClass = JobClass.BULK) -> Lines:
    """The lines of a worker that has claimed so much that it no longer looks from the front."""
    lines = Lines()
    for _ in range(2):
        queue.submit("ann", cost=100, job_class=job_class)
    for _ in range(2):
        queue.succeed(queue.take(lines=lines))
    for _ in range(LINE_LAG_CLAIMS):
        lines.passed("small", job_class, 100)
    assert lines.of("small", job_class).begins_at == 100
    return lines


def forget_all_jobs(queue) -> None:
    """What retention does in the end: with the jobs, the line's own past is gone."""
    with queue.database.write() as session:
        session.execute(delete(Job))


def test_line_that_ran_empty_goes_on_where_it_was(queue) -> None:
    for _ in range(3):
        queue.submit("ann", cost=5)
        queue.succeed(queue.take())
    assert queue.row(queue.submit("bob")).start_tag == 0
    for _ in range(3):
        queue.submit("ann", cost=5)
    for _ in range(4):
        queue.succeed(queue.take())
    assert queue.row(queue.submit("carl")).start_tag == 10


def test_worker_that_remembers_finds_a_line_that_began_anew(queue) -> None:
    lines = remembering(queue)
    forget_all_jobs(queue)
    newcomer = queue.submit("bob")
    assert queue.row(newcomer).start_tag == 0
    assert queue.take(lines=lines).job_id == newcomer


def test_worker_that_remembers_serves_interactive_before_bulk_when_that_line_began_anew(queue) -> None:
    lines = remembering(queue, JobClass.INTERACTIVE)
    forget_all_jobs(queue)
    queue.submit("ann")
    interactive = queue.submit("bob", job_class=JobClass.INTERACTIVE)
    assert queue.take(lines=lines).job_id == interactive


def test_worker_that_remembers_serves_an_interactive_job_that_came_back_before_bulk(queue) -> None:
    old = queue.take("second") if queue.submit("bob", job_class=JobClass.INTERACTIVE) else None
    lines = remembering(queue, JobClass.INTERACTIVE)
    queue.submit("ann")
    queue.requeue(old)
    assert queue.take(lines=lines).job_id == old.job_id


def test_worker_that_remembers_finds_a_job_that_came_back_once_it_looks_at_the_whole_line(queue) -> None:
    old = queue.take("second") if queue.submit("bob") else None
    lines = remembering(queue)
    later = [queue.submit("ann") for _ in range(2)]
    queue.requeue(old)
    assert queue.take(lines=lines).job_id == later[0], "nobody looks there between two polls"
    assert queue.take(lines=lines, whole_line=True).job_id == old.job_id
    assert queue.take(lines=lines).job_id == later[1]


def test_position_counts_the_jobs_that_are_claimed_before(queue) -> None:
    bulk = [queue.submit("ann") for _ in range(3)]
    interactive = queue.submit("bob", job_class=JobClass.INTERACTIVE)
    queue.submit("bob", model="large")
    assert [jobs.position(queue.database, job_id) for job_id in (interactive, *bulk)] == [0, 1, 2, 3]
    assert jobs.front_of_queue(queue.database, model="small", limit=3) == [interactive, *bulk[:2]]


def test_job_that_does_not_wait_has_no_position(queue, nobody: UUID) -> None:
    claim = queue.take() if queue.submit() else None
    assert jobs.position(queue.database, claim.job_id) is None
    assert jobs.position(queue.database, nobody) is None


def test_claim_of_interactive_jobs_leaves_bulk_ones_waiting(queue) -> None:
    bulk = queue.submit()
    assert queue.claim(job_classes=(JobClass.INTERACTIVE,)) is None
    interactive = queue.submit(job_class=JobClass.INTERACTIVE)
    assert queue.take(job_classes=(JobClass.INTERACTIVE,)).job_id == interactive
    assert queue.state(bulk) == JobState.QUEUED


def test_job_that_nobody_can_read_fails_and_blocks_nobody(queue) -> None:
    """A newer version may have written parameters that this one does not know."""
    unreadable, readable = queue.submit(), queue.submit()
    with queue.database.write() as session:
        session.execute(update(Job).where(Job.id == unreadable).values(params={"prompt": "a house", "from": "later"}))
    assert queue.take().job_id == readable
    with queue.database.read() as session:
        state, code = session.execute(select(Job.state, Job.error_code).where(Job.id == unreadable)).one()
    assert (state, code) == (JobState.FAILED, "unreadable-parameters")


def test_glance_counts_no_further_than_it_says_and_position_counts_all(queue) -> None:
    """A submit and a poll cost the same at any depth."""
    params = queue.get(queue.submit()).params
    new = NewJob("small", params, JobClass.BULK, 3600)
    jobs.submit_batch(queue.database, [new] * (jobs.MOST_COUNTED + 4), owner="ann")
    last = jobs.submit(queue.database, new, owner="ann")
    assert last.num_ahead in {None if queue.database.is_sqlite else jobs.MOST_COUNTED + 1}
    assert jobs.glimpse(queue.database, last.id, owner="ann").position == jobs.MOST_COUNTED + 1
    assert jobs.position(queue.database, last.id) == jobs.MOST_COUNTED + 5


def claim_several(queue, *, num_held: int, most: int) -> list[UUID]:
    claimed = jobs.claim(
        queue.database,
        worker_id="first",
        models=("small",),
        num_held=num_held,
        lease_seconds=30,
        lines=Lines(),
        most=most,
    )
    return [claim.job_id for claim in claimed]


def test_several_are_claimed_from_the_front_in_their_order_and_no_more(queue) -> None:
    bulk = [queue.submit() for _ in range(4)]
    hurried = [queue.submit(job_class=JobClass.INTERACTIVE) for _ in range(2)]
    running = queue.take()
    assert running.job_id == hurried[0]
    groups = [claim_several(queue, num_held=1, most=3) for _ in range(4)]
    assert [job_id for group in groups for job_id in group] == [*hurried[1:], *bulk]
    assert max(map(len, groups)) == 3
    for job_id in bulk:
        assert queue.history(job_id) == ["queued", "running"]
        row = queue.row(job_id)
        assert (row.attempt, row.worker_id, row.is_alone) == (1, "first", False)
    assert not queue.row(running.job_id).is_alone


def test_suspect_is_not_among_several(queue) -> None:
    running, suspect, other = (queue.submit() for _ in range(3))
    assert queue.take().job_id == running
    queue.set(suspect, is_solo=True)
    assert claim_several(queue, num_held=1, most=3) == [other]


def test_worker_that_runs_none_claims_one_however_many_it_has_room_for(queue) -> None:
    suspect, other = queue.submit(), queue.submit()
    queue.set(suspect, is_solo=True)
    assert claim_several(queue, num_held=0, most=3) == [suspect]
    assert queue.history(other) == ["queued"]


def test_job_that_cannot_be_read_is_failed_among_several(queue) -> None:
    running, unreadable, readable = (queue.submit() for _ in range(3))
    assert queue.take().job_id == running
    with queue.database.write() as session:
        session.execute(update(Job).where(Job.id == unreadable).values(params={"from": "later"}))
    assert claim_several(queue, num_held=1, most=2) == [readable]
    assert queue.row(unreadable).state == JobState.FAILED
