"""The database's clock, its transactions, and what happens when it is away."""

import subprocess
import sys
import threading
from collections import UserDict
from collections.abc import KeysView
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String, bindparam, cast, func, literal, select, text, update
from sqlalchemy.exc import DataError, IntegrityError, StatementError

from darkroom.db import Database, UtcDateTime, is_on_network, now
from darkroom.errors import ConfigError, DatabaseUnavailable
from darkroom.models import Worker, WorkerState

COUNT = """
import sys
from sqlalchemy import update
from darkroom.db import Database
from darkroom.models import Worker
database = Database(sys.argv[1])
print("ready", flush=True)
input()
for _ in range(int(sys.argv[2])):
    with database.write() as session:
        session.execute(update(Worker).values(num_jobs=Worker.num_jobs + 1))
"""


def add_worker(database: Database) -> None:
    words = dict.fromkeys(("host", "device", "fingerprint", "version"), "x")
    with database.write() as session:
        session.add(
            Worker(id="first", pid=1, state=WorkerState.READY, device_memory_bytes=0, models=[], slots=1, **words)
        )


def read_clock(database: Database, offset: object = 0.0) -> datetime:
    with database.read() as session:
        return session.scalars(select(now(offset))).one()


def test_clock_is_aware_and_right(database: Database) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    seen = read_clock(database)
    assert seen.tzinfo == UTC
    assert before <= seen <= datetime.now(UTC) + timedelta(seconds=1)


@pytest.mark.parametrize("offset", [0.5, 30, -30, 1e-3, 86400.0 * 30, -86400.0 * 36500, 31536000.0, 1e-7])
def test_clock_is_moved_by_an_offset_in_seconds(database: Database, offset: float) -> None:
    with database.read() as session:
        moved, still = session.execute(select(now(offset), now())).one()
    assert (moved - still).total_seconds() == pytest.approx(offset, abs=0.002)


def test_clock_is_moved_by_a_column(database: Database) -> None:
    add_worker(database)
    with database.write() as session:
        session.execute(update(Worker).values(heartbeat_at=now(cast(Worker.slots, literal(0.5).type) * 60)))
        moved = session.scalars(select(Worker.heartbeat_at)).one()
    assert 55 < (moved - read_clock(database)).total_seconds() <= 60


def test_times_written_and_times_of_the_clock_compare(database: Database) -> None:
    """SQLite compares text: both must be written alike."""
    add_worker(database)
    exact = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    with database.write() as session:
        session.execute(update(Worker).values(started_at=exact, heartbeat_at=exact + timedelta(microseconds=1)))
        row = session.execute(
            select(Worker.started_at < Worker.heartbeat_at, Worker.heartbeat_at < now(), Worker.started_at == exact)
        ).one()
    assert tuple(row) == (True, True, True)


