"""Distillation: its formulas against diffusers' own, and a stage that leaves a UNet."""

import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Generator

from darkroom_engine.noising import NoiseSchedule
from darkroom_train.denoiser import build_noise_scheduler
from darkroom_train.distill import boundary_scales, ddim_step
from darkroom_train.workshop import Workshop

NOISY, DENOISED = (torch.randn((2, 4, 2, 2), generator=Generator().manual_seed(seed)) for seed in (1, 2))


def test_boundary_scales_are_those_of_the_sampler() -> None:
    sampler = LCMScheduler()
    timesteps = torch.tensor([0, 19, 999])
    skip, out = boundary_scales(timesteps)
    expected = [sampler.get_scalings_for_boundary_condition_discrete(timestep) for timestep in timesteps]
    assert torch.allclose(skip.flatten(), torch.tensor([float(pair[0]) for pair in expected]))
    assert torch.allclose(out.flatten(), torch.tensor([float(pair[1]) for pair in expected]))


def test_step_along_the_path_is_that_of_the_sampler() -> None:
    sampler: DDIMScheduler = build_noise_scheduler("v_prediction")
    sampler.set_timesteps(50)
    schedule = NoiseSchedule.of(sampler)
    timestep = torch.tensor([599, 599])
    alpha, sigma = schedule.scales(timestep)
    velocity = (alpha * NOISY - DENOISED) / sigma
    expected = sampler.step(velocity, 599, NOISY).prev_sample
    found = ddim_step(schedule, DENOISED, NOISY, timesteps=timestep, earlier=timestep - 20)
    assert torch.allclose(found, expected, atol=1e-4)


def test_distilled_unet_is_left_and_differs_from_its_teacher(workshop: Workshop) -> None:
    assert workshop.distill()
    teacher, student = (workshop.load_denoiser(stage).state_dict() for stage in ("denoiser", "distill"))
    assert any(not torch.equal(teacher[name], student[name]) for name in teacher)
    assert workshop.sampling_of("distill").sampler == "lcm"
