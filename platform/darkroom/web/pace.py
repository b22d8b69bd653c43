"""When a job is likely to be done, told as an interval, from what was done lately. Measures; promises nothing."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from darkroom import fleet, jobs
from darkroom.db import Database
from darkroom.jobs import Done, JobRecord, JobState
from darkroom.params import cost

# With fewer nobody knows.
FEWEST_DONE = 5
# How long figures are used: polls are many, and figures change slowly.
FRESH_SECONDS = 5.0
LOW, HIGH = 0.1, 0.9
# So old may be what a worker has told of its progress.
PROGRESS_AGE_SECONDS = 0.3


@dataclass(frozen=True)
class Eta:
    """In how many seconds a job is done: between these, as far as lately tells."""

    min_seconds: float
    max_seconds: float


@dataclass(frozen=True)
class Figures:
    """Of one model: seconds per megapixel-step of the faster and the slower jobs, a usual job's cost, its slots."""

    fast: float
    slow: float
    usual_cost: float
    num_slots: int

    def eta(self, own_cost: float, *, num_ahead: int) -> Eta:
        """Rounds of as many jobs as there are slots go before it; whoever is at work now may have just begun."""
        rounds = num_ahead // self.num_slots
        soonest = (rounds * self.usual_cost + own_cost) * self.fast
        latest = ((rounds + 1) * self.usual_cost + own_cost) * self.slow
        return Eta(round(soonest, 1), round(latest, 1))

    def rest(self, own_cost: float) -> Eta:
        """How long a job still takes that a worker has, by the cost of what was left of it when that was last told."""
        soonest = max(0.0, own_cost * self.fast - PROGRESS_AGE_SECONDS)
        return Eta(round(soonest, 1), round(own_cost * self.slow, 1))


class Pace:
    """The figures of each model, remembered for a few seconds. Safe to share between threads."""

    def __init__(self, database: Database, *, lease_seconds: float) -> None:
        self._database = database
        self._lease_seconds = lease_seconds
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Figures | None]] = {}

    def eta(self, job: JobRecord, *, position: int | None, progress: Mapping[str, Any] | None) -> Eta | None:
        """When a job is likely to be done; None when it has ended, or nobody can tell."""
        if job.state not in {JobState.QUEUED, JobState.RUNNING}:
            return None
        figures = self._of(job.model)
        if figures is None:
            return None
        if job.state is JobState.RUNNING:
            done = progress["step"] / progress["num_steps"] if progress and progress["num_steps"] > 0 else 0.0
            return figures.rest(cost(job.params) * max(0.0, 1 - done))
        return figures.eta(cost(job.params), num_ahead=position) if position is not None else None

    def foresee(self, model: str, own_cost: float, *, num_ahead: int) -> Eta | None:
        """When a job would be done that nobody has submitted yet; None when nobody can tell."""
        figures = self._of(model)
        return figures.eta(own_cost, num_ahead=num_ahead) if figures else None

    def _of(self, model: str) -> Figures | None:
        with self._lock:
            known = self._known.get(model)
        if known and time.monotonic() - known[0] < FRESH_SECONDS:
            return known[1]
        figures = self._measure(model)
        with self._lock:
            self._known[model] = (time.monotonic(), figures)
        return figures

    def _measure(self, model: str) -> Figures | None:
        num_slots = fleet.num_slots(self._database, [model], lease_seconds=self._lease_seconds)[model]
        return figures_of(jobs.latest_done(self._database, model), num_slots=num_slots) if num_slots else None


def figures_of(done: list[Done], *, num_slots: int) -> Figures | None:
    """What finished jobs tell; None when they are too few."""
    if len(done) < FEWEST_DONE:
        return None
    speeds = sorted(each.seconds / each.cost for each in done)
    usual_cost = sum(each.cost for each in done) / len(done)
    return Figures(speeds[int(LOW * len(speeds))], speeds[int(HIGH * len(speeds))], usual_cost, num_slots)
