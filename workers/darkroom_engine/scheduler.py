"""Picks the requests of each tick. Knows batch keys, rows and classes; touches no tensor and no clock."""

from collections.abc import Hashable, Iterable, Sequence

from darkroom_engine.batch import Development, StepBatch, StepOutcome

INTERACTIVE = 0

# While both classes are in flight, one tick in so many is the bulk requests': a trickle that never dries up.
BULK_TURN = 8


class Scheduler:
    """Holds the requests in flight, in the order of their arrival."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._developments: dict[Development, None] = {}
        self._tick = 0
        self._ticks_shared = 0  # since the bulk requests' latest turn
        self._stepped_at: dict[Hashable, int] = {}  # batch key -> its latest tick
        self._row_limits: dict[Hashable, int] = {}  # batch key -> rows that fit, known once memory ran out

    @property
    def developments(self) -> tuple[Development, ...]:
        """Every request in flight, the oldest first."""
        return tuple(self._developments)

    def add(self, development: Development) -> None:
        """Take in a request; it may be stepped from the next tick on."""
        self._developments[development] = None

    def remove(self, developments: Iterable[Development]) -> None:
        """Forget requests, and what was learned about the groups that run empty with them."""
        for development in developments:
            self._developments.pop(development, None)
        keys = {development.batch_key for development in self._developments}
        self._stepped_at = {key: tick for key, tick in self._stepped_at.items() if key in keys}
        self._row_limits = {key: limit for key, limit in self._row_limits.items() if key in keys}

    def schedule(self) -> StepBatch | None:
        """Pick one group and fill its rows; who is left out is parked until a later tick.

        Interactive requests come before bulk ones, groups take turns, and inside a group and class the oldest request
        keeps its rows until it is done. None when nothing is in flight.
        """
        if not self._developments:
            return None
        self._tick += 1
        preferred, others = self._classes_in_order()
        batch_key = self._group_whose_turn_it_is(preferred)
        self._stepped_at[batch_key] = self._tick
        group = [development for development in (*preferred, *others) if development.batch_key == batch_key]
        return StepBatch(batch_key, self._fill(group, self._row_limits.get(batch_key, self._max_rows)))

    def update(self, batch: StepBatch, outcome: StepOutcome) -> None:
        """Learn from a tick: ended requests leave; a group that did not fit into memory gets half the rows."""
        if outcome.is_out_of_memory:
            self._row_limits[batch.batch_key] = max(1, batch.num_rows // 2)
        self.remove(outcome.ended)

    def _classes_in_order(self) -> tuple[list[Development], list[Development]]:
        interactive = [d for d in self._developments if d.request.priority == INTERACTIVE]
        bulk = [d for d in self._developments if d.request.priority != INTERACTIVE]
        if not interactive or not bulk:
            return interactive or bulk, []
        self._ticks_shared += 1
        if self._ticks_shared < BULK_TURN:
            return interactive, bulk
        self._ticks_shared = 0
        return bulk, interactive

    def _group_whose_turn_it_is(self, developments: Sequence[Development]) -> Hashable:
        keys = dict.fromkeys(development.batch_key for development in developments)
        return min(keys, key=lambda key: self._stepped_at.get(key, 0))

    @staticmethod
    def _fill(group: Sequence[Development], max_rows: int) -> tuple[Development, ...]:
        """Take requests while they fit. The first is always taken: alone, it runs even where its rows are too many."""
        taken = [group[0]]
        free = max_rows - group[0].num_rows
        for development in group[1:]:
            if development.num_rows <= free:
                taken.append(development)
                free -= development.num_rows
        return tuple(taken)
