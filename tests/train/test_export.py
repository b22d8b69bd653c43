"""The exported folder: loads in the engine and in diffusers, and is what its manifest says."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from transformers import CLIPTextModel

from darkroom.catalog import Catalog
from darkroom.config import load_settings
from darkroom_engine import Engine, Request
from darkroom_train.card import model_card
from darkroom_train.export import MANIFEST, MAX_FILE_BYTES, check_manifest, export_model, write_card, write_offer
from darkroom_train.workshop import Workshop, state_of


@pytest.fixture(scope="module")
def model_folder(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    export_model(workshop.pipeline(), folder)
    card = model_card(workshop.recipe, workshop.recipe_path, state=state_of(workshop), evaluation=None)
    write_card(folder, card)
    return folder


def test_engine_and_diffusers_draw_the_same_picture_from_it(model_folder: Path) -> None:
    engine = Engine("cpu")
    engine.load("small", source=str(model_folder))
    handle = engine.submit(
        Request(
            model="small",
            prompt="a red star",
            width=32,
            height=32,
            num_inference_steps=3,
            guidance_scale=3.0,
            sampler="ddim",
            seed=5,
        )
    )
    while engine.step():
        pass
    pipeline = StableDiffusionPipeline.from_pretrained(model_folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a red star",
        width=32,
        height=32,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    assert np.abs(handle.result().image / 255 - expected).max() < 2 / 255


def test_diffusers_warns_of_nothing_but_the_kind_of_autoencoder(
    model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    try:
        StableDiffusionPipeline.from_pretrained(model_folder, dtype=torch.float32)
    finally:
        for logger in loggers:
            logger.removeHandler(caplog.handler)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert all(warning.startswith("Expected types for vae") for warning in warnings), warnings


def test_weights_are_in_half_precision_and_no_file_is_large(model_folder: Path) -> None:
    for path in model_folder.rglob("*.safetensors"):
        assert path.stat().st_size <= MAX_FILE_BYTES
        with safe_open(path, framework="pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118


def test_text_encoder_is_the_trained_one_under_the_names_that_every_version_reads(
    workshop: Workshop, model_folder: Path
) -> None:
    path = model_folder / "text_encoder"
    with safe_open(path / "model.safetensors", framework="pt") as weights:
        assert all(name.startswith("text_model.") for name in weights.keys())  # noqa: SIM118
    loaded, loading = CLIPTextModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not loading["missing_keys"]
    tokens = torch.tensor([[1, 2, 3]])
    # 1e-2: the exported weights are in half precision.
    assert torch.allclose(loaded(tokens)[0], workshop.load_text_encoder()(tokens)[0], atol=1e-2)


@pytest.mark.parametrize(("stage", "sampler"), [("denoiser", "dpmpp_2m"), ("distill", "lcm")])
@pytest.mark.parametrize("prediction", ["v_prediction", "flow"])
def test_catalog_offers_it_as_it_draws_best(
    workshop: Workshop, tmp_path: Path, stage: str, sampler: str, prediction: str
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    recipe = replace(workshop.recipe, denoiser=replace(workshop.recipe.denoiser, prediction=prediction))
    write_offer(tmp_path / "model", recipe, workshop.sampling_of(stage), example_prompts=['a "red" star'])
    entry = Catalog.load(load_settings(models_dir=tmp_path)).get("model")
    assert (entry.defaults.width, entry.defaults.sampler) == (32, sampler)
    assert entry.example_prompts == ('a "red" star',)
    assert ("ddim" in entry.limits.samplers) == (prediction == "v_prediction")


def test_manifest_finds_a_changed_file(model_folder: Path) -> None:
    assert check_manifest(model_folder) == []
    path = model_folder / "scheduler" / "scheduler_config.json"
    before = path.read_bytes()
    path.write_bytes(before + b" ")
    assert check_manifest(model_folder) == ["scheduler/scheduler_config.json"]
    path.write_bytes(before)


def test_manifest_names_every_other_file(model_folder: Path) -> None:
    names = {path.relative_to(model_folder).as_posix() for path in model_folder.rglob("*") if path.is_file()}
    assert set(json.loads((model_folder / MANIFEST).read_text())) == names - {MANIFEST}


def test_card_says_what_was_trained_and_that_it_was_not_scored(model_folder: Path) -> None:
    card = (model_folder / "README.md").read_text()
    assert "256 scenes drawn by code from seed 3" in card
    assert "Withheld from training: blue star" in card
    assert "| denoiser | 4 |" in card
    assert "Not evaluated." in card
