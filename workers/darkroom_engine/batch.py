"""A request in flight, and the batches it is stepped in: what the scheduler reads and the runner changes.

Names tensors, imports no torch, so that the scheduler can use it.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from darkroom_engine.request import Handle, Request

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Generator, Tensor

    from darkroom_engine.families.base import Conditioning, Kept


@dataclass(eq=False, kw_only=True)
class Development:
    """One request in flight. `batch_key` says who may share its forwards, `num_rows` how many rows it takes there.

    Everything random and everything that remembers belongs to the request alone: its generator, its noise_scheduler.
    """

    request: Request
    handle: Handle
    batch_key: Hashable
    num_rows: int
    noise_scheduler: Any
    timesteps: "Tensor"  # (num_steps,), on the CPU: schedulers index their tables with it
    step_arguments: Mapping[str, Any]
    generator: "Generator"
    step: int = 0
    latents: "Tensor | None" = None  # (1, ...)
    conditioning: "Conditioning | None" = None  # each (num_rows, ...)
    kept: "Kept | None" = None


@dataclass(frozen=True)
class StepBatch:
    """The requests that share one denoiser forward in one tick."""

    batch_key: Hashable
    developments: tuple[Development, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the forward."""
        return sum(development.num_rows for development in self.developments)


@dataclass
class StepOutcome:
    """What one tick did: pictures, failures with their reasons, and whether the rows were too many for the memory."""

    images: "dict[Development, npt.NDArray[np.uint8]]" = field(default_factory=dict)
    failures: dict[Development, str] = field(default_factory=dict)
    is_out_of_memory: bool = False

    @property
    def ended(self) -> tuple[Development, ...]:
        """The requests that need no further step."""
        return (*self.images, *self.failures)
