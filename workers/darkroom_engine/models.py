"""Loads models by name, family and source. Knows where weights come from, not what is done with them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from darkroom_engine.errors import ModelLoadError
from darkroom_engine.families import sd, seeded

FAMILIES: Mapping[str, type[sd.StableDiffusion]] = {"sd": sd.StableDiffusion}
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

SEEDED = re.compile(r"seeded:(\d{1,18})")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class LoadedModel:
    """A model that requests can name. Sizes must be multiples of `latent_multiple` pixels."""

    name: str
    family: str
    source: str
    num_bytes: int
    samplers: tuple[str, ...]
    latent_multiple: int


def load_pipeline(
    name: str, family: str, *, source: str, revision: str | None, dtype: str | None
) -> StableDiffusionPipeline:
    """Load weights from "seeded:<n>", a folder or a hub id; only the last uses the network. Raises ModelLoadError."""
    if family not in FAMILIES:
        raise ModelLoadError(name, f"family {family!r} is unknown; known are: {', '.join(FAMILIES)}")
    if dtype is not None and dtype not in DTYPES:
        raise ModelLoadError(name, f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    # Always said: without it diffusers loads some parts as stored and others as float32.
    torch_dtype = DTYPES[dtype or "float32"]
    if match := SEEDED.fullmatch(source):
        return seeded.build(int(match[1]), torch_dtype)
    folder = Path(source).expanduser()
    if not folder.exists() and HUB_ID.fullmatch(source):
        folder = sd.download(name, source, revision)
    return sd.load_folder(name, folder, torch_dtype)
