"""How many wait and run, for whoever asks: counted anew, or told from memory where counting takes its time."""

import threading
import time
from collections.abc import Callable

from darkroom import jobs
from darkroom.db import Database
from darkroom.jobs import LineRecord

# So many are counted within a few milliseconds, for everybody who asks. More than that are remembered.
FEW = 1000
FRESH_SECONDS = 2.0


class Census:
    """Counts the lines of the queue. Safe to share between threads."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._counting = threading.Lock()
        self._lines: list[LineRecord] = []
        self._fresh_until = -1.0

    def lines(self) -> list[LineRecord]:
        """Every line in which anybody waits or runs; where more than a few wait, as it was FRESH_SECONDS ago at most.

        Raises DatabaseUnavailable.
        """
        if self._is_fresh():
            return self._lines
        with self._counting:  # whoever comes meanwhile is content with what this one counts
            if not self._is_fresh():
                self._count()
            return self._lines

    def _is_fresh(self) -> bool:
        return self._clock() < self._fresh_until

    def _count(self) -> None:
        self._lines = jobs.lines(self._database)
        is_long = sum(line.queued for line in self._lines) > FEW
        self._fresh_until = self._clock() + FRESH_SECONDS if is_long else -1.0
