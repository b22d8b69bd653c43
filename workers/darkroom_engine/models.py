"""Loads models by name, family and source. Knows where weights come from, not what is done with them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from darkroom_engine.errors import ModelLoadError, UnfitPipeline
from darkroom_engine.families import seeded
from darkroom_engine.families.base import Family
from darkroom_engine.families.flux import Flux
from darkroom_engine.families.folder import ModelFolder
from darkroom_engine.families.pixart import PixArt
from darkroom_engine.families.qwen_image import QwenImage
from darkroom_engine.families.sana import Sana
from darkroom_engine.families.sd import StableDiffusion
from darkroom_engine.families.sd3 import StableDiffusion3
from darkroom_engine.families.sdxl import StableDiffusionXL
from darkroom_engine.families.single_file import SingleFile
from darkroom_engine.families.whole import WholePipeline
from darkroom_engine.families.z_image import ZImage
from darkroom_engine.sources import find_model

FAMILIES: Mapping[str, type[Family]] = {
    family.family: family
    for family in (
        StableDiffusion,
        StableDiffusionXL,
        StableDiffusion3,
        Flux,
        PixArt,
        Sana,
        QwenImage,
        ZImage,
        WholePipeline,
    )
}
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

SEEDED = re.compile(r"seeded:(\d{1,18})")


@dataclass(frozen=True)
class LoadedModel:
    """A model that requests can name. Sizes must be multiples of `latent_multiple` pixels.

    `max_pixels` is how many the device's memory is enough for, in one picture; None where that is not measured yet.
    """

    name: str
    family: str
    source: str
    num_bytes: int
    samplers: tuple[str, ...]
    latent_multiple: int
    features: frozenset[str]
    max_pixels: int | None = None


def load_model(
    name: str, family: str | None, *, source: str, revision: str | None, dtype: str | None, device: torch.device
) -> Family:
    """Load weights from "shipped:<name>", "seeded:<n>", a folder, a file or the hub; only the last uses the network.

    Which family it is, a folder says by its pipeline class, and a file by its tensors; `family` is what the caller
    holds it for. On the hub, "<owner>/<name>" is a folder, and "<owner>/<name>/<file>.safetensors" a file of it. Raises
    ModelLoadError.
    """
    if family is not None and family not in FAMILIES:
        raise ModelLoadError(name, f"family {family!r} is unknown; known are: {', '.join(FAMILIES)}")
    if dtype is not None and dtype not in DTYPES:
        raise ModelLoadError(name, f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    # Always said: without it diffusers loads some parts as stored and others as float32.
    torch_dtype = DTYPES[dtype or "float32"]
    if match := SEEDED.fullmatch(source):
        return StableDiffusion(seeded.build(int(match[1]), torch_dtype), device)

    def left_out(index: Path) -> Mapping[str, Any]:
        return _family_of(ModelFolder(name, index.parent), family).left_out

    path = find_model(name, source, revision, left_out=left_out)
    checkpoint = SingleFile(name, path) if path.is_file() else ModelFolder(name, path)
    family_class = _family_of(checkpoint, family)
    try:
        return family_class(checkpoint.load_pipeline(family_class, torch_dtype), device)
    except UnfitPipeline as error:
        raise ModelLoadError(name, f"{path}: {error.reason}") from error


def _family_of(checkpoint: ModelFolder | SingleFile, wanted: str | None) -> type[Family]:
    family = FAMILIES[checkpoint.family] if isinstance(checkpoint, SingleFile) else _family_of_folder(checkpoint)
    if wanted not in (None, family.family):
        raise ModelLoadError(
            checkpoint.name, f"{checkpoint.path} is of family {family.family!r}, and was to be {wanted!r}"
        )
    return family


def _family_of_folder(folder: ModelFolder) -> type[Family]:
    known = (family for family in FAMILIES.values() if folder.pipeline_class in family.pipelines)
    family = next(known, WholePipeline)
    pipeline_class = getattr(diffusers, folder.pipeline_class, None)
    if not (isinstance(pipeline_class, type) and issubclass(pipeline_class, diffusers.DiffusionPipeline)):
        raise ModelLoadError(
            folder.name, f"{folder.path} is a {folder.pipeline_class}, which is no pipeline of diffusers"
        )
    return family
