"""Repainting a part of a picture: with UNets made for it, and with those that are not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers import DiffusionPipeline
from PIL import Image
from test_conformance import TOLERANCE, assert_same_picture
from tiny_pipelines import parts_for, stable_diffusion, stable_diffusion_xl
from torch import Generator, Tensor

from darkroom_engine import Engine, Handle, Request
from darkroom_engine.families import seeded
from darkroom_engine.quiet import quiet

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD, SDXL = "StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"
PIPELINES: dict[str, tuple[Callable[[], DiffusionPipeline], str]] = {
    "sd": (stable_diffusion, SD),
    "sd-inpainting": (lambda: stable_diffusion(SD, in_channels=9), SD),
    "seeded": (lambda: seeded.build(7), SD),  # its autoencoder draws nothing
    "sdxl": (stable_diffusion_xl, SDXL),
    "sdxl-inpainting": (lambda: stable_diffusion_xl(SDXL, in_channels=9), SDXL),
}


@pytest.fixture(scope="module", params=PIPELINES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reference(name: str) -> DiffusionPipeline:
    """The pipeline as diffusers' inpainting class has it."""
    build, class_name = PIPELINES[name]
    pipeline = getattr(diffusers, class_name)(**parts_for(class_name, build()))
    pipeline.set_progress_bar_config(disable=True)
    # As a folder has it: from_config() leaves out what a class in memory was not told.
    config = {option: value for option, value in pipeline.scheduler.config.items() if not option.startswith("_")}
    pipeline.scheduler = type(pipeline.scheduler).from_config(config)
    return pipeline


@pytest.fixture(scope="module")
def engine(name: str, reference: DiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder: Path = tmp_path_factory.mktemp("inpainting") / name
    with quiet():
        reference.save_pretrained(folder)
    engine = Engine("cpu", 32, num_threads=1)
    engine.load(name, source=str(folder))
    yield engine
    engine.stop()


@pytest.fixture
def photograph() -> "np.ndarray[Any, Any]":
    return np.random.default_rng(5).integers(0, 256, (32, 64, 3), dtype=np.uint8)


@pytest.fixture
def mask() -> "np.ndarray[Any, Any]":
    """Covers the right half, with a soft edge."""
    return np.tile(np.linspace(0, 255, 64).astype(np.uint8), (32, 1))


@pytest.fixture
def ask(name: str) -> Callable[..., Request]:
    def build(**fields: Any) -> Request:
        defaults: dict[str, Any] = {
            "model": name,
            "prompt": "a red house",
            "negative_prompt": "blue",
            "width": 64,
            "height": 32,
            "num_inference_steps": 4,
            "guidance_scale": 3.0,
            "sampler": "euler",
            "seed": 3,
        }
        return Request(**(defaults | fields))

    return build


NOISE_SCHEDULERS: dict[str, Callable[..., Any]] = {
    "ddim": diffusers.DDIMScheduler.from_config,
    "euler": diffusers.EulerDiscreteScheduler.from_config,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler.from_config,
    "heun": diffusers.HeunDiscreteScheduler.from_config,
    "lcm": diffusers.LCMScheduler.from_config,
    "unipc": diffusers.UniPCMultistepScheduler.from_config,
}


def inpainted(reference: DiffusionPipeline, request: Request) -> "np.ndarray[Any, Any]":
    """Develop a request with diffusers' own pipeline; everything of a gray picture, where it has none."""
    size = (request.height, request.width)
    image = np.full((*size, 3), 127, np.uint8) if request.image is None else request.image
    mask = np.full(size, 255, np.uint8) if request.mask is None else request.mask
    noise_scheduler = NOISE_SCHEDULERS[request.sampler](reference.scheduler.config)
    pipeline = type(reference)(**parts_for(type(reference).__name__, reference) | {"scheduler": noise_scheduler})
    pipeline.set_progress_bar_config(disable=True)
    return np.asarray(
        pipeline(
            request.prompt,
            negative_prompt=request.negative_prompt,
            image=Image.fromarray(image),
            mask_image=Image.fromarray(mask),
            width=request.width,
            height=request.height,
            strength=request.strength,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            generator=Generator().manual_seed(request.seed),
        ).images[0]
    )


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("sampler", NOISE_SCHEDULERS)
def test_a_repainted_picture_is_that_of_diffusers(
    engine: Engine,
    reference: DiffusionPipeline,
    ask: Callable[..., Request],
    develop: Callable[..., list[Handle]],
    photograph: Any,
    mask: Any,
    sampler: str,
    strength: float,
) -> None:
    request = ask(image=photograph, mask=mask, strength=strength, sampler=sampler)
    [handle] = develop(engine, request)
    assert_same_picture(handle.result(0).image, inpainted(reference, request))


@pytest.mark.parametrize("name", ["sd", "seeded", "sdxl"], indirect=True)  # others keep the rest only about as it was
def test_what_is_kept_stays_the_same_whatever_is_asked_for(
    engine: Engine,
    ask: Callable[..., Request],
    step_all: Callable[..., dict[int, Tensor]],
    photograph: Any,
    mask: Any,
) -> None:
    one, other = (
        step_all(engine, ask(image=photograph, mask=mask, prompt=prompt, num_inference_steps=steps))[3]
        for prompt, steps in (("a red house", 4), ("two boats", 6))
    )
    left, right = np.s_[..., : one.shape[-1] // 4], np.s_[..., -1:]
    assert one[left].equal(other[left])
    assert not one[right].equal(other[right])


def test_requests_with_and_without_a_mask_share_forwards(
    engine: Engine,
    ask: Callable[..., Request],
    step_all: Callable[..., dict[int, Tensor]],
    photograph: Any,
    mask: Any,
) -> None:
    mixed = [
        ask(seed=1, image=photograph, mask=mask, strength=0.7),
        ask(seed=2, guidance_scale=1.0),
        ask(seed=3, image=photograph, strength=0.5),
        ask(seed=4, image=photograph, mask=mask, sampler="euler_a", guidance_scale=1.0),
    ]
    assert len({engine._runner.prepare(request).batch_key for request in mixed}) == 1
    together = step_all(engine, *mixed)
    for request in mixed:
        alone = step_all(engine, request)[request.seed]
        difference = (together[request.seed] - alone).abs().max() / alone.abs().max()
        assert difference < TOLERANCE, request


@pytest.mark.parametrize("name", ["sd-inpainting", "sdxl-inpainting"], indirect=True)
def test_a_unet_made_for_inpainting_develops_without_a_picture_too(
    engine: Engine,
    reference: DiffusionPipeline,
    ask: Callable[..., Request],
    develop: Callable[..., list[Handle]],
    photograph: Any,
) -> None:
    for request in (ask(), ask(image=photograph, strength=0.5)):
        [handle] = develop(engine, request)
        assert_same_picture(handle.result(0).image, inpainted(reference, request))
