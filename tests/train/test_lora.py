"""LoRA adapters: fine-tuned for each family, and distilled; loaded by the engine and by diffusers."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from tiny_pipelines import TINY_FAMILIES, stable_diffusion

from darkroom_engine import Engine, Request
from darkroom_engine.quiet import quiet
from darkroom_train.adapter import FILE_NAME
from darkroom_train.cli import main
from darkroom_train.errors import AdapterError, CheckpointError, FolderError, ModelUnfit, PictureError
from darkroom_train.export import export_model
from darkroom_train.folder import read_folder
from darkroom_train.group import Group
from darkroom_train.lora import LoraRecipe, LoraTraining, fine_tune, forward_process_of, open_model
from darkroom_train.recipe import read_recipe
from darkroom_train.training import LOG
from darkroom_train.workshop import Conditions, Workshop

# diffusers hands tensors to numpy the way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

Picture = npt.NDArray[np.uint8]
SIZE = 32
CAPTIONS = ("a red field", "a blue field", "a green field", "a white field")
ALONE = Conditions(Group())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of one color each."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for number, caption in enumerate(CAPTIONS):
        color = [(220, 30, 30), (30, 30, 220), (30, 200, 30), (240, 240, 240)][number]
        Image.new("RGB", (48, 40), color).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module", params=["sd", "sdxl", "flux-dev"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline of each family with random weights."""
    folder = tmp_path_factory.mktemp("checkpoint") / str(request.param)
    with quiet():
        TINY_FAMILIES[request.param].build().save_pretrained(folder)
    return folder


@pytest.fixture
def sd_checkpoint(tmp_path: Path) -> Path:
    with quiet():
        TINY_FAMILIES["sd"].build().save_pretrained(tmp_path / "sd")
    return tmp_path / "sd"


def recipe_for(checkpoint: Path, pictures: Path, **fields: Any) -> LoraRecipe:
    defaults = {
        "model": str(checkpoint),
        "folder": str(pictures),
        "resolution": SIZE,
        "steps": 4,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "log_steps": 1,
        "sample_steps": 2,
    }
    return LoraRecipe(**(defaults | fields))


def training_for(recipe: LoraRecipe) -> LoraTraining:
    reading = read_folder(Path(recipe.folder), recipe.resolution, at_least=1)
    return LoraTraining(
        recipe,
        model=open_model(recipe, torch.device("cpu")),
        pictures=torch.stack([torch.from_numpy(picture) for picture in reading.pictures]),
        captions=reading.captions,
        group=Group(),
    )


def draw(checkpoint: Path, adapter: Path | None) -> Picture:
    """Draw with the engine."""
    engine = Engine("cpu")
    engine.load("model", source=str(checkpoint))
    if adapter:
        engine.load_lora("model", "own", source=str(adapter))
    handle = engine.submit(
        Request(
            model="model",
            prompt=CAPTIONS[0],
            width=SIZE,
            height=SIZE,
            num_inference_steps=3,
            guidance_scale=3.0,
            sampler="euler",
            seed=3,
            loras=(("own", 1.0),) if adapter else (),
        )
    )
    while engine.step():
        pass
    return handle.result(0).image


def draw_with_diffusers(checkpoint: Path, adapter: Path) -> Picture:
    pipeline = DiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipeline.load_lora_weights(adapter)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        CAPTIONS[0],
        width=SIZE,
        height=SIZE,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(3),
    )
    return np.asarray(drawn.images[0])


