"""The samplers of models that were trained by flow matching: each steps as diffusers' own scheduler does."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers import DiffusionPipeline
from tiny_pipelines import TINY_FAMILIES, picture_of, stable_diffusion_3
from torch import Generator

from darkroom_engine import Engine, Handle, InvalidRequest, Request
from darkroom_engine.samplers import FLOW_SAMPLERS

# What each name means, said once more and independently of the engine; the tiny model's shift is 3.
SHIFT = 3.0
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": SHIFT}
NOISE_SCHEDULERS: dict[str, Callable[[], Any]] = {
    "deis": lambda: diffusers.DEISMultistepScheduler(**FLOW),
    "dpmpp_2m": lambda: diffusers.DPMSolverMultistepScheduler(**FLOW),
    "dpmpp_2m_sde": lambda: diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **FLOW),
    "euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    "heun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=SHIFT),
    "lcm": lambda: diffusers.FlowMatchLCMScheduler(shift=SHIFT),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**FLOW),
}
STOCHASTIC = ("dpmpp_2m_sde", "lcm")

# diffusers' DEIS and DPM hand tensors to numpy the way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def ask(model: str, **fields: Any) -> Request:
    defaults: dict[str, Any] = {
        "model": model,
        "prompt": "a red house",
        "width": 32,
        "height": 32,
        "num_inference_steps": 4,
        "guidance_scale": 4.0,
        "sampler": "euler",
        "seed": 3,
    }
    return Request(**(defaults | fields))


def test_every_flow_sampler_is_compared_with_diffusers() -> None:
    assert set(FLOW_SAMPLERS) == set(NOISE_SCHEDULERS)


@pytest.mark.parametrize("sampler", sorted(NOISE_SCHEDULERS))
def test_a_flow_sampler_steps_as_in_diffusers(
    engines: Callable[[str], Engine],
    pipelines: Callable[[str], DiffusionPipeline],
    develop: Callable[..., list[Handle]],
    sampler: str,
) -> None:
    request = ask("sd3", sampler=sampler)
    generator = Generator().manual_seed(request.seed)
    noise_scheduler = NOISE_SCHEDULERS[sampler]()
    if sampler in STOCHASTIC:
        # The pipeline would leave the sampler to the global generator.
        noise_scheduler.step = partial(noise_scheduler.step, generator=generator)
    own = diffusers.StableDiffusion3Pipeline(**(pipelines("sd3").components | {"scheduler": noise_scheduler}))
    theirs = picture_of(own, TINY_FAMILIES["sd3"], request, generator=generator)
    [handle] = develop(engines("sd3"), request)
    # One level: the vectorized step multiplies out what diffusers adds up.
    assert np.abs(handle.result(0).image.astype(int) - theirs.astype(int)).max() <= 1


@pytest.mark.parametrize("sampler", sorted(set(NOISE_SCHEDULERS) - {"lcm"}))
def test_a_shift_that_depends_on_the_size_reaches_every_sampler(engines: Callable[[str], Engine], sampler: str) -> None:
    runner = engines("flux-dev")._runner
    small, large = (
        runner.prepare(ask("flux-dev", sampler=sampler, width=size, height=size, num_inference_steps=8))
        for size in (64, 256)
    )
    # The larger the picture, the longer the walk stays among much noise: the first half ends at a larger sigma.
    middle = len(small.timesteps) // 2
    assert float(large.timesteps[middle]) > 1.1 * float(small.timesteps[middle])


def test_a_shift_is_known_by_either_of_its_names(engines: Callable[[str], Engine]) -> None:
    development = engines("sana")._runner.prepare(ask("sana"))  # whose config says flow_shift
    noise_scheduler = NOISE_SCHEDULERS["euler"]()
    noise_scheduler.set_timesteps(4)
    assert development.timesteps.equal(noise_scheduler.timesteps)


def test_a_single_step_is_refused_where_the_last_sigma_is_the_models_own(engines: Callable[[str], Engine]) -> None:
    with pytest.raises(InvalidRequest, match="num_inference_steps is 1, and must be at least 2"):
        engines("qwen-image").submit(ask("qwen-image", num_inference_steps=1))


def test_a_side_longer_than_the_table_of_positions_is_refused(engines: Callable[[str], Engine]) -> None:
    with pytest.raises(InvalidRequest, match="width is 132, and must be at most 128"):
        engines("sd3").submit(ask("sd3", width=132))


ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@pytest.mark.parametrize("absent", [ENCODERS[2:], ENCODERS[:1], ENCODERS[1:2], ENCODERS[:2], ENCODERS[1:], ENCODERS])
def test_stable_diffusion_3_does_without_any_of_its_text_encoders(
    develop: Callable[..., list[Handle]], tmp_path: Path, absent: tuple[str, ...]
) -> None:
    without = stable_diffusion_3(
        **dict.fromkeys([*absent, *(name.replace("text_encoder", "tokenizer") for name in absent)])
    )
    without.save_pretrained(tmp_path)
    engine = Engine("cpu", num_threads=1)
    engine.load("lean", source=str(tmp_path))
    one, two = develop(engine, ask("lean", prompt="a red house"), ask("lean", prompt="two boats"))
    says_nothing = absent == ENCODERS
    assert np.array_equal(one.result(0).image, two.result(0).image) == says_nothing
