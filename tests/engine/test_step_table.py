"""The samplers as tables of weights: the same walk as diffusers' own objects, for every linear one."""

from collections.abc import Mapping
from typing import Any

import diffusers
import pytest
import torch
from torch import Generator, Tensor

from darkroom_engine.families import seeded
from darkroom_engine.samplers import (
    DISCRETE_SAMPLERS,
    FLOW_SAMPLERS,
    make_noise_scheduler,
    samplers_for,
    scale_model_input,
    step_arguments,
)
from darkroom_engine.step_table import StepTable, read_step_table

V_PREDICTION: Mapping[str, Any] = seeded._noise_scheduler().config
EPSILON = {**V_PREDICTION, "prediction_type": "epsilon", "timestep_spacing": "leading"}
FLOW = {**diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config}
CONFIGS = {"v_prediction": V_PREDICTION, "epsilon": EPSILON, "flow": FLOW}
LINEAR = {
    "flow": {"dpmpp_2m", "dpmpp_2m_sde", "euler"},
    "discrete": {"ddim", "ddpm", "euler_a", "lcm", "tcd"}
    | {
        f"{name}{suffix}"
        for name in ("dpmpp_2m", "dpmpp_2m_sde", "euler")
        for suffix in ("", "_karras", "_exponential", "_beta")
    },
}
CASES = [(kind, sampler) for kind in CONFIGS for sampler in sorted(LINEAR["flow" if kind == "flow" else "discrete"])]


def make(config: Mapping[str, Any], sampler: str, *, steps: int = 20, skipped: int = 0) -> Any:
    return make_noise_scheduler(sampler, config, steps, seed=1, timing={}, num_skipped=skipped)


def denoiser(latents: Tensor) -> Tensor:
    return 0.7 * torch.tanh(latents) + 0.1


def walk_of_the_object(noise_scheduler: Any, latents: Tensor, timesteps: Tensor) -> list[Tensor]:
    arguments = step_arguments(noise_scheduler, Generator().manual_seed(5))
    walk = []
    for timestep in timesteps:
        prediction = denoiser(scale_model_input(noise_scheduler, latents, timestep))
        latents = noise_scheduler.step(prediction, timestep, latents, **arguments)[0]
        walk.append(latents)
    return walk


def walk_of_the_table(table: StepTable, latents: Tensor) -> tuple[list[Tensor], float]:
    """The walk, and the largest number that it passed through."""
    generator = Generator().manual_seed(5)
    denoised = torch.zeros_like(latents)
    walk = []
    largest = float(latents.abs().max())
    for step in table:
        prediction = denoiser(step.input_scale * latents)
        noise = torch.randn(latents.shape, generator=generator) if step.noise else 0.0
        following = step.latents * latents + step.prediction * prediction + step.previous * denoised
        denoised = step.denoised_latents * latents + step.denoised_prediction * prediction
        latents = following + step.noise * noise
        walk.append(latents)
        largest = max(largest, float(latents.abs().max()), float(denoised.abs().max()))
    return walk, largest


@pytest.mark.parametrize(("kind", "sampler"), CASES)
@pytest.mark.parametrize(("steps", "skipped"), [(1, 0), (2, 0), (20, 0), (20, 9)])
def test_a_table_walks_as_its_object_does(kind: str, sampler: str, steps: int, skipped: int) -> None:
    config = CONFIGS[kind]
    noise_scheduler = make(config, sampler, steps=steps, skipped=skipped)
    timesteps = noise_scheduler.timesteps[skipped:]
    table = read_step_table(make(config, sampler, steps=steps, skipped=skipped), timesteps)
    assert table is not None
    size = float(getattr(noise_scheduler, "init_noise_sigma", 1.0))
    latents = size * torch.randn((1, 4, 8, 8), generator=Generator().manual_seed(2))
    expected = walk_of_the_object(noise_scheduler, latents, timesteps)
    found, largest = walk_of_the_table(table, latents)
    assert len(table) == len(timesteps)
    for ours, theirs in zip(found, expected, strict=True):
        # Of the walk's range: the object itself loses that much where it takes small numbers from large ones.
        assert (ours - theirs).abs().max() < 1e-5 * largest


def test_only_linear_samplers_have_a_table() -> None:
    for kind, samplers in {"discrete": DISCRETE_SAMPLERS, "flow": FLOW_SAMPLERS}.items():
        config = FLOW if kind == "flow" else V_PREDICTION
        fresh = {sampler: make(config, sampler, steps=2) for sampler in samplers}
        linear = {name for name, each in fresh.items() if read_step_table(each, each.timesteps) is not None}
        assert linear == LINEAR[kind]


@pytest.mark.parametrize("option", ["clip_sample", "thresholding"])
def test_a_sampler_that_clips_is_not_linear(option: str) -> None:
    noise_scheduler = make({**EPSILON, option: True}, "ddim")
    assert read_step_table(noise_scheduler, noise_scheduler.timesteps) is None


def test_what_a_table_takes_for_the_picture_is_the_picture() -> None:
    """With a prediction that is the noise itself, every step sees the same picture."""
    picture, noise = torch.randn((2, 1, 4, 8, 8), generator=Generator().manual_seed(3))
    noise_scheduler = make(EPSILON, "ddim")
    [step, *_] = read_step_table(make(EPSILON, "ddim"), noise_scheduler.timesteps) or ()
    latents = noise_scheduler.add_noise(picture, noise, noise_scheduler.timesteps[:1])
    denoised = step.denoised_latents * latents + step.denoised_prediction * noise
    assert torch.allclose(denoised, picture, atol=1e-4)


@pytest.mark.parametrize(
    ("scheduler", "samplers"),
    [
        (diffusers.PNDMScheduler, DISCRETE_SAMPLERS),
        (diffusers.FlowMatchEulerDiscreteScheduler, FLOW_SAMPLERS),
        (diffusers.FlowMatchHeunDiscreteScheduler, FLOW_SAMPLERS),
        (diffusers.EDMEulerScheduler, {"euler": None}),
    ],
)
def test_a_model_takes_the_samplers_it_was_trained_for(scheduler: Any, samplers: Mapping[str, Any]) -> None:
    assert set(samplers_for(scheduler().config)) == set(samplers)
    for sampler in samplers:
        noise_scheduler = make(scheduler().config, sampler, steps=3)
        assert len(noise_scheduler.timesteps) >= 3
