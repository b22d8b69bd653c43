"""How long work takes on a device, without ever making the host wait for it. Knows no model."""

import time
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from darkroom_engine.costs import ForwardCost


class Stopwatch(Protocol):
    """Times forwards, and says later what they cost."""

    @contextmanager
    def timing(self, batch_key: Hashable, num_rows: int) -> Iterator[None]:
        """Time the forward that runs inside, unless it fails."""

    def costs(self) -> list[ForwardCost]:
        """Give, once, those that have ended by now."""


def stopwatch_for(device: torch.device) -> Stopwatch:
    """Build the one that is right for a device: where work is queued, the device's own clock takes the time."""
    return HostStopwatch() if device.type == "cpu" else EventStopwatch(device)


class HostStopwatch:
    """For devices that have done their work when a call returns."""

    def __init__(self) -> None:
        self._costs: list[ForwardCost] = []

    @contextmanager
    def timing(self, batch_key: Hashable, num_rows: int) -> Iterator[None]:
        """Time the forward that runs inside, unless it fails."""
        began_at = time.perf_counter()
        yield
        self._costs.append(ForwardCost(batch_key, num_rows, time.perf_counter() - began_at))

    def costs(self) -> list[ForwardCost]:
        """Give, once, those that have ended by now."""
        costs, self._costs = self._costs, []
        return costs


class EventStopwatch:
    """For devices that queue their work: marks are queued around it, and read when the device has passed them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._running: deque[tuple[Hashable, int, torch.Event, torch.Event]] = deque()

    @contextmanager
    def timing(self, batch_key: Hashable, num_rows: int) -> Iterator[None]:
        """Time the forward that runs inside, unless it fails."""
        began, ended = (torch.Event(self._device, enable_timing=True) for _ in range(2))
        began.record()
        yield
        ended.record()
        self._running.append((batch_key, num_rows, began, ended))

    def costs(self) -> list[ForwardCost]:
        """Give, once, those that have ended by now."""
        costs = []
        while self._running and self._running[0][3].query():
            batch_key, num_rows, began, ended = self._running.popleft()
            costs.append(ForwardCost(batch_key, num_rows, began.elapsed_time(ended) / 1000))
        return costs
