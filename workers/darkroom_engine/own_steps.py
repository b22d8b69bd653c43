"""What stands in for a noise_scheduler where a pipeline steps its latents itself. Knows no pipeline and no thread."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class Run(Protocol):
    """A pipeline's call for one request."""

    @property
    def picture(self) -> Tensor:
        """What it ended with (1, 3, H, W), of values from -1 to 1."""


class OwnSteps:
    """Counts the steps of one request, and changes nothing in them. Its timesteps say how many are left."""

    order = 1

    def __init__(self) -> None:
        self.config: Mapping[str, Any] = {}
        self.timesteps = torch.empty(0)
        # Set when the request starts. A snapshot has no words for it, and is therefore refused.
        self.run: Run | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "OwnSteps":
        """Build one; there is nothing in the config for it."""
        return cls()

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Count down to 0."""
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1)

    def step(self, prediction: Tensor, timestep: Tensor, latents: Tensor) -> tuple[Tensor]:
        """Leave the latents as they are until the last step, which gives the picture in their place."""
        if int(timestep) > 0:
            return (latents,)
        assert self.run is not None
        return (self.run.picture.to(latents.device),)
