"""What an operator sees of the whole at one look: gathered from SQL, the dearer figures remembered for a few seconds.

Knows which figures, and how old they may be; not how they are counted, nor how they are shown.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from darkroom import fleet, intake
from darkroom.config import Settings
from darkroom.db import Database
from darkroom.fleet import WorkerRecord
from darkroom.intake import Pause
from darkroom.jobs import statistics
from darkroom.jobs.statistics import Depth, Failure, RunningJob, Span, Stored
from darkroom.models import WorkerState
from darkroom.web.plots import Plot, columns, lines

# However many look, what has ended is counted this often; what is stored, which looks at every picture, more rarely.
FRESH_SECONDS = 4.0
STORED_SECONDS = 60.0

T = TypeVar("T")


@dataclass(frozen=True)
class Window:
    """How far back the plots look, in how many spans of which length."""

    name: str
    title: str
    num: int
    seconds: int


WINDOWS: dict[str, Window] = {
    window.name: window for window in (Window("hour", "hour", 60, 60), Window("day", "day", 48, 1800))
}


@dataclass(frozen=True)
class WorkerSight:
    """A worker, what it has in its hands, and whether it was last heard of longer ago than a lease."""

    facts: WorkerRecord
    jobs: tuple[RunningJob, ...]
    is_silent: bool

    @property
    def condition(self) -> str:
        """In one word, for the page."""
        if self.is_silent:
            return "silent"
        if self.facts.is_drain_wanted or self.facts.state is WorkerState.DRAINING:
            return "draining"
        return "ready"


@dataclass(frozen=True)
class Overview:
    """All of it."""

    window: Window
    pause: Pause | None
    depths: tuple[Depth, ...]
    workers: tuple[WorkerSight, ...]
    spans: tuple[Span, ...]
    failures: tuple[Failure, ...]
    stored: Stored

    @property
    def throughput(self) -> Plot:
        """Jobs that were developed, and upon them those that failed, in each span."""
        return columns([span.num_succeeded for span in self.spans], [span.num_failed for span in self.spans])

    @property
    def waits(self) -> Plot:
        """The median and the 95th percentile of the wait in each span."""
        median = [span.median_wait_seconds for span in self.spans]
        return lines(median, [span.p95_wait_seconds for span in self.spans])

    @property
    def num_succeeded(self) -> int:
        """Jobs that were developed in the window."""
        return sum(span.num_succeeded for span in self.spans)

    @property
    def num_failed(self) -> int:
        """Jobs that failed or expired in the window."""
        return sum(span.num_failed for span in self.spans)

    @property
    def num_running(self) -> int:
        """Jobs that workers have now."""
        return sum(depth.num_running for depth in self.depths)

    @property
    def latest_wait(self) -> Span | None:
        """The latest span in which anything was developed."""
        return next((span for span in reversed(self.spans) if span.median_wait_seconds is not None), None)


class Overlook:
    """Gathers overviews. Safe to share between threads."""

    def __init__(self, settings: Settings, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_seconds = settings.lease_seconds
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Any]] = {}

    def look(self, window: Window) -> Overview:
        """Look at the whole as it is now. Raises DatabaseUnavailable."""
        database, length = self._database, window.num * window.seconds
        spans = self._remember(
            f"spans of {window.name}",
            FRESH_SECONDS,
            lambda: statistics.latest_spans(database, num=window.num, seconds=window.seconds),
        )
        failures = self._remember(
            f"failures of {window.name}",
            FRESH_SECONDS,
            lambda: statistics.failures(database, within_seconds=length),
        )
        return Overview(
            window=window,
            pause=intake.read(database),
            depths=tuple(statistics.depths(database)),
            workers=tuple(self._workers()),
            spans=tuple(spans),
            failures=tuple(failures),
            stored=self._remember("stored", STORED_SECONDS, lambda: statistics.stored(database)),
        )

    def _workers(self) -> list[WorkerSight]:
        running = statistics.running(self._database)
        return [
            WorkerSight(
                worker,
                tuple(job for job in running if job.worker_id == worker.id),
                worker.heartbeat_age_seconds > self._lease_seconds,
            )
            for worker in fleet.list_workers(self._database)
        ]

    def _remember(self, name: str, seconds: float, read: Callable[[], T]) -> T:
        with self._lock:
            known = self._known.get(name)
        if known and self._clock() - known[0] < seconds:
            return cast(T, known[1])
        found = read()
        with self._lock:
            self._known[name] = (self._clock(), found)
        return found
