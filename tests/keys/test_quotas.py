"""What a key may submit: held to its quotas at, below and above them, also by many at once; and the intake of all."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from claiming import claim_one
from sqlalchemy import select, update

from darkroom import intake, jobs, keys
from darkroom.db import Database, now, today
from darkroom.errors import IntakePaused, KeyRevoked, QuotaExceeded
from darkroom.intake import Notice
from darkroom.jobs import JobClass, Lines, NewJob
from darkroom.keys import Quotas
from darkroom.models import ApiKey, Job
from darkroom.params import GenerationParams

SECONDS = 60
RACERS = 12


def new_job(cost: int = 1) -> NewJob:
    """A job of this many megapixel-steps."""
    params = GenerationParams(
        prompt="a house",
        width=1000,
        height=1000,
        num_inference_steps=cost,
        guidance_scale=1.0,
        sampler="euler",
        seed=0,
    )
    return NewJob("small", params, JobClass.BULK, 3600)


def key_with(database: Database, name: str = "ann", **quotas: Any) -> UUID:
    record, _ = keys.create(database, name=name, owner=name, scopes=("submit",), quotas=Quotas(**quotas))
    return record.id


def submit(database: Database, key_id: UUID | None, *, cost: int = 1, owner: str = "ann") -> Any:
    return jobs.submit(database, new_job(cost), owner=owner, key_id=key_id)


def num_jobs(database: Database) -> int:
    with database.read() as session:
        return len(session.scalars(select(Job.id)).all())


def claim(database: Database) -> Any:
    return claim_one(database, worker_id="w", models=["small"], num_held=0, lease_seconds=60, lines=Lines())


def refusal(database: Database, key_id: UUID, **how: Any) -> QuotaExceeded:
    before = num_jobs(database)
    with pytest.raises(QuotaExceeded) as refused:
        submit(database, key_id, **how)
    assert num_jobs(database) == before
    return refused.value


def test_as_many_jobs_may_wait_as_the_quota_says(database: Database) -> None:
    key_id = key_with(database, max_queued=2)
    for _ in range(2):
        submit(database, key_id)
    refused = refusal(database, key_id)
    assert (refused.quota, refused.limit, refused.used, refused.asked) == ("max_queued", 2, 2, 1)
    assert refused.seconds_left > 0
    claim(database)  # one of them runs, and waits no more
    submit(database, key_id)
    refusal(database, key_id)


def test_key_without_a_place_in_the_queue_submits_nothing(database: Database) -> None:
    assert refusal(database, key_with(database, max_queued=0)).used == 0


def test_batch_is_taken_whole_or_not_at_all(database: Database) -> None:
    key_id = key_with(database, max_queued=3)
    submit(database, key_id)
    with pytest.raises(QuotaExceeded) as refused:
        jobs.submit_batch(database, [new_job()] * 3, owner="ann", key_id=key_id)
    assert (refused.value.used, refused.value.asked) == (1, 3)
    assert num_jobs(database) == 1
    jobs.submit_batch(database, [new_job()] * 2, owner="ann", key_id=key_id)
    assert num_jobs(database) == 3


def test_only_a_keys_own_jobs_are_counted(database: Database) -> None:
    first, second = key_with(database, max_queued=1), key_with(database, "second", max_queued=1)
    submit(database, first)
    submit(database, second)
    submit(database, None)
    refusal(database, first)
    assert [jobs.num_queued(database, key_id) for key_id in (first, second)] == [1, 1]


def test_as_many_megapixel_steps_are_taken_on_a_day_as_the_quota_says(database: Database) -> None:
    key_id = key_with(database, megapixel_steps_per_day=10)
    submit(database, key_id, cost=9)
    refused = refusal(database, key_id, cost=2)
    assert (refused.quota, refused.limit, refused.used, refused.asked) == ("megapixel_steps_per_day", 10, 9, 2)
    assert 0 < refused.seconds_left <= 86400
    submit(database, key_id, cost=1)
    refusal(database, key_id, cost=1)
    assert keys.get(database, key_id).used_megapixel_steps == 10


def test_next_day_begins_with_nothing_used(database: Database) -> None:
    key_id = key_with(database, megapixel_steps_per_day=10)
    submit(database, key_id, cost=10)
    with database.write() as session:
        session.execute(update(ApiKey).values(used_on=session.scalar(select(today())).replace(year=2020)))
    assert keys.get(database, key_id).used_megapixel_steps == 0
    submit(database, key_id, cost=10)
    refusal(database, key_id, cost=1)


def test_what_is_used_is_counted_without_a_quota_too(database: Database) -> None:
    key_id = key_with(database)
    submit(database, key_id, cost=3)
    submit(database, key_id, cost=4)
    assert keys.get(database, key_id).used_megapixel_steps == 7


def test_other_quotas_hold_from_the_next_submit_on(database: Database) -> None:
    key_id = key_with(database, max_queued=1)
    submit(database, key_id)
    refusal(database, key_id)
    keys.change(database, key_id, changes={"max_queued": 2})
    submit(database, key_id)


def test_revoked_key_submits_nothing_more(database: Database) -> None:
    key_id = key_with(database)
    keys.revoke(database, key_id)
    with pytest.raises(KeyRevoked):
        submit(database, key_id)
    assert num_jobs(database) == 0


@pytest.fixture
def wide(database_url: str) -> Iterator[Database]:
    """A database with a connection for every racer."""
    database = Database(database_url, pool_size=RACERS)
    yield database
    database.dispose()


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("quotas", [{"max_queued": 5}, {"megapixel_steps_per_day": 5}])
def test_many_submits_at_once_pass_no_quota(wide: Database, quotas: dict[str, Any]) -> None:
    key_id = key_with(wide, **quotas)
    start = threading.Barrier(RACERS)

    def race(n: int) -> bool:
        start.wait(SECONDS)
        try:
            # Different lines: what keeps one line's submits apart must not be what keeps the quota.
            jobs.submit(wide, NewJob(f"model-{n}", new_job().params, JobClass.BULK, 3600), owner="ann", key_id=key_id)
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(RACERS) as pool:
        taken = list(pool.map(race, range(RACERS)))
    assert taken.count(True) == 5
    assert num_jobs(wide) == 5


def test_share_of_a_key_is_its_weight(database: Database) -> None:
    heavy = jobs.submit(database, new_job(10), owner="heavy", weight=4.0)
    light = jobs.submit(database, new_job(10), owner="light", weight=1.0)
    with database.read() as session:
        tags = {job_id: tag for job_id, tag in session.execute(select(Job.id, Job.finish_tag))}
    assert (tags[heavy.id], tags[light.id]) == (2.5, 10.0)


def test_paused_intake_takes_no_job_and_says_why(database: Database) -> None:
    key_id = key_with(database)
    pause = intake.pause(database, reason="new disks", paused_by="root")
    assert intake.read(database) == pause
    for who in (None, key_id):
        with pytest.raises(IntakePaused, match="new disks"):
            submit(database, who)
    assert num_jobs(database) == 0
    assert keys.get(database, key_id).used_megapixel_steps == 0


def test_intake_that_is_paused_again_has_the_last_reason_and_one_resume_ends_it(database: Database) -> None:
    intake.pause(database, reason="new disks", paused_by="root")
    intake.pause(database, reason="newer disks", paused_by="root")
    assert intake.read(database).reason == "newer disks"  # type: ignore[union-attr]
    intake.resume(database, resumed_by="root")
    intake.resume(database, resumed_by="root")
    assert intake.read(database) is None
    submit(database, None)


def test_jobs_that_were_taken_go_on_while_the_intake_is_paused(database: Database) -> None:
    submit(database, None)
    intake.pause(database, reason="new disks", paused_by="root")
    assert claim(database)


def test_notice_is_read_anew_only_when_it_is_old(database: Database) -> None:
    seconds = 0.0
    notice = Notice(database, clock=lambda: seconds)
    assert notice.read() is None
    intake.pause(database, reason="new disks", paused_by="root")
    assert notice.read() is None
    seconds = intake.REMEMBER_SECONDS
    assert notice.read() == intake.read(database)


def test_notice_of_a_database_that_is_away_is_none() -> None:
    database = Database("postgresql+psycopg://me@127.0.0.1:1/darkroom")
    assert Notice(database).read() is None
    database.dispose()


def test_today_is_the_day_of_the_databases_clock(database: Database) -> None:
    with database.read() as session:
        day, moment = session.execute(select(today(), now())).one()
    assert day == moment.date()
