"""The samplers by name, and the noise_scheduler that each request gets for itself.

Knows diffusers' scheduler classes; knows no model and no batch. The names are k-diffusion's; the titles are those that
users of AUTOMATIC1111's web UI know.
"""

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSDEScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from torch import Generator, Tensor

from darkroom_engine.own_steps import OwnSteps

# diffusers' own default.
LCM_DISTILLED_STEPS = 50


@dataclass(frozen=True)
class Sampler:
    """A diffusers scheduler class and what its name promises beyond the model's own scheduler config."""

    title: str
    noise_scheduler_class: Any
    overrides: Mapping[str, Any] = field(default_factory=dict)


# How the sigmas are spread over the walk, by the suffix of a sampler's name; all off is the model's own spacing.
SPACINGS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}
_OWN_SPACING = dict.fromkeys(SPACINGS.values(), False)

_DPMPP_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2}
_DPMPP_2M_SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
_DPMPP_3M_SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}


def _spaced(samplers: Mapping[str, Sampler]) -> Iterator[tuple[str, Sampler]]:
    """Give each sampler with every spacing of its sigmas."""
    for name, sampler in samplers.items():
        yield name, Sampler(sampler.title, sampler.noise_scheduler_class, {**sampler.overrides, **_OWN_SPACING})
        for suffix, option in SPACINGS.items():
            overrides = {**sampler.overrides, **_OWN_SPACING, option: True}
            yield (
                f"{name}_{suffix}",
                Sampler(f"{sampler.title} {suffix.title()}", sampler.noise_scheduler_class, overrides),
            )


# For models that were trained with betas: eps-, v- or sample-prediction over discrete timesteps.
DISCRETE_SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Sampler("DDIM", DDIMScheduler),
    "ddpm": Sampler("DDPM", DDPMScheduler),
    "euler_a": Sampler("Euler a", EulerAncestralDiscreteScheduler),
    "lcm": Sampler("LCM", LCMScheduler),
    # Without skip_prk_steps diffusers' PNDM cannot run few steps.
    "pndm": Sampler("PLMS", PNDMScheduler, {"skip_prk_steps": True}),
    "sa_solver": Sampler("SA Solver", SASolverScheduler),
    "tcd": Sampler("TCD", TCDScheduler),
    **dict(
        _spaced(
            {
                "deis": Sampler("DEIS", DEISMultistepScheduler),
                "dpm2": Sampler("DPM2", KDPM2DiscreteScheduler),
                "dpm2_a": Sampler("DPM2 a", KDPM2AncestralDiscreteScheduler),
                "dpmpp_2m": Sampler("DPM++ 2M", DPMSolverMultistepScheduler, _DPMPP_2M),
                "dpmpp_2m_sde": Sampler("DPM++ 2M SDE", DPMSolverMultistepScheduler, _DPMPP_2M_SDE),
                "dpmpp_2s": Sampler("DPM++ 2S", DPMSolverSinglestepScheduler, _DPMPP_2M | {"lower_order_final": True}),
                "dpmpp_3m_sde": Sampler("DPM++ 3M SDE", DPMSolverMultistepScheduler, _DPMPP_3M_SDE),
                "dpmpp_sde": Sampler("DPM++ SDE", DPMSolverSDEScheduler),
                "euler": Sampler("Euler", EulerDiscreteScheduler),
                "heun": Sampler("Heun", HeunDiscreteScheduler),
                "lms": Sampler("LMS", LMSDiscreteScheduler),
                "unipc": Sampler("UniPC", UniPCMultistepScheduler),
            }
        )
    ),
}

_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

# For models that were trained by flow matching. The sigmas' shift is the model's own.
FLOW_SAMPLERS: Mapping[str, Sampler] = {
    "deis": Sampler("DEIS", DEISMultistepScheduler, _FLOW),
    "dpmpp_2m": Sampler("DPM++ 2M", DPMSolverMultistepScheduler, {**_DPMPP_2M, **_FLOW}),
    "dpmpp_2m_sde": Sampler("DPM++ 2M SDE", DPMSolverMultistepScheduler, {**_DPMPP_2M_SDE, **_FLOW}),
    "euler": Sampler("Euler", FlowMatchEulerDiscreteScheduler),
    "heun": Sampler("Heun", FlowMatchHeunDiscreteScheduler),
    "lcm": Sampler("LCM", FlowMatchLCMScheduler),
    "unipc": Sampler("UniPC", UniPCMultistepScheduler, _FLOW),
}

# For models that were trained with EDM's preconditioning (Karras et al. 2022).
EDM_SAMPLERS: Mapping[str, Sampler] = {"euler": Sampler("Euler", EDMEulerScheduler)}


