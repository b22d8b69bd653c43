"""LoRA adapters (Hu et al. 2021): reads their files, puts them into a model's weights and takes them out again.

The weights themselves are changed, so a forward costs the same with adapters as without, and a model without adapters
is bit-equal to what it was before. Knows modules and files; knows no request in flight.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers.utils.state_dict_utils import (
    StateDictType,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from safetensors import safe_open
from torch import Tensor

from darkroom_engine.errors import InvalidRequest, LoraLoadError, first_sentence
from darkroom_engine.families.folder import PICKLE_SUFFIXES
from darkroom_engine.quiet import quiet

Loras = tuple[tuple[str, float], ...]

# Other ways than LoRA's to write down a change of weights, by what their tensors are called.
FOREIGN = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT"}

# Where diffusers notes the alphas, which kohya writes beside the weights.
METADATA = "lora_adapter_metadata"

DOWN, UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Change:
    """What an adapter of weight 1 adds to a weight (out, in, ...): up (out, rank) times down (rank, in, ...)."""

    down: Tensor
    up: Tensor

    def add_to(self, weight: Tensor, times: float) -> None:
        """Add it so many times to a float32 weight, in place."""
        weight.view(len(weight), -1).addmm_(self.up.flatten(1), self.down.flatten(1).float(), alpha=times)


@runtime_checkable
class TakesAdapters(Protocol):
    """A family whose weights adapters can change."""

    adapters: "Adapters"


class Adapters:
    """The adapters of one model: those that are loaded, and those that are in its weights at this moment.

    `parts` are its modules, by the names that the files have for them; `loader` is the class of its pipeline, which
    knows the formats.
    """

    def __init__(self, parts: Mapping[str, Any], loader: Any) -> None:
        self._parts = parts
        self._loader = loader
        self._adapters: dict[str, Mapping[str, Change]] = {}
        self._weights: dict[str, Tensor] = {}  # that an adapter changes
        self._originals: dict[str, Tensor] = {}  # of those that one has changed
        self._active: Loras | None = ()  # None where it is not known: a change broke off

    @property
    def num_bytes(self) -> int:
        """Memory of the adapters, and of the weights that are kept as they were."""
        changes = [change for adapter in self._adapters.values() for change in adapter.values()]
        originals = sum(weight.nbytes for weight in self._weights.values())
        return originals + sum(change.down.nbytes + change.up.nbytes for change in changes)

    def load(self, name: str, path: Path) -> None:
        """Read an adapter from a .safetensors file in the format of diffusers, peft or kohya. Raises LoraLoadError.

        May be called while requests are in flight: none of them names the adapter yet.
        """
        if name in self._adapters:
            raise LoraLoadError(name, "one of that name is loaded already")
        try:
            adapter = self._read(path)
        except Exception as error:  # over a broken file safetensors and diffusers raise anything
            raise LoraLoadError(name, f"{path}: {first_sentence(error)}") from error
        self._weights |= {key: self._weight(key) for key in adapter}
        self._adapters[name] = adapter

    def check(self, loras: Loras) -> None:
        """Raise InvalidRequest for an adapter that is not loaded."""
        for name, _ in loras:
            if name not in self._adapters:
                loaded = ", ".join(self._adapters) or "none"
                raise InvalidRequest("loras", f"names {name!r}, which is not loaded; loaded are: {loaded}")

    def activate(self, loras: Loras) -> None:
        """Have these adapters, and no others, in the weights. Those that had none, keep their very bits."""
        if loras == self._active:
            return
        before, self._active = self._active, None
        touched = self._originals.keys() if before is None else self._touched_by(before)
        wanted = self._touched_by(loras)
        for key in touched - wanted:
            self._weights[key].copy_(self._originals[key])
        for key in wanted:
            if key not in self._originals:
                self._originals[key] = self._weights[key].clone()
            # float32: in a lower dtype what an adapter adds is often smaller than the weight's last bit.
            weight = self._originals[key].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            for name, times in loras:
                if change := self._adapters[name].get(key):
                    change.add_to(weight, times)
            self._weights[key].copy_(weight)
        self._active = loras

    def _touched_by(self, loras: Loras) -> set[str]:
        return {key for name, _ in loras for key in self._adapters[name]}

    def _weight(self, key: str) -> Tensor:
        """The weight that a file calls by this name. Raises ValueError."""
        part, _, module = key.partition(".")
        # Files name CLIP's modules as transformers had them before it took out a level.
        if not hasattr(self._parts.get(part), "text_model"):
            module = module.removeprefix("text_model.")
        try:
            weight: Tensor = self._parts[part].get_submodule(module).weight
        except (KeyError, AttributeError) as error:
            raise ValueError(f"{key} is not in this model, whose parts are {', '.join(self._parts)}") from error
        return weight

    def _in_diffusers_format(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Name the tensors of other trainers' files as diffusers does."""
        if unet := self._parts.get("unet"):
            renamed: dict[str, Tensor] = self._loader.lora_state_dict(tensors, unet_config=unet.config)[0]
        else:
            renamed = self._loader.lora_state_dict(tensors)  # of a transformer, without the alphas
        return renamed

    def _read(self, path: Path) -> dict[str, Change]:
        """Read an adapter's changes, by the names of the modules. Raises ValueError, and whatever diffusers does."""
        if path.suffix in PICKLE_SUFFIXES:
            raise ValueError("it is a pickle, and only safetensors are loaded")
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
        for mark, kind in FOREIGN.items():
            if found := [key for key in tensors if mark in key]:
                raise ValueError(f"{found[0]} is of a {kind}, and only LoRAs are loaded")
        _scale_by_alphas(tensors)
        with quiet():
            tensors = _in_peft_format(self._in_diffusers_format(tensors))
        adapter = {}
        for key in [key for key in tensors if key.endswith(DOWN)]:
            module = key.removesuffix(DOWN)
            if module + UP not in tensors:
                raise ValueError(f"it lacks {module + UP}")
            down, up = tensors.pop(key), tensors.pop(module + UP)
            weight = self._weight(module)
            if (len(up), up[0].numel(), down[0].numel()) != (len(weight), len(down), weight[0].numel()):
                shapes = f"{tuple(up.shape)} and {tuple(down.shape)}"
                raise ValueError(f"{module} has the shapes {shapes}, and the weight's is {tuple(weight.shape)}")
            scaled = up.float() * _scale(module, len(down), metadata)
            adapter[module] = Change(down.to(weight.device), scaled.to(weight.device))
        if tensors:
            raise ValueError(f"{next(iter(tensors))} is no part of a LoRA")
        if not adapter:
            raise ValueError("nothing in it is part of a LoRA")
        return adapter


