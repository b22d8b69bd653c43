"""Noise, put onto latents and taken off again: the forward process, and what a denoiser may be asked to predict.

Training, image-to-image and everything that shows the walk use these same functions; knows no network and no sampler.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class ForwardProcess(Protocol):
    """How latents become noise: what is left of the picture, and how much noise there is, at each timestep."""

    @property
    def num_timesteps(self) -> int:
        """How many timesteps lie between picture and noise."""

    def timesteps(self, positions: Tensor) -> Tensor:
        """Give the timesteps (B,) at positions (B,) on the way from the picture, 0, to noise, 1."""

    def scales(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Give what the latents and the noise are multiplied with at timesteps (B,), each (B, 1, 1, 1)."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise latents (B, C, h, w) to timesteps (B,) in one step."""


@dataclass(frozen=True)
class NoiseSchedule:
    """How much of the picture is left at each timestep: `alphas_cumprod` (T,), falling from nearly 1 to nearly 0."""

    alphas_cumprod: Tensor

    @classmethod
    def of(cls, noise_scheduler: Any) -> "NoiseSchedule":
        """Take the schedule of a diffusers noise_scheduler, so that training noises as sampling denoises."""
        return cls(noise_scheduler.alphas_cumprod.float())

    @property
    def num_timesteps(self) -> int:
        """Timesteps run from 0 to one less."""
        return len(self.alphas_cumprod)

    def timesteps(self, positions: Tensor) -> Tensor:
        """Give the timesteps (B,), whole numbers, at positions (B,) on the way from the picture, 0, to noise, 1."""
        return (positions * self.num_timesteps).long().clamp(max=self.num_timesteps - 1)

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        """Give the same schedule on a device."""
        return NoiseSchedule(self.alphas_cumprod.to(device))

    def scales(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Give what the latents and the noise are multiplied with at timesteps (B,), each (B, 1, 1, 1)."""
        alphas_cumprod = self.alphas_cumprod[timesteps][:, None, None, None]  # (B, 1, 1, 1)
        return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise latents (B, C, h, w) to timesteps (B,) in one step (Ho, Jain and Abbeel 2020, eq. 4)."""
        alpha, sigma = self.scales(timesteps)
        return alpha * latents + sigma * noise


@dataclass(frozen=True)
class StraightLine:
    """The forward process of flow matching: timesteps are any numbers from 0, the picture, to 1000, noise."""

    num_timesteps: int = 1000

    def timesteps(self, positions: Tensor) -> Tensor:
        """Give the timesteps (B,) at positions (B,) on the way from the picture, 0, to noise, 1."""
        return positions * self.num_timesteps

    def scales(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Give what the latents and the noise are multiplied with at timesteps (B,), each (B, 1, 1, 1)."""
        sigma = (timesteps.float() / self.num_timesteps)[:, None, None, None]  # (B, 1, 1, 1)
        return 1 - sigma, sigma

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Go from latents (B, C, h, w) straight toward noise (Liu, Gong and Liu 2023, eq. 1; s is 1 - their t)."""
        alpha, sigma = self.scales(timesteps)
        return alpha * latents + sigma * noise


@dataclass(frozen=True)
class Parameterization:
    """What a denoiser predicts: the target of its training, and the way back from a prediction to the picture.

    Both take (latents or noisy latents, noise or prediction, alpha, sigma), with alpha and sigma from the schedule.
    """

    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    denoised: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

    def losses(self, prediction: Tensor, latents: Tensor, noise: Tensor, scales: tuple[Tensor, Tensor]) -> Tensor:
        """Give the squared error of each sample (B,): the simple loss (Ho, Jain and Abbeel 2020, eq. 14)."""
        error: Tensor = prediction.float() - self.target(latents, noise, *scales)
        return error.square().mean(dim=(1, 2, 3))


# Ho, Jain and Abbeel 2020: the noise itself; the picture by their eq. 15.
EPSILON = Parameterization(
    target=lambda latents, noise, alpha, sigma: noise,
    denoised=lambda noisy, prediction, alpha, sigma: (noisy - sigma * prediction) / alpha,
)

# Salimans and Ho 2022, section 4 and appendix D: v = alpha * noise - sigma * x, and x = alpha * z - sigma * v.
VELOCITY = Parameterization(
    target=lambda latents, noise, alpha, sigma: alpha * noise - sigma * latents,
    denoised=lambda noisy, prediction, alpha, sigma: alpha * noisy - sigma * prediction,
)

# Liu, Gong and Liu 2023, eq. 1; Lipman et al. 2023, eq. 23: the direction of the straight line from picture to noise.
FLOW = Parameterization(
    target=lambda latents, noise, alpha, sigma: noise - latents,
    denoised=lambda noisy, prediction, alpha, sigma: noisy - sigma * prediction,
)

# By the names that recipes have for them; the first two are also what diffusers writes into a scheduler's config.
PARAMETERIZATIONS: Mapping[str, Parameterization] = {"epsilon": EPSILON, "v_prediction": VELOCITY, "flow": FLOW}
