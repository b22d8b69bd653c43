"""Flow matching: a denoiser that learns with it, and a folder from which the engine and diffusers draw alike."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import StableDiffusionPipeline

from darkroom_engine import Engine, Request
from darkroom_engine.families.base import noise_scales
from darkroom_engine.samplers import FLOW_SAMPLERS, make_noise_scheduler
from darkroom_train.denoiser import build_noise_scheduler
from darkroom_train.export import export_model
from darkroom_train.group import Group
from darkroom_train.recipe import read_recipe
from darkroom_train.workshop import Conditions, Workshop

# diffusers hands tensors to numpy the way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

Picture = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def flow_workshop(workshop: Workshop, recipe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The small recipe with another prediction, its earlier stages done."""
    folder = tmp_path_factory.mktemp("flow")
    for stage in ("data", "tokenizer", "autoencoder", "latents", "text-encoder"):
        shutil.copytree(workshop.folder / stage, folder / "out" / stage)
    recipe = folder / "flow.toml"
    recipe.write_text(recipe_path.read_text().replace("[denoiser]", '[denoiser]\nprediction = "flow"'))
    return Workshop(read_recipe(recipe), recipe, folder / "out", Conditions(Group()))


@pytest.fixture(scope="module")
def model_folder(flow_workshop: Workshop) -> Path:
    assert flow_workshop.denoiser()
    export_model(flow_workshop.pipeline(), flow_workshop.folder / "model")
    return flow_workshop.folder / "model"


@pytest.fixture(scope="module")
def draw(model_folder: Path) -> Callable[..., Picture]:
    """Draws with the engine."""
    engine = Engine("cpu")
    engine.load("flow", source=str(model_folder))

    def drawn(**fields: object) -> Picture:
        defaults = {
            "model": "flow",
            "prompt": "a red star",
            "width": 32,
            "height": 32,
            "num_inference_steps": 4,
            "guidance_scale": 3.0,
            "sampler": "unipc",
            "seed": 5,
        }
        handle = engine.submit(Request(**(defaults | fields)))  # type: ignore[arg-type]
        while engine.step():
            pass
        return handle.result(0).image

    return drawn


def test_a_denoiser_learns_with_it(flow_workshop: Workshop) -> None:
    trainee = flow_workshop.denoiser_training()
    before = trainee.report(0)
    for number in range(30):
        trainee.step(number, progress=0, learning_rate=3e-3)
    after = trainee.report(30)
    assert after["held_out_400"] < 0.8 * before["held_out_400"]
    assert after["held_out_800"] < 0.8 * before["held_out_800"]


def test_engine_and_diffusers_draw_the_same_picture_from_it(model_folder: Path, draw: Callable[..., Picture]) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(model_folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a red star",
        width=32,
        height=32,
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    assert np.abs(draw() / 255 - expected).max() < 2 / 255


@pytest.mark.parametrize("sampler", FLOW_SAMPLERS)
def test_every_flow_sampler_draws(draw: Callable[..., Picture], sampler: str) -> None:
    assert draw(sampler=sampler).std() > 0


# Those that draw no noise on their way, with an add_noise() of their own and without.
@pytest.mark.parametrize("sampler", ["euler", "heun", "unipc"])
def test_a_walk_begins_with_a_picture_and_goes_into_one(draw: Callable[..., Picture], sampler: str) -> None:
    drawn = draw(sampler=sampler)
    redrawn = draw(sampler=sampler, image=drawn, strength=0.5, seed=6)
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:, 16:] = 255
    repainted = draw(sampler=sampler, image=drawn, mask=mask, seed=6)
    fresh = draw(sampler=sampler, seed=6).astype(int)

    def distance(other: Picture, width: int = 32) -> float:
        return float(np.abs(drawn[:, :width].astype(int) - other[:, :width]).mean())

    assert 0 < distance(redrawn) < distance(fresh)
    assert distance(repainted, 8) < distance(fresh, 8)


def test_distillation_follows_the_straight_line_too(flow_workshop: Workshop, model_folder: Path) -> None:
    assert flow_workshop.distill()
    assert (flow_workshop.folder / "distill" / "samples").is_dir()


@pytest.mark.parametrize("sampler", ["euler", "heun", "unipc"])
def test_a_picture_is_noised_along_the_straight_line(sampler: str) -> None:
    noise_scheduler = make_noise_scheduler(
        sampler, build_noise_scheduler("flow").config, 4, seed=1, timing={}, num_skipped=0
    )
    [(scale, noise_scale)] = noise_scales(noise_scheduler, [2], torch.float32)
    assert scale + noise_scale == pytest.approx(1.0)
    assert noise_scale == pytest.approx(float(noise_scheduler.sigmas[2]))
