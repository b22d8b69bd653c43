"""What is wrong with a family's folder is said in one sentence that names the file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from darkroom_engine import Engine, ModelLoadError

# One pipeline of each family, and one without. The families of UNets have tests of their own.
FAMILIES = ("sd3", "flux-dev", "pixart-sigma", "sana", "qwen-image", "z-image", "aura-flow")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def rewrite(path: Path, **changes: object) -> None:
    words = json.loads(path.read_text())
    path.unlink()  # the folder is made of links to the good one
    path.write_text(json.dumps(words | changes))


def make_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "transformer/diffusion_pytorch_model.bin")


def take_code_from_the_folder(folder: Path) -> None:
    rewrite(folder / "model_index.json", transformer=["my_transformer", "MyTransformer"])


def take_remote_code(folder: Path) -> None:
    rewrite(folder / "model_index.json", _class_name=["pipeline", "MyPipeline"])


def take_a_class_of_nobody(folder: Path) -> None:
    rewrite(folder / "model_index.json", _class_name="MyPipeline")


def lose_the_transformer(folder: Path) -> None:
    shutil.rmtree(folder / "transformer")


def ask_for_another_shape(folder: Path) -> None:
    rewrite(folder / "vae/config.json", latent_channels=7, z_dim=7)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle": (make_pickle, "diffusion_pytorch_model.bin is a pickle, and only safetensors are loaded"),
    "code from the folder": (take_code_from_the_folder, "model_index.json takes transformer from 'my_transformer'"),
    "remote code": (take_remote_code, "model_index.json names no pipeline class"),
    "unknown class": (take_a_class_of_nobody, "is a MyPipeline, which is no pipeline of diffusers"),
    "missing component": (lose_the_transformer, "/transformer has no config.json"),
    "wrong shape": (ask_for_another_shape, "/vae: "),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bad_folder_is_refused_naming_model_file_and_reason(
    folders: Callable[[str], Path], tmp_path: Path, family: str, fault: str
) -> None:
    breaks, problem = FAULTS[fault]
    folder = tmp_path / "bad"
    shutil.copytree(folders(family), folder, copy_function=os.link)
    breaks(folder)
    with pytest.raises(ModelLoadError) as refusal:
        Engine("cpu", num_threads=1).load("mine", source=str(folder))
    message = str(refusal.value)
    assert message.startswith(f"model 'mine' cannot be loaded: {folder}")
    assert problem in message
    assert "\n" not in message


def test_a_model_of_another_family_than_was_said_is_refused(folders: Callable[[str], Path]) -> None:
    for family in FAMILIES:
        with pytest.raises(ModelLoadError, match="and was to be 'sd'"):
            Engine("cpu").load("mine", "sd", source=str(folders(family)))
