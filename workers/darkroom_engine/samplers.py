"""The samplers by name, and the noise_scheduler that each request gets for itself.

Knows diffusers' scheduler classes; knows no model and no batch.
"""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Generator

# diffusers' own default.
LCM_DISTILLED_STEPS = 50


@dataclass(frozen=True)
class Sampler:
    """A diffusers scheduler class and what its name promises beyond the model's own scheduler config."""

    noise_scheduler_class: Any
    overrides: Mapping[str, Any] = field(default_factory=dict)


_DPMPP_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": False}

SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Sampler(DDIMScheduler),
    "ddpm": Sampler(DDPMScheduler),
    "dpmpp_2m": Sampler(DPMSolverMultistepScheduler, _DPMPP_2M),
    "dpmpp_2m_karras": Sampler(DPMSolverMultistepScheduler, {**_DPMPP_2M, "use_karras_sigmas": True}),
    "dpmpp_2m_sde_karras": Sampler(
        DPMSolverMultistepScheduler,
        {**_DPMPP_2M, "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "euler": Sampler(EulerDiscreteScheduler, {"use_karras_sigmas": False}),
    "euler_a": Sampler(EulerAncestralDiscreteScheduler),
    "heun": Sampler(HeunDiscreteScheduler, {"use_karras_sigmas": False}),
    "lcm": Sampler(LCMScheduler),
    # Without skip_prk_steps diffusers' PNDM cannot run few steps.
    "pndm": Sampler(PNDMScheduler, {"skip_prk_steps": True}),
    "unipc": Sampler(UniPCMultistepScheduler, {"use_karras_sigmas": False}),
}


def make_noise_scheduler(
    sampler: str, config: Mapping[str, Any], num_inference_steps: int, *, timing: Mapping[str, Any], num_skipped: int
) -> Any:
    """Build a noise_scheduler for one request from the model's scheduler config, its timesteps set, on the CPU.

    `timing` goes to set_timesteps(). The walk begins after the first num_skipped of the inference steps.

    One object per request: they keep their state inside. Its tables stay on the CPU, where indexing them never makes
    the device wait. For one thread at a time: it changes the process's warning filters for a moment.
    """
    chosen = SAMPLERS[sampler]
    overrides = dict(chosen.overrides)
    if sampler == "lcm":
        # LCM takes its steps from among those it was distilled with: where more are asked for, from among so many.
        distilled_steps = config.get("original_inference_steps", LCM_DISTILLED_STEPS)
        overrides["original_inference_steps"] = max(num_inference_steps, distilled_steps)
    with warnings.catch_warnings():
        # diffusers hands tensors to numpy the way that numpy 2 deprecates.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        noise_scheduler = chosen.noise_scheduler_class.from_config(config, **overrides)
        noise_scheduler.set_timesteps(num_inference_steps, **timing)
    if hasattr(noise_scheduler, "set_begin_index"):
        noise_scheduler.set_begin_index(num_skipped * noise_scheduler.order)
    return noise_scheduler


def step_arguments(noise_scheduler: Any, generator: Generator) -> Mapping[str, Any]:
    """Say what its step() takes beyond prediction, timestep and latents, as diffusers' pipelines do: by signature."""
    accepted = inspect.signature(noise_scheduler.step).parameters
    offered = {"eta": 0.0, "generator": generator, "return_dict": False}
    return {name: value for name, value in offered.items() if name in accepted}
