"""Rings the doorbells, outside every HTTP request: one loop per web process. Decides nothing about any job.

A submit commits and then only puts its job here. When Redis is away nothing waits for it: the ring is dropped, and the
workers find the job by polling.
"""

import queue
import time
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

import structlog

from darkroom import events, fleet, jobs
from darkroom.catalog import Catalog
from darkroom.config import Settings
from darkroom.db import Database
from darkroom.dispatch import BROKER_ERRORS, Doorbell
from darkroom.errors import BrokerAway
from darkroom.loops import Loop

logger = structlog.get_logger(__name__)

# More rings than this wait for nobody: the poll serves them.
MAX_PENDING = 1000
# After a turn, the next rings wait so long for company: the first of many goes out at once.
REST_SECONDS = 0.01
# Doorbells waiting in Redis, per slot of the fleet.
DOORBELLS_PER_SLOT = 2


@dataclass(frozen=True)
class _Ring:
    job_id: UUID
    model: str


@dataclass(frozen=True)
class _Cancel:
    job_id: UUID


class Relay:
    """The loop that rings. `ensure_alive` starts it, after the fork, and anew if it has died."""

    def __init__(self, settings: Settings, *, database: Database, catalog: Catalog) -> None:
        self._settings = settings
        self._database = database
        self._models = [entry.name for entry in catalog.models]
        self._pending: queue.Queue[_Ring | _Cancel] = queue.Queue(MAX_PENDING)
        self._board = events.ProgressBoard(settings.redis_url)
        self._doorbell = Doorbell(settings)
        self._next_round = time.monotonic()
        self._caps: dict[str, int] = {}
        # Who waited at the front of each line in the round before.
        self._waited: dict[str, frozenset[UUID]] = {}
        self._loop = Loop("relay", self._turn, pause_seconds=REST_SECONDS)
        self.ensure_alive = self._loop.ensure_alive

    def notify(self, job_id: UUID, *, model: str) -> None:
        """Ask for a ring for a job that was just committed. Never waits, never fails."""
        self._put(_Ring(job_id, model))

    def announce_cancel(self, job_id: UUID) -> None:
        """Ask that the job's worker be told to stop. Never waits, never fails."""
        self._put(_Cancel(job_id))

    def stop(self) -> None:
        """End the loop. Again is fine, and so is before `ensure_alive`."""
        self._loop.stop()
        self._doorbell.close()

    @property
    def age_seconds(self) -> float:
        """How long ago the loop last came round."""
        return self._loop.age_seconds

    def _put(self, item: _Ring | _Cancel) -> None:
        try:
            self._pending.put_nowait(item)
        except queue.Full:
            logger.warning("relay_full", dropped=type(item).__name__, job_id=str(item.job_id))

    def _turn(self) -> None:
        batch = self._next_batch()
        try:
            self._serve(batch)
            if time.monotonic() >= self._next_round:
                self._next_round = time.monotonic() + self._settings.relay_seconds
                self._ring_again()
        except BROKER_ERRORS as error:
            raise BrokerAway(f"Redis does not answer: {error}") from error

    def _next_batch(self) -> list[_Ring | _Cancel]:
        try:
            batch = [self._pending.get(timeout=self._settings.relay_seconds)]
        except queue.Empty:
            return []
        while len(batch) < MAX_PENDING:
            try:
                batch.append(self._pending.get_nowait())
            except queue.Empty:
                break
        return batch

    def _serve(self, batch: Iterable[_Ring | _Cancel]) -> None:
        rings: dict[str, list[UUID]] = {}
        for item in batch:
            if isinstance(item, _Cancel):
                self._board.announce_cancel(item.job_id)
            else:
                rings.setdefault(item.model, []).append(item.job_id)
        for model, job_ids in rings.items():
            self._ring(model, job_ids)

    def _ring_again(self) -> None:
        """Ring for those who wait at the front and whose doorbell nobody heard: who were there a round ago already."""
        slots = fleet.num_slots(self._database, self._models, lease_seconds=self._settings.lease_seconds)
        self._caps = {model: DOORBELLS_PER_SLOT * max(num_slots, 1) for model, num_slots in slots.items()}
        for model, cap in self._caps.items():
            waiting = jobs.front_of_queue(self._database, model=model, limit=cap)
            if unheard := [job_id for job_id in waiting if job_id in self._waited.get(model, ())]:
                self._ring(model, unheard)
            self._waited[model] = frozenset(waiting)

    def _ring(self, model: str, job_ids: list[UUID]) -> None:
        room = self._caps.get(model, DOORBELLS_PER_SLOT) - self._doorbell.num_waiting(model)
        for job_id in job_ids[: max(room, 0)]:
            self._doorbell.ring(job_id, model=model)
