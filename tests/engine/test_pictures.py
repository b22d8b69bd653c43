"""Pictures: those of diffusers' own pipeline, whatever else is in flight."""

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from darkroom_engine import Engine, Handle, Output, Request, Tally
from darkroom_engine.samplers import DISCRETE_SAMPLERS, make_noise_scheduler

# What each name means, said once more and independently of the engine.
CLASSES: dict[str, Any] = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "deis": diffusers.DEISMultistepScheduler,
    "dpm2": diffusers.KDPM2DiscreteScheduler,
    "dpm2_a": diffusers.KDPM2AncestralDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "dpmpp_2m_sde": diffusers.DPMSolverMultistepScheduler,
    "dpmpp_2s": diffusers.DPMSolverSinglestepScheduler,
    "dpmpp_3m_sde": diffusers.DPMSolverMultistepScheduler,
    "dpmpp_sde": diffusers.DPMSolverSDEScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "lcm": diffusers.LCMScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
    "pndm": diffusers.PNDMScheduler,
    "sa_solver": diffusers.SASolverScheduler,
    "tcd": diffusers.TCDScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"},
    "dpmpp_2s": {"lower_order_final": True},
    "dpmpp_3m_sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
    "dpmpp_sde": {"noise_sampler_seed": 1},
    "pndm": {"skip_prk_steps": True},
}
SPACED = {name for name in CLASSES if name not in {"ddim", "ddpm", "euler_a", "lcm", "pndm", "sa_solver", "tcd"}}
SPACINGS = ("karras", "exponential", "beta")
NAMES = sorted(CLASSES) + sorted(f"{name}_{spacing}" for name in SPACED for spacing in SPACINGS)


def noise_scheduler(sampler: str, config: Any) -> Any:
    name, spacing = sampler, None
    if sampler not in CLASSES:
        name, _, spacing = sampler.rpartition("_")
    options = OPTIONS.get(name, {}) | ({f"use_{spacing}_sigmas": True} if spacing else {})
    return CLASSES[name].from_config(config, **options)


# Row counts change the order of float32 sums: about 1e-6 of the range was measured, and errors grow over the steps.
TOLERANCE = 1e-4

# diffusers' own loop hands tensors to numpy the way that numpy 2 deprecates.
from_diffusers = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@pytest.fixture
def reference(pipeline: diffusers.StableDiffusionPipeline) -> Callable[[Request], Any]:
    """Develops a request with diffusers' own pipeline and loop."""

    def develop(request: Request) -> Any:
        own = diffusers.StableDiffusionPipeline(
            **(pipeline.components | {"scheduler": noise_scheduler(request.sampler, pipeline.scheduler.config)}),
            requires_safety_checker=False,
        )
        own.set_progress_bar_config(disable=True)
        pictures = own(
            request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            generator=Generator().manual_seed(request.seed),
        )
        return np.asarray(pictures.images[0])

    return develop


def assert_same(image: Any, expected: Any) -> None:
    """The step tables round where the objects do not, by 1e-6 of the range: now and then that is one gray level."""
    difference = np.abs(image.astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.01


def test_every_sampler_is_compared_with_diffusers() -> None:
    assert set(DISCRETE_SAMPLERS) == set(NAMES)


@from_diffusers
@pytest.mark.filterwarnings("ignore:Should have ta>=t0:UserWarning")  # torchsde, of a difference in the last digit
@pytest.mark.parametrize("sampler", [*sorted(CLASSES), "dpmpp_2m_karras"])
def test_a_picture_alone_is_that_of_diffusers(
    engine: Engine,
    request_for: Callable[..., Request],
    develop: Callable[..., list[Handle]],
    reference: Callable[[Request], Any],
    sampler: str,
) -> None:
    request = request_for(sampler=sampler, num_inference_steps=5, negative_prompt="blue", width=96)
    [handle] = develop(engine, request)
    assert_same(handle.result(0).image, reference(request))


@from_diffusers
@pytest.mark.parametrize("sampler", NAMES)
def test_the_sigmas_of_a_sampler_are_those_of_diffusers(
    sampler: str, pipeline: diffusers.StableDiffusionPipeline
) -> None:
    expected = noise_scheduler(sampler, pipeline.scheduler.config)
    expected.set_timesteps(7)
    found = make_noise_scheduler(sampler, pipeline.scheduler.config, 7, seed=1, timing={}, num_skipped=0)
    assert type(found) is type(expected)
    for table in ("timesteps", "sigmas"):
        assert torch.equal(getattr(found, table, torch.empty(0)), getattr(expected, table, torch.empty(0)))


@from_diffusers
@pytest.mark.parametrize("sampler", ["euler", "euler_a", "heun"])
def test_timesteps_between_the_integers_are_those_of_diffusers(
    make_engine: Callable[..., Engine],
    model: Any,
    request_for: Callable[..., Request],
    develop: Callable[..., list[Handle]],
    reference: Callable[[Request], Any],
    pipeline: diffusers.StableDiffusionPipeline,
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
) -> None:
    config = dict(pipeline.scheduler.config) | {"timestep_spacing": "linspace"}
    monkeypatch.setattr(pipeline, "scheduler", diffusers.DDIMScheduler.from_config(config))
    request = request_for(sampler=sampler, num_inference_steps=5)
    [handle] = develop(make_engine(model=type(model)(pipeline)), request)
    assert_same(handle.result(0).image, reference(request))


@from_diffusers
@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 7.5])
def test_guidance_is_that_of_diffusers(
    engine: Engine,
    request_for: Callable[..., Request],
    develop: Callable[..., list[Handle]],
    reference: Callable[[Request], Any],
    guidance_scale: float,
) -> None:
    request = request_for(guidance_scale=guidance_scale)
    [handle] = develop(engine, request)
    assert_same(handle.result(0).image, reference(request))


