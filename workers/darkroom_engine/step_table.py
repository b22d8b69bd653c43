"""A sampler's steps as numbers: what each step multiplies with what.

Most samplers are linear: the next latents are a weighted sum of the latents, the prediction, the denoised picture of
the step before, and fresh noise. The weights are read off diffusers' own object by stepping unit vectors with it, so
they are right by construction, whatever spacing, parameterization and solver it was built with. Knows no request.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from torch import Generator, Tensor

from darkroom_engine.samplers import scale_model_input, step_arguments

LINEAR = (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
# These clip what they take for the picture, if their config says so.
CLIPPING = (DDIMScheduler, DDPMScheduler, LCMScheduler, TCDScheduler)

# So large that the noise, which is of size 1, adds no rounding error to the weights beside it.
UNIT = 2.0**13
NUM_NOISE_PROBES = 16


@dataclass(frozen=True)
class StepWeights:
    """The weights of one step.

    The denoiser sees input_scale * latents. denoised = denoised_latents * latents + denoised_prediction * prediction;
    next latents = latents * latents + prediction * prediction + previous * previous denoised + noise * noise.
    """

    input_scale: float
    latents: float
    prediction: float
    previous: float
    noise: float
    denoised_latents: float
    denoised_prediction: float

    @cached_property
    def in_order(self) -> tuple[float, ...]:
        """All of them, in the order of the fields. (`astuple` copies deeply: 60 us a step under a profiler.)"""
        return (
            self.input_scale,
            self.latents,
            self.prediction,
            self.previous,
            self.noise,
            self.denoised_latents,
            self.denoised_prediction,
        )


StepTable = tuple[StepWeights, ...]


def read_step_table(noise_scheduler: Any, timesteps: Tensor) -> StepTable | None:
    """Step unit vectors through a fresh noise_scheduler, and use it up. None for a sampler that is not linear."""
    if not _is_linear(noise_scheduler):
        return None
    generator = Generator().manual_seed(0)
    arguments = step_arguments(noise_scheduler, generator)
    return tuple(_read_step(noise_scheduler, timestep, arguments, number) for number, timestep in enumerate(timesteps))


def draws_float32(noise_scheduler: Any) -> bool:
    """Whether it draws its noise in float32, whatever type the latents have: diffusers' others draw in the latents'."""
    return isinstance(noise_scheduler, DPMSolverMultistepScheduler)


def _is_linear(noise_scheduler: Any) -> bool:
    config = noise_scheduler.config
    if not isinstance(noise_scheduler, LINEAR) or config.get("thresholding", False):
        return False
    if isinstance(noise_scheduler, CLIPPING) and config.get("clip_sample", False):
        return False
    # Of the multistep solvers, those that look back one step; others decide by the size of what they see.
    order = config.get("solver_order", 2)
    return not isinstance(noise_scheduler, DPMSolverMultistepScheduler) or (
        order <= 2 and config.algorithm_type in ("dpmsolver++", "sde-dpmsolver++")
    )


def _read_step(noise_scheduler: Any, timestep: Tensor, arguments: Mapping[str, Any], number: int) -> StepWeights:
    latents, prediction, previous = UNIT * torch.eye(3, 3 + NUM_NOISE_PROBES).unsqueeze(1)  # each (1, K)
    remembers = isinstance(noise_scheduler, DPMSolverMultistepScheduler)
    if remembers and number > 0:
        noise_scheduler.model_outputs[-1] = previous
    input_scale = float(scale_model_input(noise_scheduler, torch.ones(1, 1), timestep))
    generator = arguments.get("generator", Generator())
    noise, before = _next_noise(generator, latents.shape), generator.get_state()
    stepped, *rest = noise_scheduler.step(prediction, timestep, latents, **arguments)
    has_drawn = not generator.get_state().equal(before)
    noise_weight = float(stepped[0, 3:] @ noise[0, 3:] / noise[0, 3:].square().sum()) if has_drawn else 0.0
    weights = ((stepped[0, :3] - noise_weight * noise[0, :3]) / UNIT).tolist()
    if remembers:
        denoised = noise_scheduler.model_outputs[-1]
    elif rest:
        denoised = rest[0]
    else:  # flow matching: x = z - sigma * v (Lipman et al. 2023)
        denoised = latents - noise_scheduler.sigmas[noise_scheduler.step_index - 1] * prediction
    of_latents, of_prediction, of_previous = weights
    denoised_latents, denoised_prediction = (denoised[0, :2] / UNIT).tolist()
    return StepWeights(
        input_scale,
        of_latents,
        of_prediction,
        of_previous,
        noise_weight,
        denoised_latents,
        denoised_prediction,
    )


def _next_noise(generator: Generator, shape: torch.Size) -> Tensor:
    """Draw what the generator will draw next, and leave it as it was."""
    copy = Generator()
    copy.set_state(generator.get_state())
    return torch.randn(shape, generator=copy)
