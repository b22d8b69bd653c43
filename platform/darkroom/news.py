"""Which jobs have moved, told from process to process by Redis. Lossy: whoever listens also looks into SQL by itself.

Names jobs only. What happened is read from SQL, so that whoever can write to Redis has no power.
"""

import queue
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from redis import Redis, RedisError

from darkroom.brokers import REDIS_TIMEOUT_SECONDS, LossyRedis, impatient_redis
from darkroom.events import MOVED
from darkroom.loops import Loop

CHANNEL = "darkroom:news"
# More news than this wait for nobody: every listener looks for itself.
MAX_PENDING = 10_000
MAX_IN_MESSAGE = 500
# After a message, the next one waits so long for company: the first of many is told at once.
REST_SECONDS = 0.02


class Crier:
    """Tells of every commit, from a thread of its own: no transaction and no request waits for Redis."""

    def __init__(self, redis_url: str) -> None:
        self._redis = LossyRedis(redis_url)
        self._pending: queue.Queue[UUID | None] = queue.Queue(MAX_PENDING)
        self._loop = Loop("crier", self._turn, pause_seconds=REST_SECONDS)
        self.ensure_alive = self._loop.ensure_alive

    def on_commit(self, left: Mapping[Any, Any]) -> None:
        """Take note of the jobs that moved in a transaction that has committed. Never waits, never fails."""
        for job_id in left.get(MOVED, ()):
            self._put(job_id)

    def stop(self) -> None:
        """End the thread. Again is fine, and so is before `ensure_alive`."""
        self._put(None)
        self._loop.stop()

    def _put(self, job_id: UUID | None) -> None:
        try:
            self._pending.put_nowait(job_id)
        except queue.Full:
            return

    def _turn(self) -> None:
        moved = dict.fromkeys([self._pending.get()])
        while len(moved) < MAX_IN_MESSAGE and not self._pending.empty():
            moved[self._pending.get()] = None
        if names := " ".join(str(job_id) for job_id in moved if job_id):
            self._redis.ask(lambda client: client.publish(CHANNEL, names), 0)


class Listener:
    """One subscription. Raises RedisError from every call when Redis is away."""

    def __init__(self, redis_url: str) -> None:
        self._redis: Redis = impatient_redis(redis_url, seconds=REDIS_TIMEOUT_SECONDS)
        self._channel = self._redis.pubsub(ignore_subscribe_messages=True)
        try:
            self._channel.subscribe(CHANNEL)
        except RedisError:
            self.close()
            raise

    def hear(self, *, seconds: float) -> set[UUID]:
        """The jobs that have moved; waits for the first news at most so long."""
        moved: set[UUID] = set()
        wait = seconds
        while len(moved) < MAX_PENDING and (message := self._channel.get_message(timeout=wait)):
            moved.update(_job_ids(message["data"]))
            wait = 0
        return moved

    def close(self) -> None:
        """Leave."""
        self._channel.close()
        self._redis.close()


def _job_ids(names: bytes) -> Iterable[UUID]:
    """Take from Redis what is an id, and nothing else."""
    for name in names.split():
        try:
            yield UUID(name.decode())
        except ValueError:
            continue
