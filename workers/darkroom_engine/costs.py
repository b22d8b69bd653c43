"""What forwards cost, and how many rows are worth running. Knows batch keys and seconds; touches no tensor, no clock.

The rule: of the row counts that the waiting requests could fill, run the smallest whose rows per second come within
NEARLY_BEST of the greatest. While a forward costs the same however many rows it has, that is all of them; where each
row costs as much as the one before, it is the smallest count, for more would make everybody wait for everybody and
finish nobody sooner. Between two measured counts the cost is taken to be on the straight line; beyond the greatest it
goes on as the line did, and where only one count is known, more rows are taken to be free: so that a count which
nobody has measured is tried, and then known. A measurement counts for MAX_AGE forwards of its key, unless renewed.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

NEARLY_BEST = 0.95

# Of one row count: the least of the latest so many is its cost, for whatever disturbs a forward only adds to it.
NUM_SAMPLES = 5
# So often a count that does not run may be tried again: a wrong measurement of it would otherwise never be righted.
MAX_AGE = 200

MAX_KEYS = 256


@dataclass(frozen=True)
class ForwardCost:
    """How long one forward took."""

    batch_key: Hashable
    num_rows: int
    seconds: float


@dataclass(frozen=True)
class Tally:
    """How many forwards an engine has run, and how many rows the requests had in them, all together."""

    num_forwards: int = 0
    num_rows: int = 0

    def plus(self, num_rows: int) -> "Tally":
        """One forward more."""
        return Tally(self.num_forwards + 1, self.num_rows + num_rows)

    def rows_per_step(self, since: "Tally") -> float | None:
        """The rows of a forward on average, of those that ran since then; None when none did."""
        num_forwards = self.num_forwards - since.num_forwards
        return (self.num_rows - since.num_rows) / num_forwards if num_forwards else None


@dataclass
class _Count:
    """What is known of one row count; nothing until its second forward, for the first also warms the device up."""

    samples: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_SAMPLES))
    renewed_at: int = 0


@dataclass
class _Curve:
    """The counts of one batch key."""

    counts: dict[int, _Count] = field(default_factory=dict)
    num_forwards: int = 0
    points: list[tuple[int, float]] = field(default_factory=list)  # (rows, seconds) of those that count, ascending

    def record(self, num_rows: int, seconds: float) -> None:
        self.num_forwards += 1
        count = self.counts.get(num_rows)
        if count is None:
            count = self.counts[num_rows] = _Count()
        else:
            count.samples.append(seconds)
        count.renewed_at = self.num_forwards
        for other in self.counts.values():
            if self.num_forwards - other.renewed_at >= MAX_AGE:
                other.samples.clear()
        self.points = sorted((rows, min(each.samples)) for rows, each in self.counts.items() if each.samples)

    def seconds(self, num_rows: int) -> float:
        """The cost of any row count. There must be a point."""
        place = bisect_left(self.points, (num_rows, 0.0))
        if place == 0 or len(self.points) == 1:
            return self.points[0][1]
        if place < len(self.points):
            (few, seconds_of_few), (many, seconds_of_many) = self.points[place - 1 : place + 1]
            return seconds_of_few + (seconds_of_many - seconds_of_few) * (num_rows - few) / (many - few)
        (few, seconds_of_few), (many, seconds_of_many) = self.points[-2:]
        slope = max(0.0, (seconds_of_many - seconds_of_few) / (many - few))
        return seconds_of_many + slope * (num_rows - many)


class CostTable:
    """Seconds per batch key and row count, as measured; of the keys used last."""

    def __init__(self) -> None:
        self._curves: dict[Hashable, _Curve] = {}

    def record(self, cost: ForwardCost) -> None:
        """Learn from one forward."""
        curve = self._curves.pop(cost.batch_key, None) or _Curve()
        self._curves[cost.batch_key] = curve
        curve.record(cost.num_rows, cost.seconds)
        if len(self._curves) > MAX_KEYS:
            del self._curves[next(iter(self._curves))]

    def seconds(self, batch_key: Hashable, num_rows: int) -> float | None:
        """What a forward of so many rows would take; None while the key has no measurement."""
        curve = self._curves.get(batch_key)
        return curve.seconds(num_rows) if curve and curve.points else None

    def rows_worth_running(self, batch_key: Hashable, num_rows: int) -> int:
        """Of at most so many rows, how many to run: all of them while nothing is known."""
        curve = self._curves.get(batch_key)
        if curve is None or not curve.points:
            return num_rows
        counts = [count for count, _ in curve.points if count < num_rows] + [num_rows]
        rates = {count: count / curve.seconds(count) for count in counts}
        enough = NEARLY_BEST * max(rates.values())
        return next(count for count in counts if rates[count] >= enough)