def files_of(folder: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_trained_on_is_told_better_from_noise_and_the_checkpoint_stays(
    checkpoint: Path, pictures: Path
) -> None:
    training = training_for(recipe_for(checkpoint, pictures, batch_size=4))
    frozen = {name: weight.clone() for name, weight in training.network.named_parameters() if not weight.requires_grad}
    before = training.report(0)["fixed_noise_loss"]
    for number in range(12):
        training.step(number, progress=0, learning_rate=1e-2)
    assert training.report(12)["fixed_noise_loss"] < 0.9 * before
    weights = dict(training.network.named_parameters())
    assert len(frozen) > 10
    assert all(torch.equal(weight, weights[name]) for name, weight in frozen.items())


def test_the_adapter_changes_the_picture_alike_in_the_engine_and_in_diffusers(
    checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    untouched = files_of(checkpoint)
    recipe = recipe_for(checkpoint, pictures, alpha=4, rank=2, learning_rate=5e-2)
    assert fine_tune(recipe, tmp_path, ALONE)
    assert files_of(checkpoint) == untouched
    plain, tuned = draw(checkpoint, None), draw(checkpoint, tmp_path)
    assert np.abs(plain.astype(int) - tuned).mean() > 1
    # 2: rounding to 8 bits, after float32 sums of another order.
    assert np.abs(tuned.astype(int) - draw_with_diffusers(checkpoint, tmp_path / FILE_NAME)).max() <= 2
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-00000004.png"]
    assert len((tmp_path / LOG).read_text().splitlines()) == 5


def test_stopped_and_resumed_is_to_the_bit_the_same(sd_checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = recipe_for(sd_checkpoint, pictures)
    assert fine_tune(recipe, tmp_path / "whole", ALONE)
    parts = tmp_path / "parts"
    for _ in range(3):
        assert not fine_tune(recipe, parts, replace(ALONE, minutes=0.0))
    assert fine_tune(recipe, parts, ALONE)
    found, expected = load_file(parts / FILE_NAME), load_file(tmp_path / "whole" / FILE_NAME)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_another_setting_is_refused_when_going_on(sd_checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = recipe_for(sd_checkpoint, pictures)
    assert not fine_tune(recipe, tmp_path / "out", replace(ALONE, minutes=0.0))
    with pytest.raises(CheckpointError, match="differs in rank"):
        fine_tune(replace(recipe, rank=4), tmp_path / "out", ALONE)


def test_batches_gathered_for_a_step_are_one_gradient(sd_checkpoint: Path, pictures: Path) -> None:
    training = training_for(recipe_for(sd_checkpoint, pictures, batch_size=1, gradient_accumulation=3))
    generator = Group().generator(1, 0)
    losses = torch.stack([training.batch_loss(generator) for _ in range(3)])
    trained = [weight for weight in training.network.parameters() if weight.requires_grad]
    expected = torch.cat([part.flatten() for part in torch.autograd.grad(losses.mean(), trained)])
    step = training.step(0, progress=0, learning_rate=1e-2)
    assert float(step["loss"]) == pytest.approx(float(losses.detach().mean()))
    states = training.state_dict()["optimizer"]["state"].values()
    # The first average of gradients is the gradient itself, but for its length.
    first_average = torch.cat([state["exp_avg"].flatten() for state in states])
    assert torch.nn.functional.cosine_similarity(first_average, expected, dim=0) > 0.9999


@pytest.mark.parametrize(
    ("build", "prediction", "left"),
    [
        (TINY_FAMILIES["flux-dev"].build, "flow", 0.5),
        (TINY_FAMILIES["sdxl"].build, "epsilon", 0.5263),
        (lambda: stable_diffusion(prediction_type="v_prediction"), "v_prediction", 0.5263),
    ],
)
def test_loss_is_the_one_that_the_model_was_made_by(
    build: Callable[[], DiffusionPipeline], prediction: str, left: float, pictures: Path, tmp_path: Path
) -> None:
    with quiet():
        build().save_pretrained(tmp_path)
    model = open_model(recipe_for(tmp_path, pictures), torch.device("cpu"))
    process, found = forward_process_of(model, str(tmp_path), torch.device("cpu"))
    assert found == prediction
    # What is left of the picture halfway: of the schedule of Stable Diffusion, the square root of 0.277.
    assert float(process.scales(torch.tensor([500]))[0]) == pytest.approx(left, abs=1e-3)


def test_bad_folders_and_models_are_refused(sd_checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = recipe_for(sd_checkpoint, pictures)
    with pytest.raises(FolderError, match=r"has no metadata\.jsonl"):
        fine_tune(replace(recipe, folder=str(tmp_path)), tmp_path / "out", ALONE)
    with pytest.raises(PictureError, match="smaller than the 64 pixels"):
        fine_tune(replace(recipe, resolution=64), tmp_path / "out", ALONE)
    with pytest.raises(ModelUnfit, match="multiples of 2"):
        open_model(replace(recipe, resolution=33), torch.device("cpu"))
    with pytest.raises(AdapterError, match="no module of the network is called nothing"):
        fine_tune(replace(recipe, target_modules=("nothing",)), tmp_path / "out", ALONE)


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (TINY_FAMILIES["sd3"].build, "only sd, sdxl and flux"),
        (lambda: stable_diffusion(in_channels=9), "for inpainting"),
        (lambda: stable_diffusion(prediction_type="sample"), "predicts, sample, has no loss here"),
    ],
)
def test_other_models_are_refused(
    build: Callable[[], DiffusionPipeline], problem: str, pictures: Path, tmp_path: Path
) -> None:
    with quiet():
        build().save_pretrained(tmp_path)
    with pytest.raises(ModelUnfit, match=problem):
        training_for(recipe_for(tmp_path, pictures))


def test_command_line_leaves_an_adapter(sd_checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    words = ["--model", sd_checkpoint, "--pictures", pictures, "--output", tmp_path / "out"]
    words += ["--resolution", 32, "--steps", 1, "--rank", 2, "--device", "cpu"]
    result = CliRunner().invoke(main, ["lora", *map(str, words)])
    assert result.exit_code == 0, result.output
    assert f"the adapter is in {tmp_path / 'out'}" in result.output
    assert json.loads((tmp_path / "out" / "lora.json").read_text())["alpha"] == 2


@pytest.fixture(scope="module")
def distilled(workshop: Workshop, recipe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The small recipe with its distillation as a LoRA."""
    folder = tmp_path_factory.mktemp("distilled")
    shutil.copytree(workshop.folder, folder / "out", ignore=shutil.ignore_patterns("distill"))
    recipe = folder / "lora.toml"
    recipe.write_text(recipe_path.read_text().replace("[distill]", "[distill]\nlora_rank = 2\nwarmup_steps = 0"))
    opened = Workshop(read_recipe(recipe), recipe, folder / "out", Conditions(Group()))
    assert opened.distill()
    return opened


def test_distilled_adapter_makes_of_the_denoiser_what_was_left(distilled: Workshop, tmp_path: Path) -> None:
    base = distilled.pipeline("denoiser")
    base.load_lora_weights(distilled.folder / "distill" / "lora")
    base.unet.fuse_lora()
    base.unet.unload_lora()
    expected, plain = (distilled.load_denoiser(stage).state_dict() for stage in ("distill", "denoiser"))
    found = base.unet.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    assert any(not torch.equal(plain[name], expected[name]) for name in expected)


def test_engine_loads_the_distilled_adapter(distilled: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    export_model(distilled.pipeline("denoiser"), folder)
    engine = Engine("cpu")
    engine.load("small", source=str(folder))
    engine.load_lora("small", "few-steps", source=str(distilled.folder / "distill" / "lora"))


def test_distillation_of_an_adapter_goes_on_where_it_was(distilled: Workshop) -> None:
    path = distilled.folder / "distill" / "lora" / FILE_NAME
    before = load_file(path)
    assert distilled.distill()
    assert all(torch.equal(weight, before[name]) for name, weight in load_file(path).items())
