"""Stable Diffusion in one .safetensors file, in the layout of the original code, as most people have it.

Says which model it is by its tensors; what a folder would say beyond them ships with us, in single_files/. Takes
safetensors only, runs no code from the file, opens no connection.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from darkroom_engine.errors import ModelLoadError, first_sentence
from darkroom_engine.families.base import Family
from darkroom_engine.families.clip_tokenizer import clip_tokenizer
from darkroom_engine.families.folder import PICKLE_SUFFIXES
from darkroom_engine.quiet import quiet

CONFIGS = Path(__file__).parent / "single_files"

Tensors = dict[str, Tensor]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."

FIRST = f"{UNET}input_blocks.0.0.weight"

# What the file has for other uses than ours, or a model makes for itself.
IDLE = ("position_ids", "text_projection.weight", "logit_scale")

# Distilled for so few steps that they must begin where the noise is greatest, which no tensor says of them.
FEW_STEP_NAMES = ("turbo", "lightning", "hyper", "lcm", "dmd")

# What a denoiser predicts, by the name that the metadata has for it.
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}

# Of Stable Diffusion 2, those that predict v rather than the noise are told apart by the spread of this bias (0.09 is
# ComfyUI's limit: comfy/supported_models.py, SD20.model_type).
V_BIAS, V_SPREAD = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09


@dataclass(frozen=True)
class Layout:
    """A kind of checkpoint: the family and pipeline that it is for, its text encoders' prefixes and pad tokens."""

    name: str
    family: str
    pipeline: str
    text_encoders: Mapping[str, str]  # part -> prefix
    pad_tokens: Mapping[str, str]  # tokenizer -> token


