"""The gate in front of the doorbells, and the pipe that opens it without delay."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from kombu import Connection, Queue

from darkroom.dispatch import KEY_PREFIX
from darkroom_worker.transport import TRANSPORT, Waker


class Gate:
    is_open = False

    def __call__(self) -> bool:
        return self.is_open


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def connection(valkey: Any, gate: Gate) -> Iterator[Connection]:
    options = {"is_open": gate, "global_keyprefix": KEY_PREFIX}
    with Connection(valkey.url, transport=TRANSPORT, transport_options=options) as connection:
        yield connection


def heard(connection: Connection, queue: Queue) -> list[Any]:
    """What arrives within a short look."""
    messages: list[Any] = []
    consumer = connection.Consumer(queue, callbacks=[lambda body, message: (messages.append(body), message.ack())])
    with consumer, suppress(TimeoutError):
        connection.drain_events(timeout=0.3)
    return messages


def test_a_closed_gate_asks_redis_for_nothing_and_an_open_one_does(
    connection: Connection, valkey: Any, gate: Gate
) -> None:
    queue = Queue("develop.a-model")
    with connection.Producer() as producer:
        producer.publish({"n": 1}, routing_key=queue.name, declare=[queue])
    with valkey.client() as client:
        client.config_resetstat()
        assert heard(connection, queue) == []
        assert client.llen(f"{KEY_PREFIX}{queue.name}") == 1
        assert "cmdstat_brpop" not in client.info("commandstats")
        gate.is_open = True
        assert heard(connection, queue) == [{"n": 1}]


def test_waking_never_blocks_however_often() -> None:
    waker = Waker()
    woken = threading.Thread(target=lambda: [waker.wake() for _ in range(100_000)], daemon=True)
    woken.start()
    woken.join(20)
    assert not woken.is_alive()
