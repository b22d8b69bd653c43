"""Every statement of ours reads a handful of rows, however deep the queue and however old the database's statistics."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.engine import Engine
from uuid_utils.compat import uuid7

from darkroom import events, jobs, keys
from darkroom.db import Database
from darkroom.events import Cursor
from darkroom.jobs import JobClass, JobState, Lines, NewJob, Success
from darkroom.jobs.submitting import start_tag_of
from darkroom.keys import Quotas
from darkroom.models import Job

ENDED_IDS = [uuid7() for _ in range(6000)]
QUEUED_IDS = [uuid7() for _ in range(4000)]
# What a statement may read: what it is after, and the few that run or were claimed out of turn.
MOST_ROWS = 40


@pytest.fixture
def deep(queue) -> Any:
    """A deep queue in a database that last counted its rows when nothing waited."""
    queue.succeed(queue.take() if queue.submit() else None)
    template = queue.submit()
    row = {name: value for name, value in vars(queue.row(template)).items() if not name.startswith("_")}
    queue.cancel(template)
    ended, begun = row | {"state": "succeeded", "attempt": 1}, row["created_at"]
    add(
        queue.database,
        [
            ended | {"id": job_id, "start_tag": n, "finished_at": begun + timedelta(seconds=n)}
            for n, job_id in enumerate(ENDED_IDS)
        ],
    )
    count_rows(queue.database)
    waiting = enumerate(QUEUED_IDS)
    add(queue.database, [row | {"id": job_id, "start_tag": n, "finish_tag": n + 1} for n, job_id in waiting])
    for _ in range(3):
        queue.take()
    return queue


def add(database: Database, rows: list[dict[str, Any]]) -> None:
    with database.write() as session:
        session.execute(insert(Job), rows)


def count_rows(database: Database) -> None:
    """As PostgreSQL does by itself now and then. Nobody does it for SQLite."""
    with database.connect() as connection:
        if not database.is_sqlite:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE jobs"))


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """What is sent to the database meanwhile, to the letter, by SQLAlchemy or by the driver itself."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        note_sent(statement, parameters)

    def note_sent(statement: str, parameters: Any) -> None:
        if "jobs" in statement and "INSERT INTO jobs" not in statement and not statement.startswith("INSERT"):
            sent.append((statement, parameters))

    def execute(driver: Any, statement: Any, parameters: Any = None, **more: Any) -> Any:
        note_sent(statement, parameters)
        return send(driver, statement, parameters, **more)

    send = psycopg.Connection.execute
    event.listen(Engine, "before_cursor_execute", note)
    psycopg.Connection.execute = execute  # type: ignore[method-assign] # what goes past SQLAlchemy
    try:
        yield sent
    finally:
        psycopg.Connection.execute = send  # type: ignore[method-assign]
        event.remove(Engine, "before_cursor_execute", note)


def cut_line() -> Lines:
    lines = Lines(num_claims=1)
    lines.passed("small", JobClass.BULK, 2)
    return lines


def submit_with_quota(queue: Any) -> None:
    quotas = Quotas(max_queued=8, megapixel_steps_per_day=1000.0)
    key, _ = keys.create(queue.database, name="bob", owner="bob", scopes=("submit",), quotas=quotas)
    params = queue.get(jobs.front_of_queue(queue.database, model="small", limit=1)[0]).params
    for _ in range(8):
        jobs.submit(queue.database, NewJob("small", params, JobClass.BULK, 3600), owner="bob", key_id=key.id)


def look_up_tag(queue: Any) -> None:
    """What an INSERT has inside it."""
    with queue.database.write() as session:
        start_tag_of(session, "bob", "small", JobClass.BULK)


def glimpse_at_front(queue: Any) -> None:
    job = queue.get(jobs.front_of_queue(queue.database, model="small", limit=1)[0])
    jobs.glimpse(queue.database, job.id, owner=job.owner)