# For pipelines that step by themselves, with whatever scheduler their folder has.
OWN_SAMPLERS: Mapping[str, Sampler] = {"default": Sampler("Default", OwnSteps)}


def samplers_for(config: Mapping[str, Any]) -> Mapping[str, Sampler]:
    """Say which samplers a model takes, by what its scheduler config knows: betas, a shift of flow sigmas, or EDM's."""
    if config.get("has_own_steps"):
        return OWN_SAMPLERS
    if config.get("prediction_type") == "flow_prediction" or ("shift" in config and "beta_start" not in config):
        return FLOW_SAMPLERS
    return EDM_SAMPLERS if "sigma_data" in config else DISCRETE_SAMPLERS


def make_noise_scheduler(
    sampler: str,
    config: Mapping[str, Any],
    num_inference_steps: int,
    *,
    seed: int,
    timing: Mapping[str, Any],
    num_skipped: int,
) -> Any:
    """Build a noise_scheduler for one request from the model's scheduler config, its timesteps set, on the CPU.

    Of `timing`, set_timesteps() gets what this class takes: the others come to the same sigmas by themselves. The walk
    begins after the first num_skipped of the inference steps. One object per request: they keep their state inside.
    Its tables stay on the CPU, where indexing them never makes the device wait. For one thread at a time: it changes
    the process's warning filters for a moment.
    """
    chosen = samplers_for(config)[sampler]
    overrides = {**chosen.overrides, **_overrides_of_the_class(chosen, config, num_inference_steps, seed)}
    if samplers_for(config) is FLOW_SAMPLERS:
        shift, timing = _shift(chosen.noise_scheduler_class, config, timing)
        overrides |= shift
    with warnings.catch_warnings():
        # diffusers hands tensors to numpy the way that numpy 2 deprecates.
        warnings.filterwarnings("ignore", message="__array_(_|wrap__)", category=DeprecationWarning)
        expected = inspect.signature(chosen.noise_scheduler_class).parameters
        known = {name: value for name, value in config.items() if name in expected}
        noise_scheduler = chosen.noise_scheduler_class.from_config(known, **overrides)
        accepted = inspect.signature(noise_scheduler.set_timesteps).parameters
        taken = {name: value for name, value in timing.items() if name in accepted}
        noise_scheduler.set_timesteps(num_inference_steps, **taken)
    if hasattr(noise_scheduler, "set_begin_index"):
        noise_scheduler.set_begin_index(num_skipped * noise_scheduler.order)
    return noise_scheduler


def _overrides_of_the_class(
    chosen: Sampler, config: Mapping[str, Any], num_inference_steps: int, seed: int
) -> dict[str, Any]:
    if chosen.noise_scheduler_class in (LCMScheduler, TCDScheduler):
        # They take their steps from among those they were distilled with: where more are asked for, from so many.
        distilled_steps = config.get("original_inference_steps", LCM_DISTILLED_STEPS)
        return {"original_inference_steps": max(num_inference_steps, distilled_steps)}
    if chosen.noise_scheduler_class is DPMSolverSDEScheduler:
        return {"noise_sampler_seed": seed}  # else it would take one from the global generator
    return {}


def _shift(
    noise_scheduler_class: Any, config: Mapping[str, Any], timing: Mapping[str, Any]
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Say what this class calls the shift of the model's flow sigmas, and what is left of the timing.

    A shift that depends on the size comes as `mu`. A class that does not know it is given the shift that it amounts to.
    """
    name = "shift" if "shift" in inspect.signature(noise_scheduler_class).parameters else "flow_shift"
    if "mu" not in timing or hasattr(noise_scheduler_class, "time_shift"):
        return {name: config.get("shift", config.get("flow_shift", 1.0))}, timing
    mu = timing["mu"]
    shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    # Heun has no such option; the others would ask for mu again.
    option = {} if name == "shift" else {"use_dynamic_shifting": False}
    return {name: shift, **option}, {key: value for key, value in timing.items() if key != "mu"}


def step_arguments(noise_scheduler: Any, generator: Generator) -> Mapping[str, Any]:
    """Say what its step() takes beyond prediction, timestep and latents, as diffusers' pipelines do: by signature."""
    accepted = inspect.signature(noise_scheduler.step).parameters
    offered = {"eta": 0.0, "generator": generator, "return_dict": False}
    return {name: value for name, value in offered.items() if name in accepted}


def scale_model_input(noise_scheduler: Any, latents: Tensor, timestep: Tensor) -> Tensor:
    """Bring latents to the size that the denoiser was trained with; flow matching needs none of it."""
    if not hasattr(noise_scheduler, "scale_model_input"):
        return latents
    scaled: Tensor = noise_scheduler.scale_model_input(latents, timestep)
    return scaled
