"""What a claim costs at 100, 10,000 and 100,000 queued jobs, and with 100,000 dead entries nobody can vacuum.

The cases are interleaved, one claim of each a round, in one PostgreSQL. Each round queues a job again, so that no depth
changes.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from claiming import claim_one
from sqlalchemy import text
from tables import milliseconds, report

from darkroom.db import Database
from darkroom.jobs import Lines

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

MODEL = "bench"
NUM_ROUNDS = 600
WARM_UP_ROUNDS = 100
DEPTHS = (100, 10_000, 100_000)

INSERT = """
INSERT INTO jobs (id, owner, model, params, state, job_class, start_tag, finish_tag, attempt, is_alone, crashes,
                  shared_crashes, is_solo, created_at, queued_at, deadline_at, timings, event_seq)
SELECT gen_random_uuid(), 'owner-' || n % 50, :model,
       '{"prompt": "a house", "width": 128, "height": 128, "num_inference_steps": 20, "guidance_scale": 3.0,
         "sampler": "euler", "seed": 1}',
       'queued', 1, n, n + 1, 0, false, 0, 0, false, now(), now(), now() + interval '7 days', '{}', 1
FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) n
"""

CLAIM_MANY = """
UPDATE jobs SET state = 'running', attempt = attempt + 1, worker_id = 'w', event_seq = event_seq + 1
WHERE id IN (SELECT id FROM jobs WHERE state = 'queued' ORDER BY start_tag, id LIMIT :many)
"""


class Case:
    """A queue of one depth, and a worker that claims from it."""

    def __init__(self, database: Database, depth: int) -> None:
        self.database = database
        self.last = depth
        self.lines = Lines()
        self.insert(1, depth)
        with database.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE jobs"))

    def insert(self, first: int, last: int) -> None:
        with self.database.write() as session:
            session.execute(text(INSERT), {"model": MODEL, "first": first, "last": last})

    def claim(self, *, whole_line: bool = False) -> float:
        """Claim once, and return the seconds it took."""
        began = time.perf_counter()
        claim = claim_one(
            self.database,
            worker_id="w",
            models=[MODEL],
            num_held=0,
            lease_seconds=3600,
            lines=self.lines,
            whole_line=whole_line,
        )
        seconds = time.perf_counter() - began
        assert claim
        self.last += 1
        self.insert(self.last, self.last)
        return seconds


@pytest.fixture
def databases(postgres, migrated_postgres) -> Iterator[list[Database]]:
    names = [postgres.new_database(template=migrated_postgres) for _ in range(len(DEPTHS) + 1)]
    opened = [Database(postgres.url(name)) for name in names]
    yield opened
    for database in opened:
        database.dispose()


def test_claim_cost_by_depth(databases: list[Database]) -> None:
    cases = {f"{depth} queued": Case(database, depth) for depth, database in zip(DEPTHS, databases, strict=False)}
    with ExitStack() as stack:
        cases["100000 queued, after 100000 claims under an idle transaction"] = _under_idle_transaction(
            stack, databases[-1]
        )
        for _ in range(WARM_UP_ROUNDS):
            for case in cases.values():
                case.claim()
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(NUM_ROUNDS):
            for name, case in cases.items():
                seconds[name].append(case.claim())
        *_, last = cases.values()
        seconds["the same, looking at the whole line"] = [last.claim(whole_line=True) for _ in range(30)]
    rows = {name: milliseconds(values) for name, values in seconds.items()}
    shallow = rows["100 queued"]["p50_ms"]
    for row in rows.values():
        row["ratio"] = round(row["p50_ms"] / shallow, 2)
    report("claim", rows)


def _under_idle_transaction(stack: ExitStack, database: Database) -> Case:
    """Claim 100,000 of 200,000 jobs while a transaction holds an old snapshot, so that no dead entry can be removed."""
    case = Case(database, 200_000)
    idle = stack.enter_context(database.connect()).execution_options(isolation_level="REPEATABLE READ")
    idle.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    idle.execute(text("SELECT count(*) FROM jobs"))
    for _ in range(100):
        with database.write() as session:
            session.execute(text(CLAIM_MANY), {"many": 1000})
    return case
