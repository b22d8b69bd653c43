"""The figures that operators are told, on both databases, and that they read little however many jobs there are."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, insert, select, text
from sqlalchemy.engine import Engine
from uuid_utils.compat import uuid7

from darkroom.db import Database, now
from darkroom.jobs import JobClass, JobState, statistics
from darkroom.jobs.statistics import JOBS_OF_A_FAILURE, JOBS_OF_A_PART, PARTS, percentile
from darkroom.models import Image, Job

HOUR = 3600


@pytest.fixture
def at_half_past(database: Database) -> datetime:
    """The middle of the hour before the last one, by the database's clock."""
    with database.read() as session:
        clock: datetime = session.execute(select(now())).scalar_one()
    return datetime.fromtimestamp((clock.timestamp() // HOUR - 1.5) * HOUR, UTC)


def end(queue: Any, state: JobState, at: datetime, *, waited: float = 0.0, **values: Any) -> UUID:
    """A job that ended then, and had waited so long before it ran for two seconds."""
    job_id: UUID = queue.ended(state).job_id
    times = {"finished_at": at, "started_at": moved(at, -2), "created_at": moved(at, -2 - waited)}
    queue.set(job_id, **times, **values)
    return job_id


def moved(at: datetime, seconds: float) -> datetime:
    return datetime.fromtimestamp(at.timestamp() + seconds, UTC)


def test_spans_count_what_ended_in_each_of_them(queue: Any, at_half_past: datetime) -> None:
    for state in (*[JobState.SUCCEEDED] * 3, JobState.FAILED, JobState.EXPIRED, JobState.CANCELED):
        end(queue, state, at_half_past)
    end(queue, JobState.SUCCEEDED, moved(at_half_past, HOUR))
    end(queue, JobState.SUCCEEDED, moved(at_half_past, -10 * HOUR))

    spans = statistics.latest_spans(queue.database, num=4, seconds=HOUR)
    assert [(span.num_succeeded, span.num_failed) for span in spans] == [(0, 0), (3, 2), (1, 0), (0, 0)]
    assert spans[1].begins_at == moved(at_half_past, -HOUR / 2)
    assert [span.begins_at.timestamp() % HOUR for span in spans] == [0] * 4


def test_job_at_the_edge_of_two_spans_is_counted_once(queue: Any, at_half_past: datetime) -> None:
    end(queue, JobState.SUCCEEDED, moved(at_half_past, HOUR / 2))
    spans = statistics.latest_spans(queue.database, num=4, seconds=HOUR)
    assert [span.num_succeeded for span in spans] == [0, 0, 1, 0]
    assert [span.median_wait_seconds for span in spans] == [None, None, pytest.approx(0, abs=0.01), None]


def test_waits_are_from_submission_to_the_claim_that_counted(queue: Any, at_half_past: datetime) -> None:
    for waited in range(20):
        end(queue, JobState.SUCCEEDED, moved(at_half_past, 60 * waited), waited=waited)
    end(queue, JobState.FAILED, at_half_past, waited=1000)
    span = statistics.latest_spans(queue.database, num=4, seconds=HOUR)[1]
    assert span.median_wait_seconds == pytest.approx(10, abs=0.01)
    assert span.p95_wait_seconds == pytest.approx(19, abs=0.01)


@pytest.mark.parametrize(
    ("values", "share", "is_"),
    [([], 0.5, None), ([3.0], 0.95, 3.0), ([2.0, 1.0], 0.5, 2.0), ([float(n) for n in range(100)], 0.95, 95.0)],
)
def test_percentile(values: list[float], share: float, is_: float | None) -> None:
    assert percentile(values, share) == is_


def test_depths_tell_what_waits_and_runs_of_each_class_and_since_when(queue: Any) -> None:
    first, *_ = [queue.submit(job_class=JobClass.BULK) for _ in range(3)]
    queue.take()
    queue.age(queue.submit(job_class=JobClass.BULK, model="large"), queued_at=90)
    queue.age(first, queued_at=1000)  # it runs
    interactive, bulk = statistics.depths(queue.database)
    assert (interactive.job_class, interactive.num_queued, interactive.num_running) == (JobClass.INTERACTIVE, 0, 0)
    assert interactive.oldest_seconds is None
    assert (bulk.num_queued, bulk.num_running) == (3, 1)
    assert bulk.oldest_seconds == pytest.approx(90, abs=30)


def test_running_jobs_are_told_with_their_worker(queue: Any) -> None:
    job_id = queue.submit("ann")
    queue.submit("bob")
    queue.take("first")
    queue.age(job_id, started_at=30)
    (running,) = statistics.running(queue.database)
    assert (running.id, running.owner, running.worker_id, running.attempt) == (job_id, "ann", "first", 1)
    assert running.seconds == pytest.approx(30, abs=20)


def test_failures_are_grouped_by_reason_whatever_numbers_it_names(queue: Any, at_half_past: datetime) -> None:
    out = {"error_code": "develop-failed", "model": "large"}
    ids = [
        end(queue, JobState.FAILED, moved(at_half_past, n), error_message=f"{n}.5 GiB are missing", **out)
        for n in range(JOBS_OF_A_FAILURE + 2)
    ]
    lost = end(queue, JobState.FAILED, at_half_past, error_code="worker-lost", error_message="lost", model="small")
    late = end(queue, JobState.EXPIRED, moved(at_half_past, 5))
    end(queue, JobState.FAILED, moved(at_half_past, -10 * HOUR), error_code="old", error_message="old")
    end(queue, JobState.CANCELED, at_half_past)

    first, expired, other = statistics.failures(queue.database, within_seconds=4 * HOUR)
    assert (first.code, first.message, first.num_jobs) == ("develop-failed", "6.5 GiB are missing", 7)
    assert first.job_ids == tuple(reversed(ids))[:JOBS_OF_A_FAILURE]
    assert (first.latest_at, first.models) == (moved(at_half_past, 6), ("large",))
    assert (expired.code, expired.message, expired.job_ids) == ("expired", "", (late,))
    assert (other.code, other.job_ids) == ("worker-lost", (lost,))


def test_stored_adds_up_what_is_kept(queue: Any, at_half_past: datetime) -> None:
    empty = statistics.stored(queue.database)
    assert (empty.num_images, empty.image_bytes, empty.num_uploads, empty.upload_bytes) == (0, 0, 0, 0)
    assert empty.oldest_at is None
    for n in range(3):
        end(queue, JobState.SUCCEEDED, moved(at_half_past, n))
    stored = statistics.stored(queue.database)
    assert (stored.num_images, stored.image_bytes, stored.oldest_at) == (3, 27, at_half_past)


MANY = 4000
# Of the jobs table, in one call, beside what is counted in an index alone.
MOST_ROWS = 3 * statistics.MOST_FAILURES


@pytest.fixture
def many(queue: Any) -> Any:
    """Jobs of every state, ended over the last two hours, in a database that never counted its rows."""
    template = queue.row(queue.ended(JobState.SUCCEEDED).job_id)
    row = {name: value for name, value in vars(template).items() if not name.startswith("_")}
    ended_at = row["finished_at"]
    states = [JobState.SUCCEEDED] * 7 + [JobState.FAILED, JobState.CANCELED, JobState.QUEUED]
    rows = []
    for n in range(MANY):
        state = states[n % len(states)]
        at = None if state is JobState.QUEUED else moved(ended_at, -n * 2 * HOUR / MANY)
        rows.append(row | {"id": uuid7(), "state": state, "finished_at": at, "error_code": "x"})
    with queue.database.write() as session:
        session.execute(insert(Job), rows)
        picture = {"n": 0, "key": "k", "thumb_key": "t", "content_type": "image/png", "width": 8, "height": 8}
        each = picture | {"num_bytes": 1, "seed": 1, "sha256": "0"}
        session.execute(insert(Image), [each | {"job_id": row["id"]} for row in rows if row["state"] == "succeeded"])
    return queue


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """What is sent to the database meanwhile, to the letter."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    yield sent
    event.remove(Engine, "before_cursor_execute", note)


def look(database: Database) -> None:
    statistics.latest_spans(database, num=60, seconds=60)
    statistics.depths(database)
    statistics.running(database)
    statistics.failures(database, within_seconds=HOUR)


def plan_of(database: Database, statement: str, parameters: Any) -> list[str]:
    explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN (COSTS OFF)"
    with database.connect() as connection:
        return [row[-1] for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)]


def test_every_figure_of_jobs_follows_an_index(many: Any, database: Database) -> None:
    with statements() as sent:
        look(database)
    of_jobs = [(statement, parameters) for statement, parameters in sent if "FROM jobs" in statement]
    assert len(of_jobs) >= 8
    for statement, parameters in of_jobs:
        plan = plan_of(database, statement, parameters)
        unindexed = [step for step in plan if step == "SCAN jobs" or "Seq Scan on jobs" in step]
        assert unindexed == [], (statement, plan)
        index = "ix_jobs_aging" if "queued_at" in statement else "ix_jobs_"
        assert any(index in step for step in plan), (statement, plan)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_counts_touch_no_job_and_waits_only_as_many_as_they_are_told_from(many: Any, database: Database) -> None:
    with database.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE jobs"))
    with statements() as sent:
        statistics.latest_spans(database, num=2, seconds=HOUR)
    counts, waits = [each for each in sent if "span" in each[0]]
    scans = [step for step in plan_of(database, *counts) if "on jobs" in step]
    assert len(scans) == 3
    assert all("Index Only Scan using ix_jobs_retention" in scan for scan in scans)
    with database.connect() as connection:
        plan = [row[0] for row in connection.exec_driver_sql(f"EXPLAIN (ANALYZE, TIMING OFF) {waits[0]}", waits[1])]
    (scan,) = [step for step in plan if "on jobs" in step]
    rows, loops = (float(part.split("=")[1].rstrip(")")) for part in scan.split("actual ")[1].split())
    assert rows * loops <= 2 * PARTS * JOBS_OF_A_PART
