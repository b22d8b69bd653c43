"""The export stage: a standard diffusers folder in half precision, with a manifest and a model card.

StableDiffusionPipeline.from_pretrained and the engine's family sd load it as it is.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from darkroom_engine.quiet import quiet
from darkroom_engine.samplers import FLOW_SAMPLERS
from darkroom_train.errors import ExportError
from darkroom_train.files import write_json, write_safely
from darkroom_train.recipe import Recipe
from darkroom_train.sampling import Sampling

MANIFEST = "manifest.json"
CARD = "README.md"
OFFER = "darkroom.toml"
MAX_FILE_BYTES = 16 * 2**20
SHARD_SIZE = "15MB"
PREFIX = "text_model."


def export_model(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write the folder anew, beside it first, so that an earlier one is whole until the new one is. Raises ExportError.

    Changes the pipeline's weights to half precision.
    """
    beside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    with quiet():
        pipeline.to(torch.float16)
        pipeline.save_pretrained(beside, safe_serialization=True, max_shard_size=SHARD_SIZE)
    _tidy(beside)
    _name_as_ever(beside / "text_encoder" / "model.safetensors")
    too_large = [path.name for path in beside.rglob("*") if path.is_file() and path.stat().st_size > MAX_FILE_BYTES]
    if too_large:
        raise ExportError(f"{', '.join(too_large)} would have more than {MAX_FILE_BYTES} bytes")
    write_manifest(beside)
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)


def write_manifest(folder: Path) -> None:
    """Write the SHA-256 and the size of every file, by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "num_bytes": path.stat().st_size,
        }
        for path in files
    }
    write_json(folder / MANIFEST, entries)


def check_manifest(folder: Path) -> list[str]:
    """Name the files that are not what the manifest says."""
    entries: Mapping[str, Mapping[str, Any]] = json.loads((folder / MANIFEST).read_text())
    return [
        name
        for name, entry in entries.items()
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != entry["sha256"]
    ]


def write_offer(folder: Path, recipe: Recipe, sampling: Sampling, *, example_prompts: Sequence[str]) -> None:
    """Write what Darkroom's catalog says of the model where it finds the folder: how it draws best."""
    size = recipe.data.size
    offer = {
        "": {"title": recipe.title or recipe.name, "license": "apache-2.0", "example_prompts": list(example_prompts)},
        "defaults": {"width": size, "height": size, **asdict(sampling)},
        "limits": {"min_size": size // 2, "max_size": 4 * size},
    }
    if recipe.denoiser.prediction == "flow":
        offer["limits"]["samplers"] = list(FLOW_SAMPLERS)
    lines = []
    for table, values in offer.items():
        # What JSON has of strings, numbers and lists, TOML has too.
        lines += [f"[{table}]"] if table else []
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    (folder / OFFER).write_text("\n".join(lines) + "\n")


def write_card(folder: Path, text: str) -> None:
    """Write the model card, and the manifest again."""
    (folder / CARD).write_text(text)
    write_manifest(folder)


def _tidy(folder: Path) -> None:
    """Take out what the libraries write and then warn of: a leftover of AutoencoderTiny, and where files came from."""
    _change(folder / "vae" / "config.json", lambda config: _without(config, "block_out_channels"))
    for part in ("vae", "unet"):
        _change(folder / part / "config.json", lambda config: _without(config, "_name_or_path"))
    _change(
        folder / "tokenizer" / "tokenizer_config.json",
        lambda config: _without(config, "is_local", "local_files_only"),
    )


def _name_as_ever(path: Path) -> None:
    """Name the text encoder's weights as every version of transformers reads them: new ones leave the prefix out."""
    weights = load_file(path)
    named = {name if name.startswith(PREFIX) else PREFIX + name: tensor for name, tensor in weights.items()}
    write_safely(path, lambda beside: save_file(named, beside, metadata={"format": "pt"}))


def _without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def _change(path: Path, change: Any) -> None:
    write_json(path, change(json.loads(path.read_text())))
