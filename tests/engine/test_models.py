"""Loading: seeded weights, folders, and what is wrong with a folder in one sentence."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from darkroom_engine import Engine, Handle, ModelLoadError, Request
from darkroom_engine.families import seeded

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_a_seed_fixes_the_weights() -> None:
    first, again, other = (seeded.build(seed).unet.conv_in.weight for seed in (3, 3, 4))
    assert first.equal(again)
    assert not first.equal(other)


def test_a_loaded_model_says_what_it_is(engine: Engine) -> None:
    loaded = engine.load("other", source="seeded:3")
    assert (loaded.name, loaded.family, loaded.source) == ("other", "sd", "seeded:3")
    assert loaded.latent_multiple == 8
    assert 4e6 < loaded.num_bytes < 4e7
    assert {"euler", "ddim", "dpmpp_2m"} <= set(loaded.samplers)
    assert engine.models["other"] == loaded


def test_a_lower_dtype_takes_half_the_memory_and_still_develops(
    engine: Engine, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    half = engine.load("half", source="seeded:7", dtype="bfloat16")
    assert half.num_bytes < 0.6 * engine.models["tiny"].num_bytes
    [handle] = develop(engine, request_for(model="half"))
    assert handle.result(0).image.std() > 1


def test_a_saved_model_is_the_same_model(
    engine: Engine, model_folder: Path, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    engine.load("saved", source=str(model_folder))
    pictures = [develop(engine, request_for(model=name))[0].result(0).image for name in ("tiny", "saved")]
    assert np.array_equal(*pictures)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # diffusers' own loading
def test_a_saved_model_loads_in_diffusers(model_folder: Path, pipeline: StableDiffusionPipeline) -> None:
    loaded = StableDiffusionPipeline.from_pretrained(model_folder)
    assert loaded.unet.conv_in.weight.equal(pipeline.unet.conv_in.weight)
    assert loaded.tokenizer(["a fox"]).input_ids == pipeline.tokenizer(["a fox"]).input_ids


def test_loading_prints_nothing(engine: Engine, model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine.load("saved", source=str(model_folder))
    engine.load("other", source="seeded:1", dtype="float16")
    assert capfd.readouterr() == ("", "")


def test_an_outdated_folder_loads_without_a_warning(engine: Engine, model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "old", copy_function=os.link)
    _reconfigure("scheduler/scheduler_config.json", steps_offset=0, clip_sample=True)(tmp_path / "old")
    assert engine.load("old", source=str(tmp_path / "old")).name == "old"


def test_models_with_one_name_do_not_replace_each_other(engine: Engine) -> None:
    with pytest.raises(ModelLoadError, match="a model of that name is loaded already, from seeded:7"):
        engine.load("tiny", source="seeded:8")


def test_models_do_not_share_forwards(
    engine: Engine, model: object, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    engine.load("other", source="seeded:8")
    ours, theirs = develop(engine, request_for(), request_for(model="other"))
    assert not np.array_equal(ours.result(0).image, theirs.result(0).image)


def _edit_index(folder: Path, **parts: object) -> None:
    _rewrite(folder / "model_index.json", json.dumps(json.loads((folder / "model_index.json").read_text()) | parts))


def _rewrite(path: Path, text: str) -> None:
    path.unlink()  # the folder is made of links to the good one
    path.write_text(text)


def _pickle(folder: Path) -> None:
    (folder / UNET_WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.bin")


def _cut(folder: Path) -> None:
    content = (folder / UNET_WEIGHTS).read_bytes()
    (folder / UNET_WEIGHTS).unlink()
    (folder / UNET_WEIGHTS).write_bytes(content[: len(content) // 2])


def _reconfigure(file: str, **changes: object) -> Callable[[Path], None]:
    def reconfigure(folder: Path) -> None:
        config = json.loads((folder / file).read_text())
        _rewrite(folder / file, json.dumps(config | changes))

    return reconfigure


def _forget(part: str, weights: str) -> Callable[[Path], None]:
    def forget(folder: Path) -> None:
        tensors = load_file(folder / part / weights)
        tensors.popitem()
        (folder / part / weights).unlink()
        save_file(tensors, folder / part / weights, metadata={"format": "pt"})

    return forget


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no index": (lambda folder: (folder / "model_index.json").unlink(), "has no model_index.json"),
    "index is no JSON": (lambda folder: _rewrite(folder / "model_index.json", "{"), "model_index.json is not JSON"),
    "index is a list": (lambda folder: _rewrite(folder / "model_index.json", "[]"), "is not a JSON object"),
    "no vae named": (lambda folder: _edit_index(folder, vae=[None, None]), "model_index.json names no vae"),
    "foreign part": (
        lambda folder: _edit_index(folder, text_encoder_2=["transformers", "CLIPTextModel"]),
        "parts that family 'sd' does not know: text_encoder_2",
    ),
    "code from the folder": (
        lambda folder: _edit_index(folder, unet=["my_unet", "MyUNet"]),
        "model_index.json takes unet from 'my_unet'",
    ),
    "unknown class": (
        lambda folder: _edit_index(folder, unet=["diffusers", "NoSuchUNet"]),
        "names NoSuchUNet, which diffusers does not have",
    ),
    "no unet folder": (lambda folder: shutil.rmtree(folder / "unet"), "unet has no config.json"),
    "no tokenizer files": (
        lambda folder: (folder / "tokenizer/tokenizer.json").unlink(),
        "tokenizer has no tokenizer.json or vocab.json",
    ),
    "tokenizer is no JSON": (lambda folder: _rewrite(folder / "tokenizer/tokenizer.json", "{"), "tokenizer: Expecting"),
    "scheduler is no JSON": (
        lambda folder: _rewrite(folder / "scheduler/scheduler_config.json", "{"),
        "scheduler_config.json' is not a valid JSON file",
    ),
    "no weights": (lambda folder: (folder / UNET_WEIGHTS).unlink(), "unet has no .safetensors file"),
    "pickle": (_pickle, "diffusion_pytorch_model.bin is a pickle, and only safetensors are loaded"),
    "weights cut short": (_cut, "diffusion_pytorch_model.safetensors is broken: "),
    "wrong shape in the unet": (
        _reconfigure("unet/config.json", in_channels=9),
        "conv_in.weight expected shape torch.Size([32, 9, 3, 3]), but got torch.Size([32, 4, 3, 3])",
    ),
    "wrong shape in the text encoder": (
        _reconfigure("text_encoder/config.json", intermediate_size=32),
        "encoder.layers.0.mlp.fc1.bias has the shape (128,), and config.json asks for (32,)",
    ),
    "weights of the unet missing": (_forget("unet", "diffusion_pytorch_model.safetensors"), "unet lacks 1 of its"),
    "weights of the text encoder missing": (
        _forget("text_encoder", "model.safetensors"),
        "text_encoder lacks 1 of its",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_is_refused_in_one_sentence_naming_model_and_file(
    engine: Engine, model_folder: Path, tmp_path: Path, fault: str
) -> None:
    breaks, problem = BROKEN[fault]
    folder = tmp_path / "broken"
    shutil.copytree(model_folder, folder, copy_function=os.link)
    breaks(folder)
    with pytest.raises(ModelLoadError) as refusal:
        engine.load("mine", source=str(folder))
    message = str(refusal.value)
    assert message.startswith(f"model 'mine' cannot be loaded: {folder}")
    assert problem in message
    assert "\n" not in message
    assert "mine" not in engine.models


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ({"source": "/no/such/folder"}, "there is no folder /no/such/folder"),
        ({"source": "./no/such"}, "there is no folder no/such"),
        ({"source": "seeded:x"}, "there is no folder seeded:x"),
        ({"source": "seeded:1", "family": "sd9"}, "family 'sd9' is unknown; known are: sd"),
        ({"source": "seeded:1", "dtype": "int3"}, "dtype 'int3' is none of float32, float16, bfloat16"),
    ],
)
def test_a_source_that_is_not_there_is_refused(engine: Engine, how: dict[str, str], problem: str) -> None:
    with pytest.raises(ModelLoadError, match=problem):
        engine.load("mine", **how)