def test_a_picture_is_the_same_alone_and_in_a_mixed_batch(
    make_engine: Callable[..., Engine],
    model: Any,
    request_for: Callable[..., Request],
    step_all: Callable[..., dict[int, Tensor]],
) -> None:
    mixed = [
        request_for(seed=number, sampler=sampler, num_inference_steps=steps, guidance_scale=guidance, prompt=sampler)
        for number, (sampler, steps, guidance) in enumerate(
            [
                ("euler", 5, 3.0),
                ("euler_a", 9, 1.0),
                ("ddim", 3, 7.5),
                ("dpmpp_2m_karras", 7, 3.0),
                ("heun", 4, 1.0),
                ("pndm", 6, 2.0),
                ("lcm", 4, 1.0),
                ("unipc", 8, 5.0),
                ("dpmpp_2m_sde_karras", 5, 3.0),
                ("dpmpp_sde", 3, 3.0),
            ]
        )
    ]
    together = step_all(make_engine(max_rows=32), *mixed)
    assert max(model.rows) >= 6
    for request in mixed:
        alone = step_all(make_engine(), request)[request.seed]
        difference = (together[request.seed] - alone).abs().max() / alone.abs().max()
        assert difference < TOLERANCE, request.sampler


def test_requests_share_forwards(
    engine: Engine, model: Any, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    develop(
        engine,
        request_for(num_inference_steps=6),
        request_for(num_inference_steps=4, guidance_scale=1.0),
        request_for(num_inference_steps=2, sampler="ddim"),
    )
    assert model.rows == [5, 5, 3, 3, 2, 2]
    assert engine.tally == Tally(num_forwards=6, num_rows=20)


def test_sizes_do_not_share_forwards_and_both_end(
    engine: Engine,
    model: Any,
    request_for: Callable[..., Request],
    develop: Callable[..., list[Handle]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    small, large = develop(engine, request_for(), request_for(width=96, height=72))
    assert small.result(0).image.shape == (64, 64, 3)
    assert large.result(0).image.shape == (72, 96, 3)
    assert model.rows == [2] * 8
    assert not caplog.records  # no forward was tried in vain


def test_a_parked_request_ends_in_the_same_picture(
    make_engine: Callable[..., Engine], request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    bulk = request_for(seed=5, priority=1, sampler="dpmpp_2m")
    engine = make_engine(max_rows=2)
    parked = engine.submit(bulk)
    engine.step()
    develop(engine, request_for(num_inference_steps=6))
    [undisturbed] = develop(make_engine(), bulk)
    assert np.array_equal(parked.result(0).image, undisturbed.result(0).image)


def test_seeds_and_prompts_and_negative_prompts_change_the_picture(
    engine: Engine, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    changes: list[dict[str, Any]] = [{}, {"seed": 2}, {"prompt": "two boats"}, {"negative_prompt": "red"}]
    pictures = [handle.result(0).image for handle in develop(engine, *(request_for(**change) for change in changes))]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_the_same_request_gives_the_same_picture_again(
    make_engine: Callable[..., Engine], request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    for sampler in ("euler_a", "lcm"):
        outputs: list[Output] = []
        for _ in range(2):
            [handle] = develop(make_engine(), request_for(sampler=sampler, seed=2**32 - 1))
            outputs.append(handle.result(0))
        assert np.array_equal(outputs[0].image, outputs[1].image)


@pytest.mark.filterwarnings("ignore:Should have ta>=t0:UserWarning")
def test_the_global_generator_is_never_used(
    engine: Engine, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    before = torch.get_rng_state()
    develop(engine, *(request_for(sampler=sampler, num_inference_steps=2) for sampler in CLASSES))
    engine.load("other", source="seeded:1")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_output_says_how_it_was_made(
    engine: Engine, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    [handle] = develop(engine, request_for(sampler="heun", seed=9, num_inference_steps=4))
    output = handle.result(0)
    assert (output.seed, output.sampler, output.num_steps) == (9, "heun", 7)
    assert output.image.dtype == np.uint8
    assert set(output.timings) == {"wait", "encode", "denoise", "decode"}
    assert all(seconds >= 0 for seconds in output.timings.values())
    assert output.fingerprint == engine.device_info.fingerprint
    assert "torch" in output.fingerprint


def test_a_prompt_of_any_length_and_script_is_developed(
    engine: Engine, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    prompts = ["", "\x00", "山の上の月", "🦊" * 500, "x" * 10_000]
    for handle in develop(engine, *(request_for(prompt=prompt, num_inference_steps=1) for prompt in prompts)):
        assert handle.result(0).image.shape == (64, 64, 3)