def test_every_zone_is_stored_as_utc(database: Database) -> None:
    add_worker(database)
    local = datetime(2026, 7, 1, 1, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    with database.write() as session:
        session.execute(update(Worker).values(started_at=local))
    with database.read() as session:
        stored = session.scalars(select(Worker.started_at)).one()
    assert stored == local
    assert stored.tzinfo == UTC


def test_time_without_a_zone_is_refused(database: Database) -> None:
    add_worker(database)
    with pytest.raises(StatementError, match="zone"), database.write() as session:
        session.execute(update(Worker).values(started_at=datetime(2026, 1, 1)))


def test_failed_transaction_leaves_nothing(database: Database) -> None:
    add_worker(database)
    with pytest.raises(ZeroDivisionError):
        write_and_break(database)
    with database.read() as session:
        assert session.scalars(select(Worker.slots)).one() == 1


def write_and_break(database: Database) -> None:
    with database.write() as session:
        session.execute(update(Worker).values(slots=2))
        session.execute(update(Worker).values(slots=1 // 0))


def test_writers_in_two_processes_take_turns(database: Database) -> None:
    """A SQLite writer that began as a reader would be told "locked" at once."""
    add_worker(database)
    command = [sys.executable, "-c", COUNT, database.url, "150"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    processes = [subprocess.Popen(command, **pipes, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for _ in range(50):
        with database.write() as session:
            session.execute(update(Worker).values(num_jobs=Worker.num_jobs + 1))
    answers = [process.communicate(timeout=60)[1] for process in processes]
    assert answers == ["", ""]
    with database.read() as session:
        assert session.scalars(select(Worker.num_jobs)).one() == 350


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_reader_of_sqlite_is_not_held_up_by_a_writer(database: Database) -> None:
    add_worker(database)
    with database.write() as writer:
        writer.execute(update(Worker).values(slots=9))
        writer.flush()
        with database.read() as reader:
            assert reader.scalars(select(Worker.slots)).one() == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_sqlite_is_safe_against_power_loss_and_dangling_rows(database: Database) -> None:
    with database.connect() as connection:
        settings = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")
        }
        assert settings == {"journal_mode": "wal", "synchronous": 2}
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1


@pytest.mark.parametrize("url", ["sqlite:///:memory:", "sqlite://"])
def test_sqlite_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="DATABASE_URL"):
        Database(url)


def test_sqlite_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DatabaseUnavailable, match="folder"):
        Database(f"sqlite:///{tmp_path}/folder")


def test_sqlite_database_is_read_by_its_owner_only(tmp_path: Path) -> None:
    """It holds everybody's prompts."""
    database = Database(f"sqlite:///{tmp_path}/home/darkroom.db")
    with database.write() as session:
        session.execute(text("CREATE TABLE prompts (prompt TEXT)"))
        rights = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "home").iterdir()}
    assert rights == dict.fromkeys(["darkroom.db", "darkroom.db-wal", "darkroom.db-shm"], 0o600)
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # PostgreSQL's own words name the failing row
def test_database_error_tells_no_values(database: Database) -> None:
    """They go to the log, and a prompt is among them."""
    insert = text("INSERT INTO workers (id) VALUES (:prompt)")
    with pytest.raises(IntegrityError) as caught, database.write() as session:
        session.execute(insert, {"prompt": "nobody's business"})
    assert "nobody's business" not in str(caught.value)


def test_file_on_this_host_is_not_on_a_network(tmp_path: Path) -> None:
    assert not is_on_network(f"sqlite:///{tmp_path}/a.db")


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_database_that_was_away_is_found_again(database: Database, postgres) -> None:
    add_worker(database)
    postgres.stop()
    for use in (database.read, database.write):
        with pytest.raises(DatabaseUnavailable), use() as session:
            session.execute(select(Worker))
    postgres.start()
    with database.write() as session:
        session.execute(update(Worker).values(slots=3))
        assert session.scalars(select(Worker.slots)).one() == 3


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_database_that_dies_within_a_transaction_is_unavailable(database: Database, postgres) -> None:
    with pytest.raises(DatabaseUnavailable):
        kill_within_a_transaction(database, postgres)
    postgres.start()
    assert read_clock(database)


def kill_within_a_transaction(database: Database, postgres) -> None:
    with database.write() as session:
        session.execute(text("SELECT 1"))
        postgres.kill()
        session.execute(text("SELECT 1"))


RENAME = update(Worker).values(host=bindparam("new_host", type_=String()))


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_trip_is_one_transaction(database: Database) -> None:
    add_worker(database)
    with pytest.raises(DataError):
        database.in_one_trip((RENAME, {"new_host": "other"}), (select(1 / literal(0)), {}))
    host = select(Worker.host)
    assert database.in_one_trip((host, {})) == [("x",)]
    assert database.in_one_trip((RENAME, {"new_host": "other"}), (host, {})) == [("other",)]
    with database.read() as session:
        assert session.scalar(host) == "other"


class Watched(UserDict[str, Any]):
    """Values that note whether a lock is free when they are read."""

    def __init__(self, database: Database, lock: int) -> None:
        super().__init__()
        self._database = database
        self._lock = lock
        self.was_free: list[bool] = []

    def keys(self) -> KeysView[str]:
        with self._database.read() as session:
            session.execute(text("SELECT pg_sleep(0.1)"))  # what was sent has arrived
            self.was_free.append(session.scalar(select(func.pg_try_advisory_lock(self._lock))))
            if self.was_free[-1]:
                session.execute(select(func.pg_advisory_unlock(self._lock)))
        return super().keys()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_trip_takes_no_lock_before_all_of_it_is_sent(database: Database) -> None:
    add_worker(database)
    values = Watched(database, lock=7)
    assert database.in_one_trip((select(func.pg_advisory_xact_lock(7)), {}), (select(Worker.host), values)) == [("x",)]
    assert values.was_free == [True]


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_trip_to_a_database_that_was_away_finds_it_again(database: Database, postgres) -> None:
    add_worker(database)
    host = (select(Worker.host), {})
    assert database.in_one_trip(host)
    postgres.stop()
    for _ in range(2):  # over a connection that it had, and over none
        with pytest.raises(DatabaseUnavailable):
            database.in_one_trip(host)
    postgres.start()
    assert database.in_one_trip(host) == [("x",)]


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_connection_that_is_in_the_middle_of_something_is_not_lent_again(database: Database) -> None:
    with database._driver() as driver:
        left = driver.info.backend_pid
        driver.pgconn.enter_pipeline_mode()
    (found,) = database.in_one_trip((select(func.pg_backend_pid()), {}))
    assert found != (left,)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_connections_that_a_rush_has_opened_are_kept_for_the_next(database: Database) -> None:
    narrow = Database(database.url, pool_size=1)

    def rush() -> set[int]:
        with narrow.read() as first, narrow.read() as second:
            return {session.scalars(text("SELECT pg_backend_pid()")).one() for session in (first, second)}

    pids = rush()
    assert len(pids) == 2
    assert rush() == pids
    narrow.dispose()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_database_without_a_free_connection_is_unavailable(database: Database) -> None:
    narrow = Database(database.url, pool_size=1)
    enough = threading.Event()

    def hold() -> None:
        with narrow.read() as session:
            session.execute(text("SELECT 1"))
            holding.release()
            enough.wait(60)

    holding = threading.Semaphore(0)
    holders = [threading.Thread(target=hold) for _ in range(2)]
    for holder in holders:
        holder.start()
        assert holding.acquire(timeout=30)
    with pytest.raises(DatabaseUnavailable, match="in use"), narrow.read():
        pass
    enough.set()
    for holder in holders:
        holder.join()
    narrow.dispose()


def test_type_has_no_say_about_nothing() -> None:
    kind = UtcDateTime()
    assert kind.process_bind_param(None, None) is None  # type: ignore[arg-type]
    assert kind.process_result_value(None, None) is None  # type: ignore[arg-type]
