"""Which workers live, and how many jobs they can hold."""

import pytest
from sqlalchemy import update

from darkroom import fleet
from darkroom.db import Database, now
from darkroom.errors import WorkerNotFound
from darkroom.fleet import SILENT_LEASES, WorkerFacts
from darkroom.models import Worker, WorkerState

LEASE = 30.0


def facts_of(worker: str = "first", *, models: tuple[str, ...] = ("small",), slots: int = 4) -> WorkerFacts:
    return WorkerFacts(worker, "dark", 1, "cpu", 2**33, "cpu/test", list(models), slots, version="0")


def silence(database: Database, worker: str, seconds: float) -> None:
    with database.write() as session:
        session.execute(update(Worker).where(Worker.id == worker).values(heartbeat_at=now(-seconds)))


def slots(database: Database, *models: str) -> dict[str, int]:
    return fleet.num_slots(database, models, lease_seconds=LEASE)


def test_registered_worker_is_listed_as_it_described_itself(database: Database) -> None:
    facts = facts_of()
    fleet.register(database, facts)
    (worker,) = fleet.list_workers(database)
    assert {name: getattr(worker, name) for name in vars(facts)} == vars(facts)
    assert (worker.state, worker.num_jobs) == (WorkerState.READY, 0)
    assert worker.started_at == worker.heartbeat_at


def test_worker_that_registers_again_takes_its_old_place(database: Database) -> None:
    fleet.register(database, facts_of(slots=4))
    fleet.register(database, facts_of(slots=8))
    assert [worker.slots for worker in fleet.list_workers(database)] == [8]


def test_beat_tells_state_and_number_of_jobs(database: Database) -> None:
    fleet.register(database, facts_of())
    silence(database, "first", 20)
    fleet.beat(database, facts_of(), state=WorkerState.DRAINING, num_jobs=3, rows_per_step=5.5)
    (worker,) = fleet.list_workers(database)
    assert (worker.state, worker.num_jobs, worker.rows_per_step) == (WorkerState.DRAINING, 3, 5.5)
    assert (worker.heartbeat_at - worker.started_at).total_seconds() >= 0


def test_age_of_a_heartbeat_is_by_the_clock_of_the_database(database: Database) -> None:
    fleet.register(database, facts_of())
    silence(database, "first", 20)
    (worker,) = fleet.list_workers(database)
    assert 20 <= worker.heartbeat_age_seconds < 60


def test_beat_brings_back_a_worker_that_was_forgotten(database: Database) -> None:
    fleet.register(database, facts_of())
    silence(database, "first", SILENT_LEASES * LEASE + 1)
    fleet.forget_silent(database, lease_seconds=LEASE)
    assert fleet.list_workers(database) == []
    fleet.beat(database, facts_of(), state=WorkerState.READY, num_jobs=1)
    assert [worker.num_jobs for worker in fleet.list_workers(database)] == [1]


def test_worker_is_not_forgotten_before_its_time(database: Database) -> None:
    fleet.register(database, facts_of())
    silence(database, "first", SILENT_LEASES * LEASE - 5)
    fleet.forget_silent(database, lease_seconds=LEASE)
    assert len(fleet.list_workers(database)) == 1


def test_worker_that_left_is_gone(database: Database) -> None:
    fleet.register(database, facts_of("first"))
    fleet.register(database, facts_of("second"))
    fleet.leave(database, "first")
    fleet.leave(database, "first")
    assert [worker.id for worker in fleet.list_workers(database)] == ["second"]


def test_slots_are_counted_by_model(database: Database) -> None:
    fleet.register(database, facts_of("first", models=("small",), slots=4))
    fleet.register(database, facts_of("second", models=("small", "large"), slots=2))
    assert slots(database, "small", "large", "unheard-of") == {"small": 6, "large": 2, "unheard-of": 0}


@pytest.mark.parametrize("seconds", [LEASE + 1, 10 * LEASE])
def test_silent_worker_has_no_slots(database: Database, seconds: float) -> None:
    fleet.register(database, facts_of())
    silence(database, "first", seconds)
    assert slots(database, "small") == {"small": 0}


def test_draining_worker_has_no_slots(database: Database) -> None:
    fleet.register(database, facts_of())
    fleet.beat(database, facts_of(), state=WorkerState.DRAINING, num_jobs=4)
    assert slots(database, "small") == {"small": 0}


def test_worker_that_is_to_drain_is_told_with_its_next_beat_and_has_no_slots_at_once(database: Database) -> None:
    fleet.register(database, facts_of())
    assert fleet.beat(database, facts_of(), state=WorkerState.READY, num_jobs=1) is False
    fleet.drain(database, "first")
    assert slots(database, "small") == {"small": 0}
    assert fleet.beat(database, facts_of(), state=WorkerState.READY, num_jobs=1) is True
    (worker,) = fleet.list_workers(database)
    assert (worker.state, worker.is_drain_wanted, worker.num_jobs) == (WorkerState.DRAINING, True, 1)


def test_worker_whose_drain_is_taken_back_is_ready_with_its_next_beat(database: Database) -> None:
    fleet.register(database, facts_of())
    fleet.drain(database, "first")
    fleet.undrain(database, "first")
    assert fleet.beat(database, facts_of(), state=WorkerState.READY, num_jobs=0) is False
    assert slots(database, "small") == {"small": 4}


def test_unknown_worker_cannot_be_drained(database: Database) -> None:
    for change in (fleet.drain, fleet.undrain):
        with pytest.raises(WorkerNotFound):
            change(database, "nobody")
