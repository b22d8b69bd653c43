"""The loop that rings, on a real Valkey: nothing it does or fails to do is felt by who submits."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import pytest

from darkroom import events, fleet
from darkroom.catalog import Catalog
from darkroom.config import Settings
from darkroom.db import Database
from darkroom.dispatch import KEY_PREFIX, TASK, queue_name
from darkroom.fleet import WorkerFacts
from darkroom.relay import DOORBELLS_PER_SLOT, MAX_PENDING, Relay
from darkroom.stack.servers import wait_until

MODEL = "darkroom-seeded"
DOORBELLS = KEY_PREFIX + queue_name(MODEL)
WAIT_SECONDS = 30


def eventually(condition: Callable[[], bool]) -> None:
    wait_until(condition, seconds=WAIT_SECONDS, refusal=lambda: "it never came to be")


class Doorbells:
    """What waits in Redis for a worker."""

    def __init__(self, client) -> None:
        self._client = client

    def __len__(self) -> int:
        return int(self._client.llen(DOORBELLS))

    def job_ids(self) -> list[UUID]:
        messages = [json.loads(raw) for raw in self._client.lrange(DOORBELLS, 0, -1)]
        assert {message["headers"]["task"] for message in messages} <= {TASK}
        return [UUID(json.loads(base64.b64decode(message["body"]))[0][0]) for message in messages]


@pytest.fixture
def doorbells(valkey) -> Iterator[Doorbells]:
    with valkey.client() as client:
        yield Doorbells(client)


@pytest.fixture
def quick(settings: Settings) -> Settings:
    return settings.model_copy(update={"relay_seconds": 0.05})


@contextmanager
def running(settings: Settings, database: Database) -> Iterator[Relay]:
    relay = Relay(settings, database=database, catalog=Catalog.load(settings))
    relay.ensure_alive()
    yield relay
    relay.stop()


@pytest.fixture
def relay(quick: Settings, queue) -> Iterator[Relay]:
    with running(quick, queue.database) as relay:
        yield relay


def add_worker(database: Database, slots: int) -> None:
    fleet.register(database, WorkerFacts("first", "dark", 1, "cpu", 0, "cpu/test", [MODEL], slots, version="0"))


def test_ring_names_the_job_that_caused_it(relay: Relay, doorbells: Doorbells) -> None:
    job_id = uuid4()
    relay.notify(job_id, model=MODEL)
    eventually(lambda: doorbells.job_ids() == [job_id])


def test_waiting_job_is_rung_for_though_nobody_notified(relay: Relay, queue, doorbells: Doorbells) -> None:
    job_id = queue.submit(model=MODEL)
    eventually(lambda: set(doorbells.job_ids()) == {job_id})


def test_flushed_doorbell_is_rung_again(relay: Relay, queue, doorbells: Doorbells, valkey) -> None:
    queue.submit(model=MODEL)
    eventually(lambda: len(doorbells) > 0)
    with valkey.client() as client:
        client.flushall()
    eventually(lambda: len(doorbells) > 0)


def test_doorbells_stay_within_twice_the_slots(quick: Settings, queue, doorbells: Doorbells) -> None:
    """However deep the queue is, and however often the relay comes round."""
    add_worker(queue.database, slots=3)
    jobs = [queue.submit(model=MODEL) for _ in range(20)]
    with running(quick, queue.database) as relay:
        eventually(lambda: len(doorbells) == DOORBELLS_PER_SLOT * 3)
        for job_id in jobs:
            relay.notify(job_id, model=MODEL)
        seen = come_round(relay)
        assert len(doorbells) == DOORBELLS_PER_SLOT * 3
        assert doorbells.job_ids()[-1] == jobs[0], "the front of the line was rung for first"
        assert seen


def come_round(relay: Relay, times: int = 5) -> bool:
    """Wait until the loop has begun so many turns more."""
    for _ in range(times):
        eventually(lambda: relay.age_seconds > 0.01)
        eventually(lambda: relay.age_seconds < 0.01)
    return True


def test_doorbells_are_capped_without_any_worker_too(relay: Relay, queue, doorbells: Doorbells) -> None:
    for _ in range(6):
        queue.submit(model=MODEL)
    eventually(lambda: len(doorbells) == DOORBELLS_PER_SLOT)
    come_round(relay)
    assert len(doorbells) == DOORBELLS_PER_SLOT


@pytest.mark.parametrize("fault", ["stop", "pause"])
def test_relay_rings_again_when_redis_is_back(relay: Relay, doorbells: Doorbells, queue, valkey, fault: str) -> None:
    come_round(relay, 1)
    getattr(valkey, fault)()
    relay.notify(uuid4(), model=MODEL)
    job_id = queue.submit(model=MODEL)
    eventually(lambda: relay.age_seconds > 0.3)
    valkey.start()
    eventually(lambda: job_id in doorbells.job_ids())


@pytest.mark.parametrize("fault", ["stop", "pause"])
def test_notify_waits_for_nothing(relay: Relay, valkey, fault: str) -> None:
    getattr(valkey, fault)()
    began = time.monotonic()
    for _ in range(MAX_PENDING + 100):
        relay.notify(uuid4(), model=MODEL)
    assert time.monotonic() - began < 1  # a thousand of them; one that waited for Redis would take this long alone


def test_cancel_is_announced(relay: Relay, valkey) -> None:
    job_id = uuid4()
    with valkey.client() as client, client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(events.CANCEL_CHANNEL)
        channel.get_message(timeout=WAIT_SECONDS)
        relay.announce_cancel(job_id)
        message = channel.get_message(timeout=WAIT_SECONDS)
    assert message
    assert message["data"] == str(job_id)


class Deadly(Database):
    """A database that ends the first thread to read it, as a fork ends every thread."""

    is_deadly = True

    def read(self):
        if self.is_deadly:
            self.is_deadly = False
            raise SystemExit
        return super().read()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the thread's death is the point
def test_dead_relay_is_started_anew(quick: Settings, queue, doorbells: Doorbells) -> None:
    database = Deadly(queue.database.url)
    with running(quick, database) as relay:
        eventually(lambda: not database.is_deadly)
        eventually(lambda: relay.age_seconds > 0.5)
        job_id = queue.submit(model=MODEL)
        assert doorbells.job_ids() == []
        relay.ensure_alive()
        assert relay.age_seconds < 0.5
        eventually(lambda: job_id in doorbells.job_ids())
    database.dispose()


def test_relay_survives_a_database_that_is_away(quick: Settings, valkey, doorbells: Doorbells, tmp_path) -> None:
    """The rings of what was committed do not need it."""
    database = Database(f"sqlite:///{tmp_path}/empty.db")
    with running(quick, database) as relay:
        eventually(lambda: relay.age_seconds > 0.3)
        job_id = uuid4()
        relay.notify(job_id, model=MODEL)
        eventually(lambda: job_id in doorbells.job_ids())


def test_relay_may_be_stopped_before_it_began_and_again(settings: Settings, queue) -> None:
    relay = Relay(settings, database=queue.database, catalog=Catalog.load(settings))
    relay.stop()
    relay.stop()
    relay.ensure_alive()
    relay.notify(uuid4(), model=MODEL)


def test_who_has_just_come_to_the_front_is_not_rung_for_again(quick: Settings, queue, doorbells: Doorbells) -> None:
    """A busy line moves by itself: its doorbells would wake workers that are awake."""
    add_worker(queue.database, slots=3)
    queue.submit(model=MODEL)
    relay = Relay(quick, database=queue.database, catalog=Catalog.load(quick))
    relay._ring_again()
    assert doorbells.job_ids() == []
    stays = queue.take(models=(MODEL,)) and queue.submit(model=MODEL)
    relay._ring_again()
    assert doorbells.job_ids() == []
    relay._ring_again()
    assert doorbells.job_ids() == [stays]
    relay.stop()
