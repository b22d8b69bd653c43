"""kombu's Redis transport, which asks before it takes a doorbell. Knows nothing of jobs.

A full worker must leave doorbells to idle ones. Celery's own means (prefetch credit) counts messages, and kombu 5.7
even holds a message it has already popped while there is no credit; here a full worker does not send BRPOP at all.
"""

import os
import time
from collections.abc import Callable
from queue import Empty
from typing import Any

import structlog
from celery import bootsteps
from kombu.transport import redis

logger = structlog.get_logger(__name__)

# After a doorbell this worker lets the next ones be for so long, to others: whoever was woken claims all that waits.
REST_SECONDS = 0.01
TRANSPORT = f"{__name__}:Transport"


class Channel(redis.Channel):
    """Waits for messages only while the transport option `is_open` says so."""

    from_transport_options: tuple[str, ...] = (*redis.Channel.from_transport_options, "is_open")  # type: ignore[assignment]
    is_open: Callable[[], bool]

    _rest_until = 0.0

    def _brpop_start(self, timeout: float | None = None) -> None:
        if self.is_open() and time.monotonic() >= self._rest_until:
            super()._brpop_start(timeout)  # type: ignore[no-untyped-call]

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Say nothing: of a doorbell that was taken Redis knows no more."""

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Say nothing, likewise."""

    def _brpop_read(self, **options: Any) -> Any:
        """Take a message. One that is none is dropped: kombu's error over it would end the worker."""
        try:
            message = super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            logger.warning("rubbish_dropped", reason=repr(error))
            raise Empty from error
        self._rest()
        return message

    def _rest(self) -> None:
        if self.connection.loop:  # else nobody would wake it
            self._rest_until = time.monotonic() + REST_SECONDS
            self.connection.loop.call_later(REST_SECONDS, _come_round)


def _come_round() -> None:
    """Do nothing: that the loop was woken is all."""


class Transport(redis.Transport):
    """kombu's, with the asking channel."""

    Channel = Channel
    loop: Any = None

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Remember the loop, for the channel's rests."""
        super().register_with_event_loop(connection, loop)  # type: ignore[no-untyped-call]
        self.loop = loop


class Waker:
    """Makes Celery's event loop come round at once, from any thread: a gate that opened is noticed without delay."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def wake(self) -> None:
        """Wake the loop. One that is about to wake anyway is left alone."""
        try:
            os.write(self._writer, b"\0")
        except BlockingIOError:
            return  # the pipe is full of wakes that were not read yet

    def step(self) -> type[bootsteps.StartStopStep]:
        """The part of a Celery consumer that listens, added anew at every connection."""
        reader = self._reader

        class Listen(bootsteps.StartStopStep):  # type: ignore[misc]
            requires = ("celery.worker.consumer.tasks:Tasks",)

            def start(self, consumer: Any) -> None:
                if consumer.hub:
                    consumer.hub.add_reader(reader, os.read, reader, 4096)

        return Listen
