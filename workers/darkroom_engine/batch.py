"""A request in flight, and the batches it is stepped in: what the scheduler reads and the runner changes.

Names tensors, imports no torch, so that the scheduler can use it.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from darkroom_engine.costs import ForwardCost
from darkroom_engine.request import Handle, Request

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from darkroom_engine.families.base import Conditioning, Kept
    from darkroom_engine.snapshots import Snapshot
    from darkroom_engine.step_table import StepTable


@dataclass(eq=False, kw_only=True)
class Development:
    """One request in flight. `batch_key` says who may share its forwards, `num_rows` how many rows it takes there.

    `max_rows` is how many fit into the memory at its shape, where that is known; `exact_rows` how many each of its
    forwards must have, where it is to be exact. Everything random and everything that remembers belongs to the request
    alone: its generator, its noise_scheduler.
    """

    request: Request
    handle: Handle
    batch_key: Hashable
    num_rows: int
    noise_scheduler: Any
    timesteps: "Tensor"  # (num_steps,), on the CPU: schedulers index their tables with it
    step_arguments: Mapping[str, Any]
    generator: "Generator"
    max_rows: int | None = None
    exact_rows: int | None = None
    step_table: "StepTable | None" = None  # None: the noise_scheduler itself is stepped
    step: int = 0
    latents: "Tensor | None" = None  # (1, ...)
    denoised: "Tensor | None" = None  # (1, ...): what the latest step took for the picture, where that is known
    conditioning: "Conditioning | None" = None  # each (num_rows, ...)
    kept: "Kept | None" = None
    snapshot: "Snapshot | None" = None  # what it is to go on from, until it has begun
    walk: "dict[int, Tensor]" = field(default_factory=dict)  # step -> (1, ...), on the host

    @cached_property
    def num_steps(self) -> int:
        """Denoiser steps from its start to its picture."""
        return self.handle.progress.num_steps

    @cached_property
    def timestep_values(self) -> tuple[float, ...]:
        """Its timesteps, to be read without a tensor's detour: 3 us each, of every request in every step."""
        return tuple(self.timesteps.tolist())

    @property
    def num_steps_left(self) -> int:
        """Denoiser steps that it still needs."""
        return self.num_steps - self.step


@dataclass(frozen=True)
class StepBatch:
    """The requests that share one denoiser forward in one tick.

    `exact_rows` is how many rows the forward must have, where one of them is to be exact; padding fills it up.
    """

    batch_key: Hashable
    developments: tuple[Development, ...]
    exact_rows: int | None = None

    @property
    def num_rows(self) -> int:
        """Rows that the requests take."""
        return sum(development.num_rows for development in self.developments)


@dataclass
class StepOutcome:
    """What one tick did: who has reached the last step, failures with their reasons, whether memory was too small.

    `costs` are those of forwards that have ended by now, this tick's or earlier ones'.
    """

    denoised: list[Development] = field(default_factory=list)
    failures: dict[Development, str] = field(default_factory=dict)
    is_out_of_memory: bool = False
    costs: list[ForwardCost] = field(default_factory=list)

    @property
    def ended(self) -> tuple[Development, ...]:
        """The requests that need no further step."""
        return (*self.denoised, *self.failures)
