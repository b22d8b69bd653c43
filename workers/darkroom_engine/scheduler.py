"""Picks the requests of each tick. Knows batch keys, rows, classes and costs; touches no tensor and no clock.

Groups (requests of one batch key) take turns. A turn is as many forwards as fit into the time of one of the dearest
group, at most MAX_TURN, so that small pictures do not wait a large forward for each of their steps. How many rows run,
the cost table says. They go to the requests with the least work left, so that short ones end soon and nobody gives up
its rows without need; but a newcomer is due at once, and whoever was stepped is due again PATIENCE forwards later; who
is due goes first, in the order of becoming so. After them comes who holds up all: whose steps are more than the rest of
the work would take, so that at its end no long request runs alone in rows that others have left. Among n requests each
is therefore stepped once in PATIENCE + n forwards of its group at the latest, and of g groups each has a turn in g.
Interactive requests come before bulk ones, whose rows they take at the next tick; while both are in flight, one tick in
BULK_TURN is the bulk requests', and the same holds among them.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence

from darkroom_engine.batch import Development, StepBatch, StepOutcome
from darkroom_engine.costs import CostTable

INTERACTIVE = 0

# While both classes are in flight, one tick in so many is the bulk requests': a trickle that never dries up.
BULK_TURN = 8

# Patience makes the mean request end sooner. On the curve of a UNet bound by dispatch, 32 mixed requests at 8 rows used
# 98 % of the device and took 0.55 of its time in the mean; with 4 that is 99 % and 0.71, with 24 it is 98 % and 0.47.
# (Eleven draws. If nobody were put forward for holding up all, it would be 95 % and 0.53.)
PATIENCE = 8
MAX_TURN = 64

# So many forwards long a group keeps to the rows that once did not fit; then it tries twice as many.
ROW_LIMIT_FORWARDS = 500


class _Turns:
    """Whose turn it is among the groups of one class."""

    def __init__(self) -> None:
        self._served_at: dict[Hashable, int] = {}  # batch key -> the number of its latest forward
        self._num_forwards = 0
        self._current: Hashable = None
        self._num_left = 0  # forwards of the current turn

    def take(self, seconds: dict[Hashable, float]) -> Hashable:
        """Say which group is next, of those with a cost: the one that began its turn, else who waited longest."""
        if self._current not in seconds or not self._num_left:
            self._current = min(seconds, key=lambda key: self._served_at.get(key, 0))
            self._num_left = int(min(MAX_TURN, max(seconds.values()) / seconds[self._current]))
        self._num_left -= 1
        self._num_forwards += 1
        self._served_at[self._current] = self._num_forwards
        return self._current

    def forget(self, batch_key: Hashable) -> None:
        self._served_at.pop(batch_key, None)


class _Group:
    """What is remembered of a batch key while it has requests in flight."""

    def __init__(self) -> None:
        self.num_requests = 0
        self.num_forwards = 0
        self.row_limit: int | None = None  # once memory ran out
        self.row_limit_ends_at = 0

    def halve_rows(self, num_rows: int) -> None:
        self.row_limit = max(1, num_rows // 2)
        self.row_limit_ends_at = self.num_forwards + ROW_LIMIT_FORWARDS

    def count_forward(self) -> None:
        self.num_forwards += 1
        if self.row_limit is not None and self.num_forwards >= self.row_limit_ends_at:
            self.row_limit *= 2
            self.row_limit_ends_at = self.num_forwards + ROW_LIMIT_FORWARDS


class Scheduler:
    """Holds the requests in flight, in the order of their arrival."""

    def __init__(self, max_rows: int) -> None:
        self.costs = CostTable()
        self._max_rows = max_rows
        self._due: dict[Development, int] = {}  # request -> the number of its group's forward from which it goes first
        self._groups: dict[Hashable, _Group] = {}
        self._interactive_turns = _Turns()
        self._bulk_turns = _Turns()
        self._ticks_shared = 0  # since the bulk requests' latest turn

    @property
    def developments(self) -> tuple[Development, ...]:
        """Every request in flight, the oldest first."""
        return tuple(self._due)

    def add(self, development: Development) -> None:
        """Take in a request; it may be stepped from the next tick on."""
        group = self._groups.setdefault(development.batch_key, _Group())
        group.num_requests += 1
        self._due[development] = group.num_forwards

    def remove(self, developments: Iterable[Development]) -> None:
        """Forget requests, and what was learned about the groups that run empty with them."""
        for development in developments:
            if self._due.pop(development, None) is None:
                continue
            group = self._groups[development.batch_key]
            group.num_requests -= 1
            if not group.num_requests:
                del self._groups[development.batch_key]
                self._interactive_turns.forget(development.batch_key)
                self._bulk_turns.forget(development.batch_key)

    def schedule(self) -> StepBatch | None:
        """Pick one group and fill its rows; who is left out is parked until a later tick. None without requests."""
        if not self._due:
            return None
        first_class, second_class, turns = self._classes_in_order()
        waiting: dict[Hashable, list[Development]] = {development.batch_key: [] for development in first_class}
        for development in (*first_class, *second_class):
            if development.batch_key in waiting:
                waiting[development.batch_key].append(development)
        rows = {key: self._rows_worth_running(key, developments) for key, developments in waiting.items()}
        batch_key = turns.take(self._seconds(rows))
        group = self._groups[batch_key]
        first_priority = first_class[0].request.priority
        work = sum(development.num_steps_left * development.num_rows for development in waiting[batch_key])
        last_steps = work / rows[batch_key]  # when every row of every forward is in use
        in_order = sorted(
            waiting[batch_key],
            key=lambda development: self._rank(development, first_priority, group, last_steps=last_steps),
        )
        taken, exact_rows = _fill(in_order, rows[batch_key])
        # As they came, whatever their ranks: the next batch is then mostly the same one, whose conditioning is kept.
        as_they_came = tuple(development for development in waiting[batch_key] if development in taken)
        return StepBatch(batch_key, as_they_came, exact_rows)

    def update(self, batch: StepBatch, outcome: StepOutcome) -> None:
        """Learn from a tick: ended requests leave; a group that did not fit into memory gets half the rows."""
        group = self._groups[batch.batch_key]
        group.count_forward()
        if outcome.is_out_of_memory:
            group.halve_rows(batch.num_rows)
        else:
            for development in batch.developments:
                self._due[development] = group.num_forwards + PATIENCE
        for cost in outcome.costs:
            self.costs.record(cost)
        self.remove(outcome.ended)

    def _classes_in_order(self) -> tuple[list[Development], list[Development], _Turns]:
        interactive = [d for d in self._due if d.request.priority == INTERACTIVE]
        bulk = [d for d in self._due if d.request.priority != INTERACTIVE]
        if not interactive:
            return bulk, [], self._bulk_turns
        if bulk:
            self._ticks_shared += 1
            if self._ticks_shared == BULK_TURN:
                self._ticks_shared = 0
                return bulk, interactive, self._bulk_turns
        return interactive, bulk, self._interactive_turns

    def _rows_worth_running(self, batch_key: Hashable, developments: Sequence[Development]) -> int:
        limits = (self._max_rows, self._groups[batch_key].row_limit, developments[0].max_rows)
        num_rows = sum(development.num_rows for development in developments)
        return self.costs.rows_worth_running(
            batch_key, min(num_rows, *(limit for limit in limits if limit is not None))
        )

    def _seconds(self, rows: Mapping[Hashable, int]) -> dict[Hashable, float]:
        """What a forward of each group takes. One that was never measured counts as the dearest."""
        known = {key: self.costs.seconds(key, num_rows) for key, num_rows in rows.items()}
        dearest = max((seconds for seconds in known.values() if seconds is not None), default=1.0)
        return {key: dearest if seconds is None else seconds for key, seconds in known.items()}

    def _rank(
        self, development: Development, first_priority: int, group: _Group, *, last_steps: float
    ) -> tuple[bool, bool, bool, int]:
        due = self._due[development]
        is_due = due <= group.num_forwards
        return (
            development.request.priority != first_priority,
            not is_due,
            development.num_steps_left <= last_steps,
            due if is_due else development.num_steps_left * development.num_rows,
        )


def _fill(developments: Sequence[Development], num_rows: int) -> tuple[set[Development], int | None]:
    """Take requests while they fit. The first is always taken: alone, it runs even where its rows are too many.

    Where the first is to be exact, the rows are as many as that asks for, which is given too, and any neighbor may have
    those left over. Where it is not, requests to be exact wait for a forward of their own row count.
    """
    first, *others = developments
    taken = {first}
    free = (first.exact_rows or num_rows) - first.num_rows
    for development in others:
        if development.num_rows <= free and (first.exact_rows or not development.exact_rows):
            taken.add(development)
            free -= development.num_rows
    return taken, first.exact_rows