STATEMENTS: dict[str, Callable[[Any], object]] = {
    "claim": lambda queue: queue.claim("second", num_held=0),
    "claim from where the line is remembered": lambda queue: queue.claim("second", num_held=0, lines=cut_line()),
    "claim in company": lambda queue: queue.claim("first"),
    "claim of several": lambda queue: jobs.claim(
        queue.database, worker_id="first", models=("small",), num_held=1, lease_seconds=30, lines=Lines(), most=3
    ),
    "claim of several models": lambda queue: queue.claim("first", models=("small", "large")),
    "submit": look_up_tag,
    "submit with a quota": submit_with_quota,
    "heartbeat": lambda queue: queue.beat("first"),
    "cancel": lambda queue: queue.cancel(jobs.front_of_queue(queue.database, model="small", limit=1)[0]),
    "succeed": lambda queue: queue.succeed(queue.take("first")),
    "succeed together": lambda queue: jobs.succeed_some(
        queue.database, [Success(queue.take("first").job_id, 1, [], {}) for _ in range(3)]
    ),
    "front of the queue": lambda queue: jobs.front_of_queue(queue.database, model="small", limit=8),
    "place at the front": lambda queue: jobs.position(
        queue.database, jobs.front_of_queue(queue.database, model="small", limit=1)[0]
    ),
    "places": lambda queue: jobs.places(queue.database, jobs.front_of_queue(queue.database, model="small", limit=4)),
    "glimpse": glimpse_at_front,
    "expire leases": lambda queue: jobs.expire_leases(queue.database),
    "expire jobs": lambda queue: jobs.expire_overdue(queue.database),
    "promote": lambda queue: jobs.promote_aged_bulk(queue.database, age_seconds=3600),
    "reserve": lambda queue: jobs.reserve_solo(
        queue.database, worker_id="first", models=["small", "large"], wait_seconds=60, hold_seconds=15
    ),
    "clean up": lambda queue: jobs.due_for_cleanup(queue.database),
    "retire": lambda queue: jobs.due_for_deletion(
        queue.database, retention_seconds=dict.fromkeys((JobState.SUCCEEDED, JobState.FAILED), 3600.0)
    ),
    "oldest of an owner": lambda queue: jobs.list_oldest(queue.database, owner="ann", state=JobState.QUEUED, limit=20),
    "latest that ended": lambda queue: jobs.list_latest_ended(queue.database, limit=8),
    "latest of an owner that ended": lambda queue: jobs.list_latest_ended(queue.database, owner="ann", limit=8),
    "latest that succeeded": lambda queue: jobs.list_ended(queue.database, state=JobState.SUCCEEDED, limit=20),
    "ended, read on": lambda queue: jobs.list_ended(
        queue.database, state=JobState.SUCCEEDED, after=ENDED_IDS[3000], limit=20
    ),
    "latest that failed and were not retried": lambda queue: jobs.list_unretried(queue.database, owner="ann", limit=20),
    "retried": lambda queue: jobs.retried(queue.database, [uuid7()], owner="ann"),
    "running": lambda queue: jobs.list_running(queue.database, limit=20),
    "running, read on": lambda queue: jobs.list_running(
        queue.database, after=jobs.list_running(queue.database, limit=1)[0].id, limit=20
    ),
    "line, read on": lambda queue: jobs.list_line(queue.database, after=QUEUED_IDS[2000], limit=20),
    "fronts of all lines": lambda queue: jobs.list_fronts(queue.database, limit=8),
    "count": lambda queue: jobs.count(queue.database, state=JobState.QUEUED, most=20),
    "count of an owner": lambda queue: jobs.count(queue.database, state=JobState.QUEUED, owner="ann", most=20),
    "cancel some": lambda queue: jobs.cancel_some(queue.database, owner="ann", before=uuid7(), limit=4),
    "list what succeeded": lambda queue: jobs.list_jobs(
        queue.database, owner="ann", state=JobState.SUCCEEDED, limit=20
    ),
    "list": lambda queue: jobs.list_jobs(queue.database, owner="ann", limit=20),
}


# These sort what runs, or the suspects.
FEW = {"expire leases", "reserve", "running", "running, read on"}
# What ended at the same instant is put in order by id, and nothing else with it.
TIES = {f"USE TEMP B-TREE FOR {part} OF ORDER BY" for part in ("LAST TERM", "RIGHT PART")}


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_postgresql_reads_a_handful_of_rows(deep, database: Database) -> None:
    for what, act in STATEMENTS.items():
        with statements() as sent:
            act(deep)
        assert sent
        for statement, parameters in sent:
            assert num_rows_read(database, statement, parameters) <= MOST_ROWS, (what, statement)


def num_rows_read(database: Database, statement: str, parameters: Any) -> float:
    with database.connect() as connection:
        explain = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}"
        ((answer,),) = connection.exec_driver_sql(explain, parameters)
        connection.rollback()
    (plan,) = json.loads(answer) if isinstance(answer, str) else answer
    return sum(rows_of(plan["Plan"]))


def rows_of(node: dict[str, Any]) -> Iterator[float]:
    if "Scan" in node["Node Type"]:
        read = (
            node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        )
        yield read * node["Actual Loops"]
    for each in node.get("Plans", ()):
        yield from rows_of(each)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_reader_of_all_events_reads_nothing_that_he_has_read_before(queue, database: Database) -> None:
    for _ in range(MOST_ROWS):
        queue.submit()
    _, cursor = events.read_all(database, after=Cursor())
    queue.submit()
    with statements() as sent:
        found, _ = events.read_all(database, after=cursor)
    assert len(found) == 1
    assert [num_rows_read(database, *each) <= 3 for each in sent] == [True]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_reader_of_all_events_begins_where_he_was(queue, database: Database) -> None:
    with statements() as sent:
        events.read_all(database, after=Cursor())
    ((statement, parameters),) = sent
    with database.connect() as connection:
        plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert plan[0] == "SEARCH job_events USING INTEGER PRIMARY KEY (rowid>?)"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_sqlite_scans_and_sorts_nothing(deep, database: Database) -> None:
    for what, act in STATEMENTS.items():
        with statements() as sent:
            act(deep)
        assert sent
        for statement, parameters in sent:
            with database.connect() as connection:
                plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            sorts = [step for step in plan if "ORDER BY" in step and step not in TIES]
            slow = [*(step for step in plan if step == "SCAN jobs"), *(() if what in FEW else sorts)]
            assert slow == [], (what, statement)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("what", ["place at the front", "places", "glimpse"])
def test_sqlite_counts_who_is_ahead_and_reads_on_to_nobody_behind(deep, database: Database, what: str) -> None:
    with statements() as sent:
        STATEMENTS[what](deep)
    statement, parameters = sent[-1]
    with database.connect() as connection:
        plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert "SEARCH jobs USING INDEX ix_jobs_queue (model=? AND (job_class,start_tag,id)<(?,?,?))" in plan
    assert any("sqlite_autoindex_jobs_1 (id=?)" in step for step in plan), "the job itself is found by its id"
