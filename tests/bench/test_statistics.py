"""What the figures of the admin page cost with a million jobs in the table, against a thousand, on both databases."""

import time
from collections.abc import Callable

import pytest
from sqlalchemy import text
from tables import milliseconds, report

from darkroom.db import Database
from darkroom.jobs import statistics

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3000)]

NUM_ROUNDS = 15
DAY = 86400
# How many jobs, ended over how many days: kept for a month, as is usual, or all of them in the window that is shown.
CASES = ((1000, 1), (1_000_000, 30), (1_000_000, 1))
NUM_QUEUED = 20_000

JOBS = """
INSERT INTO jobs (id, owner, model, params, state, job_class, start_tag, finish_tag, attempt, is_alone, crashes,
                  shared_crashes, is_solo, created_at, queued_at, started_at, finished_at, deadline_at, timings,
                  event_seq, error_code, error_message)
SELECT {id}, 'owner-' || n % 50, 'small', '{{"prompt": "a house"}}', state, n % 2, n, n + 1, 1, false, 0, 0, false,
       {before_30}, {before_30}, CASE WHEN state <> 'queued' THEN {before_10} END,
       CASE WHEN state <> 'queued' THEN {at} END,
       {at}, '{{}}', 4, CASE WHEN state = 'failed' THEN 'develop-failed' END,
       CASE WHEN state = 'failed' THEN 'row ' || n || ' is not a number' END
FROM (SELECT n, CASE WHEN n <= :queued THEN 'queued' WHEN n % 50 = 0 THEN 'failed' WHEN n % 50 = 1 THEN 'canceled'
                     ELSE 'succeeded' END AS state
      FROM {series}) series
"""
IMAGES = """
INSERT INTO images (job_id, n, key, thumb_key, content_type, width, height, num_bytes, seed, sha256)
SELECT id, 0, 'jobs/' || id, 'jobs/' || id || '.thumb', 'image/png', 512, 512, 100000 + event_seq, 7, '0'
FROM jobs WHERE state = 'succeeded'
"""
SQLITE = {
    "id": "lower(hex(randomblob(16)))",
    "at": "strftime('%Y-%m-%d %H:%M:%f000', 'now', (-:span * n / :num) || ' seconds')",
    "before_10": "strftime('%Y-%m-%d %H:%M:%f000', 'now', (-:span * n / :num - n % 7) || ' seconds')",
    "before_30": "strftime('%Y-%m-%d %H:%M:%f000', 'now', (-:span * n / :num - 7 - n % 41) || ' seconds')",
    "series": "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < :num) SELECT n FROM s)",
}
POSTGRES = {
    "id": "gen_random_uuid()",
    "at": "now() - make_interval(secs => CAST(:span AS float8) * n / :num)",
    "before_10": "now() - make_interval(secs => CAST(:span AS float8) * n / :num + n % 7)",
    "before_30": "now() - make_interval(secs => CAST(:span AS float8) * n / :num + 7 + n % 41)",
    "series": "generate_series(1, CAST(:num AS bigint)) n",
}

FIGURES: dict[str, Callable[[Database], object]] = {
    "the last hour, by minutes": lambda database: statistics.latest_spans(database, num=60, seconds=60),
    "the last day, by half hours": lambda database: statistics.latest_spans(database, num=48, seconds=1800),
    "depths": statistics.depths,
    "running": statistics.running,
    "failures": lambda database: statistics.failures(database, within_seconds=DAY),
    "stored": statistics.stored,
}


def fill(database: Database, num_jobs: int, days: int) -> None:
    words = SQLITE if database.is_sqlite else POSTGRES
    numbers = {"num": num_jobs, "span": days * DAY, "queued": min(NUM_QUEUED, num_jobs // 10)}
    with database.connect() as connection:
        connection.execute(text("SET statement_timeout = 0")) if not database.is_sqlite else None
        connection.execute(text(JOBS.format(**words)), numbers)
        connection.execute(text(IMAGES))
        connection.commit()
        if not database.is_sqlite:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE jobs, images"))


@pytest.mark.parametrize(("num_jobs", "days"), CASES)
def test_figures_of_a_million_jobs(database: Database, num_jobs: int, days: int) -> None:
    fill(database, num_jobs, days)
    rows = {}
    for name, read in FIGURES.items():
        seconds = []
        for _ in range(NUM_ROUNDS):
            began = time.perf_counter()
            read(database)
            seconds.append(time.perf_counter() - began)
        rows[name] = milliseconds(seconds)
    kind = "sqlite" if database.is_sqlite else "postgres"
    report(f"statistics of {num_jobs} jobs in {days} days, {kind}", rows)
