"""The loops of a web process: who rings, who sweeps, who tells news, who delivers webhooks.

Knows when they run, not what they do.
"""

from typing import Any
from uuid import UUID

from flask import Flask

from darkroom.news import Crier
from darkroom.relay import Relay
from darkroom.sweeper import Sweeper
from darkroom.web.hub import Hub
from darkroom.webhooks.courier import Courier

# A turn of the relay ends within a few seconds even when Redis is a black hole, and so does its longest pause.
STALE_SECONDS = 20.0


class Background:
    """The loops, in the process that serves. The hub's begins with its first follower."""

    def __init__(self, relay: Relay, sweeper: Sweeper, crier: Crier, hub: Hub, courier: Courier) -> None:
        self._relay = relay
        self._sweeper = sweeper
        self._crier = crier
        self._hub = hub
        self._courier = courier

    def run_with(self, app: Flask) -> None:
        """Start the loops now, and again at any request that finds one dead: a fork or a fault may have ended it."""
        self.ensure_alive()
        app.before_request(self.ensure_alive)

    def ensure_alive(self) -> None:
        """Start whichever loop does not run. After stop() nothing is started again."""
        self._relay.ensure_alive()
        self._sweeper.ensure_alive()
        self._crier.ensure_alive()
        self._courier.ensure_alive()

    def end_waits(self) -> None:
        """Send away everybody who waits for a job, so that the process can end. Again is fine."""
        self._hub.stop()

    def stop(self) -> None:
        """End all loops. Again is fine, and so is before they ran."""
        self.end_waits()
        self._crier.stop()
        self._courier.stop()
        self._relay.stop()
        self._sweeper.stop()

    def notify(self, job_id: UUID, *, model: str) -> None:
        """Have a worker rung for a job that was just committed. Never waits, never fails."""
        self._relay.notify(job_id, model=model)

    def announce_cancel(self, job_id: UUID) -> None:
        """Have the job's worker told to stop. Never waits, never fails."""
        self._relay.announce_cancel(job_id)

    def report(self) -> dict[str, Any]:
        """The relay's age, for /readyz."""
        age = self._relay.age_seconds
        report = {"ok": age < STALE_SECONDS, "age_seconds": round(age, 1)}
        return report if report["ok"] else report | {"problem": "its loop has not come round"}
