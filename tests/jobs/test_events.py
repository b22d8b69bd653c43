"""The history of a job and of all jobs; the lossy signals beside it."""

import threading
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, insert

from darkroom import events
from darkroom.db import Database
from darkroom.errors import StaleAttempt
from darkroom.events import Cursor, ProgressBoard
from darkroom.models import Job, Worker

WAIT_SECONDS = 20


def read_on(database: Database, after: Cursor, **how) -> tuple[list[tuple[UUID, str]], Cursor]:
    records, cursor = events.read_all(database, after=after, **how)
    return [(record.job_id, record.type) for record in records], cursor


def test_history_counts_from_one_without_gaps(queue) -> None:
    job_id = queue.submit()
    queue.requeue(queue.take())
    queue.succeed(queue.take())
    lines = events.read(queue.database, job_id)
    assert [line.seq for line in lines] == [1, 2, 3, 4, 5]
    assert [line.type for line in lines] == ["queued", "running", "requeued", "running", "succeeded"]
    assert lines[1].payload == {"attempt": 1, "worker": "first"}
    assert lines[2].payload == {"reason": "the worker drains"}
    assert all(line.created_at.tzinfo for line in lines)


def test_history_is_read_from_where_the_reader_stopped(queue) -> None:
    job_id = queue.submit()
    queue.take()
    assert [line.seq for line in events.read(queue.database, job_id, after=1)] == [2]
    assert events.read(queue.database, job_id, after=2) == []


def test_refused_write_leaves_no_line(queue) -> None:
    queue.submit()
    claim = queue.take()
    queue.cancel(claim.job_id)
    assert queue.beat() == frozenset()
    with pytest.raises(StaleAttempt):
        queue.succeed(claim)
    assert queue.history(claim.job_id) == ["queued", "running", "canceled"]


def test_all_events_are_read_once_and_in_order(queue) -> None:
    first, second = queue.submit("ann"), queue.submit("bob")
    queue.take()
    seen, cursor = read_on(queue.database, Cursor(), limit=2)
    assert seen == [(first, "queued"), (second, "queued")]
    seen, cursor = read_on(queue.database, cursor)
    assert seen == [(first, "running")]
    assert read_on(queue.database, cursor) == ([], cursor)


def test_owner_reads_only_the_events_of_their_own_jobs(queue) -> None:
    queue.submit("ann")
    theirs = queue.submit("bob")
    queue.cancel(theirs, "bob")
    seen, _ = read_on(queue.database, Cursor(), owner="bob")
    assert seen == [(theirs, "queued"), (theirs, "canceled")]


def test_reader_of_all_events_misses_nothing_after_retention_has_deleted_the_last(queue) -> None:
    queue.submit()
    _, cursor = read_on(queue.database, Cursor())
    with queue.database.write() as session:
        session.execute(delete(Job))
    new = queue.submit()
    assert read_on(queue.database, cursor)[0] == [(new, "queued")]


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_transaction_that_commits_late_is_never_skipped(queue, database: Database) -> None:
    early, late = queue.submit(), queue.submit()
    _, cursor = read_on(database, Cursor())
    with database.write() as session:
        events.append(session, late, seq=2, type="late", payload={})
        session.flush()
        queue.cancel(early)
        assert read_on(database, cursor) == ([], cursor), "what is newer waits for the older one"
    assert read_on(database, cursor)[0] == [(late, "late"), (early, "canceled")]


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_late_commit_of_a_higher_number_comes_after_what_was_read(queue, database: Database) -> None:
    """The younger transaction draws its position first and commits last: (xid, position) still orders them."""
    early, late = queue.submit(), queue.submit()
    _, cursor = read_on(database, Cursor())
    with database.write() as older:
        older.execute(insert(Worker).values(**worker_row()))  # draws its xid
        with database.write() as younger:
            events.append(younger, late, seq=2, type="younger", payload={})
        events.append(older, early, seq=2, type="older", payload={})
    assert read_on(database, cursor)[0] == [(early, "older"), (late, "younger")]


def worker_row() -> dict[str, object]:
    text = dict.fromkeys(("host", "device", "fingerprint", "version"), "x")
    return text | {"id": "w", "pid": 1, "state": "ready", "device_memory_bytes": 0, "models": [], "slots": 1}


def test_progress_is_read_as_it_was_published(valkey) -> None:
    board, job_id = ProgressBoard(valkey.url), uuid4()
    assert board.read(job_id) is None
    board.publish({job_id: {"stage": "denoise", "step": 3, "num_steps": 20}})
    assert board.read(job_id) == {"stage": "denoise", "step": 3, "num_steps": 20}


def test_progress_does_not_outlive_its_job_for_long(valkey) -> None:
    board, job_id = ProgressBoard(valkey.url), uuid4()
    board.publish({job_id: {"step": 1}})
    with valkey.client() as client:
        (key,) = client.keys("darkroom:progress:*")
        assert 0 < client.ttl(key) <= events.PROGRESS_LIFE_SECONDS


@pytest.mark.parametrize("fault", ["stop", "pause"])
def test_progress_is_silent_while_redis_is_away(valkey, fault: str) -> None:
    board, job_id = ProgressBoard(valkey.url), uuid4()
    getattr(valkey, fault)()
    board.publish({job_id: {"step": 1}})
    assert board.read(job_id) is None
    board.announce_cancel(job_id)


class Heard:
    """Whoever listens for cancels."""

    def __init__(self, url: str) -> None:
        self.job_ids: list[UUID] = []
        self.stop = threading.Event()
        self._news = threading.Condition()
        self._thread = threading.Thread(
            target=events.listen_for_cancels, args=(url,), kwargs={"on_cancel": self._note, "stop": self.stop}
        )
        self._thread.start()

    def _note(self, job_id: UUID) -> None:
        with self._news:
            self.job_ids.append(job_id)
            self._news.notify_all()

    def wait_for(self, job_id: UUID) -> bool:
        with self._news:
            return self._news.wait_for(lambda: job_id in self.job_ids, WAIT_SECONDS)

    def end(self) -> None:
        self.stop.set()
        self._thread.join(WAIT_SECONDS)


@pytest.fixture
def heard(valkey):
    heard = Heard(valkey.url)
    with valkey.client() as client:
        while not client.pubsub_numsub(events.CANCEL_CHANNEL)[0][1]:
            heard.stop.wait(0.01)
    yield heard
    heard.end()


def test_cancel_is_heard(valkey, heard: Heard) -> None:
    job_id = uuid4()
    ProgressBoard(valkey.url).announce_cancel(job_id)
    assert heard.wait_for(job_id)


@pytest.mark.parametrize("rubbish", [b"", b"not a job", b"\xff\xfe"])
def test_listener_survives_what_is_no_job(valkey, heard: Heard, rubbish: bytes) -> None:
    job_id = uuid4()
    with valkey.client() as client:
        client.publish(events.CANCEL_CHANNEL, rubbish)
    ProgressBoard(valkey.url).announce_cancel(job_id)
    assert heard.wait_for(job_id)
    assert heard.job_ids == [job_id]
