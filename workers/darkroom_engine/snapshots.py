"""A request in the middle of its walk, as bytes: what a worker needs to go on where another one stopped.

The bytes are a safetensors file whose metadata is JSON; nothing in them is ever run. What can be made again from the
request (conditioning, what inpainting keeps, the sampler's tables) is not in them. Knows no device and no thread.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from darkroom_engine.errors import InvalidSnapshot
from darkroom_engine.request import Request

if TYPE_CHECKING:
    from darkroom_engine.batch import Development

FORMAT = "darkroom-snapshot-1"
PICTURES = ("image", "mask")
# A noise_scheduler's own source of noise, which it makes again from the seed when it finds none.
REMADE = ("noise_sampler",)


@dataclass(frozen=True)
class Snapshot:
    """What was read from bytes: a request, and what its development is to be given once it has begun again."""

    request: Request
    step: int
    has_begun: bool
    latents: Tensor | None
    denoised: Tensor | None
    generator_state: Tensor
    walk: Mapping[int, Tensor]
    sampler_state: Mapping[str, Any]


def take_snapshot(development: "Development", fresh_noise_scheduler: Any) -> bytes:
    """Write a development down between two of its steps.

    A fresh noise_scheduler of the same request tells what the development's own has changed since.
    """
    request = development.request
    tensors: dict[str, Tensor] = {"generator": development.generator.get_state()}
    optional = {"latents": development.latents, "denoised": development.denoised}
    tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    tensors |= {f"walk.{step}": frame for step, frame in development.walk.items()}
    tensors |= {
        f"request.{name}": torch.from_numpy(picture.copy())
        for name in PICTURES
        if (picture := getattr(request, name)) is not None
    }
    words = {
        "format": FORMAT,
        "request": _request_words(request),
        "step": development.step,
        "has_begun": development.conditioning is not None,
        "sampler": _sampler_words(development, fresh_noise_scheduler, tensors),
    }
    return save(_own_memory(tensors), metadata={"snapshot": json.dumps(words)})


def read_snapshot(snapshot: bytes) -> Snapshot:
    """Read what take_snapshot wrote. Raises InvalidSnapshot; whether a model takes the request is checked elsewhere."""
    try:
        tensors = load(snapshot)
        words = json.loads(_metadata(snapshot)["snapshot"])
        if words["format"] != FORMAT:
            raise InvalidSnapshot(f"its format is {words['format']!r}, and this version reads {FORMAT!r}")
        pictures = {name: tensors[f"request.{name}"].numpy() for name in PICTURES if f"request.{name}" in tensors}
        return Snapshot(
            request=_request(words["request"], pictures),
            step=int(words["step"]),
            has_begun=bool(words["has_begun"]),
            latents=tensors.get("latents"),
            denoised=tensors.get("denoised"),
            generator_state=tensors["generator"],
            walk={int(name[5:]): tensor for name, tensor in tensors.items() if name.startswith("walk.")},
            sampler_state={name: _value(value, tensors) for name, value in words["sampler"].items()},
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InvalidSnapshot(f"it cannot be read: {type(error).__name__}: {error}") from error


def put_back(snapshot: Snapshot, development: "Development") -> None:
    """Let a development that has just begun go on where the snapshot was taken. Raises InvalidSnapshot."""
    if not snapshot.has_begun:
        return
    assert development.latents is not None
    if snapshot.latents is None or snapshot.latents.shape != development.latents.shape:
        shape = None if snapshot.latents is None else tuple(snapshot.latents.shape)
        raise InvalidSnapshot(f"its latents are {shape}, and this model's are {tuple(development.latents.shape)}")
    if not 0 <= snapshot.step < len(development.timesteps):
        raise InvalidSnapshot(f"it is at step {snapshot.step} of {len(development.timesteps)}")
    like = development.latents
    development.latents = snapshot.latents.to(like)
    development.denoised = None if snapshot.denoised is None else snapshot.denoised.to(like.device)
    development.generator.set_state(snapshot.generator_state)
    development.walk.update(snapshot.walk)
    development.step = snapshot.step
    if snapshot.sampler_state and development.step_table is not None:
        raise InvalidSnapshot(f"sampler {development.request.sampler!r} has nothing to remember, and it holds some")
    for name, value in snapshot.sampler_state.items():
        if hasattr(type(development.noise_scheduler), name):
            raise InvalidSnapshot(f"{name} of sampler {development.request.sampler!r} is no memory of its steps")
        setattr(development.noise_scheduler, name, _on_device(value, like.device))


def _request_words(request: Request) -> dict[str, Any]:
    words = {field.name: getattr(request, field.name) for field in fields(request) if field.name not in PICTURES}
    left = None if request.deadline is None else request.deadline - time.monotonic()
    return words | {"deadline": left}


def _request(words: Mapping[str, Any], pictures: Mapping[str, Any]) -> Request:
    """Build the request; its deadline is as many seconds away as it was."""
    deadline = None if words["deadline"] is None else time.monotonic() + words["deadline"]
    loras = tuple((name, weight) for name, weight in words["loras"])
    return Request(**{**words, "deadline": deadline, "loras": loras}, **pictures)


def _sampler_words(development: "Development", fresh: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Find what the noise_scheduler remembers: its attributes that differ from a fresh one's."""
    if development.step_table is not None:
        return {}  # it was never stepped
    words = {}
    for name, value in vars(development.noise_scheduler).items():
        if name not in REMADE and not callable(value) and not _is_same(value, vars(fresh).get(name)):
            words[name] = _word(f"sampler.{name}", value, tensors)
    return words


def _is_same(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) or isinstance(other, Tensor):
        return isinstance(value, Tensor) and isinstance(other, Tensor) and torch.equal(value, other)
    if isinstance(value, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(value, other)
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) == len(other) and all(map(_is_same, value, other))
    return type(value) is type(other) and bool(value == other)


def _word(key: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """Turn a value into JSON; tensors go beside it, and are named in their place."""
    if isinstance(value, Tensor):
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, list | tuple):
        return [_word(f"{key}.{place}", each, tensors) for place, each in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidSnapshot(f"the sampler keeps a {type(value).__name__} in {key}, which cannot be written down")


def _value(word: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(word, dict):
        return tensors[word["tensor"]]
    return [_value(each, tensors) for each in word] if isinstance(word, list) else word


def _on_device(value: Any, device: torch.device) -> Any:
    """Bring pictures in the making to the device; tables and single numbers stay on the CPU."""
    if isinstance(value, list):
        return [_on_device(each, device) for each in value]
    return value.to(device) if isinstance(value, Tensor) and value.ndim > 1 else value


def _own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give each tensor memory of its own: rows of one batch share theirs, which safetensors refuses."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _metadata(snapshot: bytes) -> Mapping[str, str]:
    """Read the metadata of a safetensors file: a length of 8 bytes, then so many bytes of JSON."""
    length = int.from_bytes(snapshot[:8], "little")
    return dict(json.loads(snapshot[8 : 8 + length])["__metadata__"])