LAYOUTS = (
    Layout(
        "sdxl",
        "sdxl",
        "StableDiffusionXLPipeline",
        {"text_encoder": XL_CLIP, "text_encoder_2": XL_OPEN_CLIP},
        {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"},
    ),
    Layout("sd-2", "sd", "StableDiffusionPipeline", {"text_encoder": OPEN_CLIP}, {"tokenizer": "!"}),
    Layout("sd-1", "sd", "StableDiffusionPipeline", {"text_encoder": CLIP}, {"tokenizer": "<|endoftext|>"}),
)

# What else comes in one file, by what its tensors begin with.
STRANGERS = {
    "conditioner.embedders.0.model.": "a refiner, which only finishes what another model began",
    "control_model.": "a ControlNet, which is no model of its own",
    "lora_unet_": "a LoRA, which is no model of its own",
    "edm_mean": "Playground 2.5, whose scheduler such a file does not say: load its folder",
    f"{UNET}joint_blocks.": "Stable Diffusion 3, which is loaded from a folder",
    f"{UNET}double_blocks.": "Flux, which is loaded from a folder",
}


class SingleFile:
    """A checkpoint. `name` is the model's, for the errors; each of them is a ModelLoadError."""

    def __init__(self, name: str, path: Path, *, configs: Path = CONFIGS) -> None:
        self.name = name
        self.path = path
        if path.suffix in PICKLE_SUFFIXES:
            raise self._refusal("it is a pickle, and only safetensors are loaded")
        try:
            with safe_open(path, framework="pt") as file:
                self._keys = frozenset(file.keys())
                self._metadata = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise self._refusal(f"it is broken: {first_sentence(error)}") from error
        self._layout = self._find_layout()
        self._configs = configs / self._layout.name

    @property
    def family(self) -> str:
        """The name of the family that develops with it."""
        return self._layout.family

    def load_pipeline(self, family: type[Family], dtype: torch.dtype) -> Any:
        """Build the pipeline from the file's tensors and our configs."""
        tensors = self._read()
        parts: dict[str, Any] = {
            "unet": self._load_unet(tensors, dtype),
            "vae": self._load_vae(tensors, dtype),
            "scheduler": self._noise_scheduler(tensors),
        }
        for part, prefix in self._layout.text_encoders.items():
            parts[part] = self._load_text_encoder(part, prefix, tensors, dtype)
        for part, pad_token in self._layout.pad_tokens.items():
            parts[part] = clip_tokenizer(pad_token=pad_token)
        with quiet():
            return getattr(diffusers, self._layout.pipeline)(**(parts | dict(family.left_out)))

    def _find_layout(self) -> Layout:
        for prefix, stranger in STRANGERS.items():
            if self._has(prefix):
                raise self._refusal(f"it is {stranger}")
        for layout in LAYOUTS:
            found = [prefix for prefix in layout.text_encoders.values() if self._has(prefix)]
            wanted = {"unet": UNET, "vae": VAE, **layout.text_encoders}
            missing = [part for part, prefix in wanted.items() if not self._has(prefix)]
            if found and missing:
                raise self._refusal(f"it has no {missing[0]}: nothing in it begins with {wanted[missing[0]]!r}")
            if found:
                return layout
        raise self._refusal("it has no text encoder that Stable Diffusion 1, 2 or XL would have")

    def _has(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self._keys)

    def _read(self) -> Tensors:
        prefixes = (UNET, VAE, *self._layout.text_encoders.values())
        with safe_open(self.path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in self._keys if key.startswith(prefixes)}

    def _config(self, part: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self._configs / f"{part}.json").read_bytes())
        return config

    def _load_unet(self, tensors: Tensors, dtype: torch.dtype) -> Any:
        # Those for inpainting take the mask and the masked latents beside the noisy ones.
        config = self._config("unet") | {"in_channels": self._num_channels(tensors)}
        with init_empty_weights(include_buffers=False):
            unet = UNet2DConditionModel.from_config(config)
        return self._fill("unet", unet, lambda: convert_ldm_unet_checkpoint(tensors, config=unet.config), dtype)

    def _load_vae(self, tensors: Tensors, dtype: torch.dtype) -> Any:
        with init_empty_weights(include_buffers=False):
            vae = AutoencoderKL.from_config(self._config("vae"))
        return self._fill("vae", vae, lambda: convert_ldm_vae_checkpoint(tensors, config=vae.config), dtype)

    def _load_text_encoder(self, part: str, prefix: str, tensors: Tensors, dtype: torch.dtype) -> Any:
        # The second encoder's pooled output is projected.
        model_class = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
        with init_empty_weights(include_buffers=False):
            text_encoder = model_class(CLIPTextConfig(**self._config(part)))

        def convert() -> Tensors:
            if prefix in (CLIP, XL_CLIP):
                return _at_one_level(text_encoder, convert_ldm_clip_checkpoint(tensors))
            return _at_one_level(text_encoder, convert_open_clip_checkpoint(text_encoder, tensors, prefix=prefix))

        return self._fill(part, text_encoder, convert, dtype)

    def _fill(self, part: str, model: Any, convert: Callable[[], Tensors], dtype: torch.dtype) -> Any:
        """Give a model without weights those of the file. Raises ModelLoadError for what does not fit."""
        try:
            with quiet():
                converted = convert()
        except KeyError as error:
            raise self._refusal(f"it lacks {error.args[0]} of the {part}") from error
        expected = model.state_dict()
        given = {key: tensor for key, tensor in converted.items() if key in expected or not key.endswith(IDLE)}
        if missing := sorted(expected.keys() - given.keys()):
            raise self._refusal(f"it lacks {len(missing)} of the {part}'s weights, among them {missing[0]}")
        if foreign := sorted(given.keys() - expected.keys()):
            raise self._refusal(f"it has {foreign[0]}, which no {part} of {self._layout.name} has")
        for key, tensor in given.items():
            if tensor.shape != expected[key].shape:
                shapes = f"the shape {tuple(tensor.shape)}, and {self._layout.name} has {tuple(expected[key].shape)}"
                raise self._refusal(f"{key} of the {part} has {shapes}")
        model.load_state_dict({key: tensor.to(dtype) for key, tensor in given.items()}, assign=True)
        return model

    def _noise_scheduler(self, tensors: Tensors) -> Any:
        config = self._config("scheduler") | {"prediction_type": self._prediction_type(tensors)}
        title = f"{self._metadata.get('modelspec.title', '')} {self.path.stem}".lower()
        if "ztsnr" in self._keys:
            config["rescale_betas_zero_snr"] = True
        if "ztsnr" in self._keys or any(word in title for word in FEW_STEP_NAMES):
            config["timestep_spacing"] = "trailing"
        return EulerDiscreteScheduler.from_config(config)

    def _prediction_type(self, tensors: Tensors) -> str:
        if said := self._metadata.get("modelspec.prediction_type"):
            if said not in PREDICTIONS:
                raise self._refusal(f"its metadata says that it predicts {said!r}, and known are {list(PREDICTIONS)}")
            return PREDICTIONS[said]
        if "v_pred" in self._keys:
            return "v_prediction"
        bias = tensors.get(V_BIAS) if self._layout.name == "sd-2" and self._num_channels(tensors) == 4 else None
        return "v_prediction" if bias is not None and bias.float().std(correction=0) > V_SPREAD else "epsilon"

    def _num_channels(self, tensors: Tensors) -> int:
        return tensors[FIRST].shape[1] if FIRST in tensors else 4

    def _refusal(self, reason: str) -> ModelLoadError:
        return ModelLoadError(self.name, f"{self.path}: {reason}")


def _at_one_level(text_encoder: Any, tensors: Tensors) -> Tensors:
    """Rename where transformers has taken out the level "text_model": in encoders without a projection."""
    if hasattr(text_encoder, "text_model"):
        return tensors
    return {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