def _scale_by_alphas(tensors: dict[str, Tensor]) -> None:
    """Multiply kohya's alphas into the weights that they belong to, and drop them."""
    for key in [key for key in tensors if key.endswith(".alpha")]:
        alpha, module = float(tensors.pop(key)), key.removesuffix(".alpha")
        down, up = f"{module}.lora_down.weight", f"{module}.lora_up.weight"
        tensors[up] = tensors[up].float() * (alpha / len(tensors[down]))


def _in_peft_format(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of each part as peft does."""
    renamed: dict[str, Tensor] = {}
    for part in {key.partition(".")[0] for key in tensors}:
        prefix = f"{part}."
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if part == "unet":
            own = convert_unet_state_dict_to_peft(own)
        else:
            for original_type in (StateDictType.DIFFUSERS_OLD, StateDictType.DIFFUSERS):
                own = convert_state_dict_to_peft(own, original_type)
        renamed |= {prefix + key: tensor for key, tensor in own.items()}
    return renamed


def _scale(module: str, rank: int, metadata: Mapping[str, Any]) -> float:
    """Alpha over rank, as diffusers' metadata has them; 1 where it says nothing."""
    part, _, name = module.partition(".")
    alpha = metadata.get(f"{part}.lora_alpha", rank)
    for pattern, own in metadata.get(f"{part}.alpha_pattern", {}).items():
        if name == pattern or name.endswith(f".{pattern}"):
            alpha = own
    return float(alpha) / (rank**0.5 if metadata.get(f"{part}.use_rslora") else rank)
