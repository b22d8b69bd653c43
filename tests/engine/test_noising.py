"""Forward noising and parameterizations, against diffusers' own."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Generator

from darkroom_engine.noising import FLOW, PARAMETERIZATIONS, NoiseSchedule, StraightLine

LATENTS, NOISE = (torch.randn((3, 4, 2, 2), generator=Generator().manual_seed(seed)) for seed in (1, 2))
TIMESTEPS = torch.tensor([0, 400, 999])


@pytest.fixture
def noise_scheduler() -> DDPMScheduler:
    return DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")


def test_noising_is_that_of_diffusers(noise_scheduler: DDPMScheduler) -> None:
    noisy = NoiseSchedule.of(noise_scheduler).add_noise(LATENTS, NOISE, TIMESTEPS)
    assert torch.equal(noisy, noise_scheduler.add_noise(LATENTS, NOISE, TIMESTEPS))


def test_velocity_is_that_of_diffusers(noise_scheduler: DDPMScheduler) -> None:
    scales = NoiseSchedule.of(noise_scheduler).scales(TIMESTEPS)
    target = PARAMETERIZATIONS["v_prediction"].target(LATENTS, NOISE, *scales)
    assert torch.equal(target, noise_scheduler.get_velocity(LATENTS, NOISE, TIMESTEPS))


@pytest.mark.parametrize("name", ["epsilon", "v_prediction"])
def test_right_prediction_gives_the_latents_back(noise_scheduler: DDPMScheduler, name: str) -> None:
    schedule, parameterization = NoiseSchedule.of(noise_scheduler), PARAMETERIZATIONS[name]
    timesteps = torch.tensor([10, 300, 700])
    noisy, scales = schedule.add_noise(LATENTS, NOISE, timesteps), schedule.scales(timesteps)
    prediction = parameterization.target(LATENTS, NOISE, *scales)
    # 1e-4: at timestep 700 the picture is a twelfth of what is divided by.
    assert torch.allclose(parameterization.denoised(noisy, prediction, *scales), LATENTS, atol=1e-4)


def test_noising_of_flow_matching_is_that_of_diffusers() -> None:
    timesteps = torch.tensor([0.5, 500.0, 1000.0])
    noise_scheduler = FlowMatchEulerDiscreteScheduler()
    noise_scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.0005])
    expected = noise_scheduler.scale_noise(LATENTS, timesteps.flip(0), NOISE).flip(0)
    line = StraightLine()
    noisy = line.add_noise(LATENTS.flip(0), NOISE.flip(0), timesteps)
    assert torch.allclose(noisy, expected, atol=1e-6)
    assert torch.equal(line.timesteps(torch.tensor([0.25])), torch.tensor([250.0]))


def test_right_prediction_of_flow_matching_gives_the_latents_back() -> None:
    timesteps, line = torch.tensor([10.0, 300.5, 1000.0]), StraightLine()
    noisy, scales = line.add_noise(LATENTS, NOISE, timesteps), line.scales(timesteps)
    prediction = FLOW.target(LATENTS, NOISE, *scales)
    assert torch.allclose(FLOW.denoised(noisy, prediction, *scales), LATENTS, atol=1e-6)


def test_sampler_follows_a_right_prediction_from_noise_to_the_latents() -> None:
    sampler = FlowMatchEulerDiscreteScheduler()
    sampler.set_timesteps(5)
    latents = NOISE
    for timestep in sampler.timesteps:
        prediction = FLOW.target(LATENTS, NOISE, *StraightLine().scales(timestep.repeat(3)))
        latents = sampler.step(prediction, timestep, latents).prev_sample
    assert torch.allclose(latents, LATENTS, atol=1e-5)


@pytest.mark.parametrize("name", ["epsilon", "v_prediction"])
def test_denoised_is_what_the_sampler_takes_it_for(name: str) -> None:
    config = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False}
    sampler = DDIMScheduler(**config, prediction_type=name)
    sampler.set_timesteps(10)
    timestep = sampler.timesteps[4]
    scales = NoiseSchedule.of(sampler).scales(timestep[None])
    denoised = PARAMETERIZATIONS[name].denoised(LATENTS, NOISE, *scales)
    expected = sampler.step(NOISE, timestep, LATENTS).pred_original_sample
    assert torch.allclose(denoised, expected, atol=1e-4)


def test_loss_of_each_sample_is_its_mean_squared_error(noise_scheduler: DDPMScheduler) -> None:
    scales = NoiseSchedule.of(noise_scheduler).scales(TIMESTEPS)
    losses = PARAMETERIZATIONS["epsilon"].losses(NOISE + 2, LATENTS, NOISE, scales)
    assert torch.allclose(losses, torch.full((3,), 4.0))
