"""What others do in the scheduler's place, replayed on the same engine: each has the scheduler's methods and no more.

They decide who shares the next forward; encoding, forward, sampler and decoder are the engine's own for all of them.
"""

from collections.abc import Hashable, Iterable

from darkroom_engine.batch import Development, StepBatch, StepOutcome
from darkroom_engine.costs import CostTable


class Policy:
    """Requests wait in the order of their arrival; `_running` are those that share forwards."""

    def __init__(self, max_rows: int) -> None:
        self.costs = CostTable()
        self._max_rows = max_rows
        self._waiting: dict[Development, None] = {}
        self._running: list[Development] = []

    @property
    def developments(self) -> tuple[Development, ...]:
        return (*self._running, *self._waiting)

    def add(self, development: Development) -> None:
        self._waiting[development] = None

    def remove(self, developments: Iterable[Development]) -> None:
        for development in developments:
            self._waiting.pop(development, None)
            if development in self._running:
                self._running.remove(development)

    def schedule(self) -> StepBatch | None:
        self._admit()
        if not self._running:
            return None
        return StepBatch(self._running[0].batch_key, tuple(self._running))

    def update(self, batch: StepBatch, outcome: StepOutcome) -> None:
        self.remove(outcome.ended)

    def _admit(self) -> None:
        raise NotImplementedError

    def _fits(self, development: Development) -> bool:
        num_rows = sum(running.num_rows for running in self._running)
        return not self._running or num_rows + development.num_rows <= self._max_rows

    def _take(self, development: Development) -> None:
        del self._waiting[development]
        self._running.append(development)


class OneAtATime(Policy):
    """A queue in front of a pipeline."""

    def _admit(self) -> None:
        if not self._running and self._waiting:
            self._take(next(iter(self._waiting)))


class StaticBatching(Policy):
    """When the device is free, the oldest request and all that are like it, until the last of them is done."""

    def _admit(self) -> None:
        if self._running or not self._waiting:
            return
        key = self._key(next(iter(self._waiting)))
        for development in [each for each in self._candidates() if self._key(each) == key]:
            if self._fits(development):
                self._take(development)

    def _candidates(self) -> list[Development]:
        return list(self._waiting)

    def _key(self, development: Development) -> Hashable:
        """More than one call of a diffusers pipeline can share: it has one guidance scale."""
        request = development.request
        return (development.batch_key, request.num_inference_steps, request.sampler)


class CoalescingWindow(StaticBatching):
    """As request-level batchers do it: of the few requests of one window, those that one call can serve."""

    WINDOW = 8

    def _candidates(self) -> list[Development]:
        return list(self._waiting)[: self.WINDOW]

    def _key(self, development: Development) -> Hashable:
        return (super()._key(development), development.request.guidance_scale)


class StepModeOfVllmOmni(Policy):
    """Its admission rules: equal guidance, a first step only beside first steps, and whoever cannot join blocks all.

    vllm_omni/diffusion/sched: base_scheduler.py `schedule` breaks at the first that cannot be scheduled, and
    step_scheduler.py `_can_schedule_waiting` keeps first steps apart, unless the pipeline allows mixed phases.
    """

    def _admit(self) -> None:
        while self._waiting:
            head = next(iter(self._waiting))
            if not self._fits(head) or not self._is_compatible(head):
                return
            self._take(head)

    def _is_compatible(self, head: Development) -> bool:
        if not self._running:
            return True
        first = self._running[0]
        is_alike = (head.batch_key, head.request.guidance_scale) == (first.batch_key, first.request.guidance_scale)
        return is_alike and all(running.step == 0 for running in self._running)
