"""Loads models by name, family and source. Knows where weights come from, not what is done with them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from darkroom_engine.errors import ModelLoadError, UnfitPipeline
from darkroom_engine.families import seeded
from darkroom_engine.families.base import Family
from darkroom_engine.families.flux import Flux
from darkroom_engine.families.folder import ModelFolder, first_sentence
from darkroom_engine.families.pixart import PixArt
from darkroom_engine.families.qwen_image import QwenImage
from darkroom_engine.families.sana import Sana
from darkroom_engine.families.sd import StableDiffusion
from darkroom_engine.families.sd3 import StableDiffusion3
from darkroom_engine.families.sdxl import StableDiffusionXL
from darkroom_engine.families.z_image import ZImage
from darkroom_engine.quiet import quiet

FAMILIES: Mapping[str, type[Family]] = {
    family.family: family
    for family in (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, PixArt, Sana, QwenImage, ZImage)
}
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

SEEDED = re.compile(r"seeded:(\d{1,18})")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


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
    """Load weights from "seeded:<n>", a folder or a hub id; only the last uses the network. Raises ModelLoadError.

    Which family it is, the folder says by its pipeline class; `family` is what the caller holds it for.
    """
    if family is not None and family not in FAMILIES:
        raise ModelLoadError(name, f"family {family!r} is unknown; known are: {', '.join(FAMILIES)}")
    if dtype is not None and dtype not in DTYPES:
        raise ModelLoadError(name, f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    # Always said: without it diffusers loads some parts as stored and others as float32.
    torch_dtype = DTYPES[dtype or "float32"]
    if match := SEEDED.fullmatch(source):
        return StableDiffusion(seeded.build(int(match[1]), torch_dtype), device)
    folder = ModelFolder(name, _find(name, source, revision))
    family_class = _family_of(folder, family)
    try:
        return family_class(folder.load_pipeline(family_class, torch_dtype), device)
    except UnfitPipeline as error:
        raise ModelLoadError(name, f"{folder.path}: {error.reason}") from error


def _find(name: str, source: str, revision: str | None) -> Path:
    path = Path(source).expanduser()
    return path if path.exists() or not HUB_ID.fullmatch(source) else _download(name, source, revision)


def _family_of(folder: ModelFolder, wanted: str | None) -> type[Family]:
    for family in FAMILIES.values():
        if folder.pipeline_class in family.pipelines:
            if wanted not in (None, family.family):
                raise ModelLoadError(
                    folder.name, f"{folder.path} is of family {family.family!r}, and was to be {wanted!r}"
                )
            return family
    raise ModelLoadError(folder.name, f"{folder.path} is a {folder.pipeline_class}, which no family develops")


def _download(name: str, repository: str, revision: str | None) -> Path:
    """Bring a pipeline from the hub into its cache, safetensors only, and say where it lies. Raises ModelLoadError."""
    try:
        with quiet():
            return Path(DiffusionPipeline.download(repository, revision=revision, use_safetensors=True))
    except Exception as error:  # the hub's client raises network, cache and repository errors of many roots
        problem = first_sentence(error)
        raise ModelLoadError(name, f"{repository} could not be had from the hub: {problem}") from error
