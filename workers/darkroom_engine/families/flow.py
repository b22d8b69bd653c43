"""What the families trained by flow matching have in common: their timesteps, and where a request's walk starts.

Draws from the generator in the order of diffusers' pipelines, so that equal seeds give equal pictures.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from darkroom_engine.families.base import Start
from darkroom_engine.request import Request


def shift_of(scheduler_config: Mapping[str, Any], num_tokens: int, *, max_shift: float = 1.15) -> Mapping[str, float]:
    """Say how far the sigmas are shifted towards noise for a picture of so many tokens, where the model asks for it.

    A line through two points, as in Flux's sampling code; `max_shift` is for configs that do not say.
    """
    if not scheduler_config.get("use_dynamic_shifting"):
        return {}
    base_length = scheduler_config.get("base_image_seq_len", 256)
    max_length = scheduler_config.get("max_image_seq_len", 4096)
    base_shift = scheduler_config.get("base_shift", 0.5)
    slope = (scheduler_config.get("max_shift", max_shift) - base_shift) / (max_length - base_length)
    return {"mu": num_tokens * slope + (base_shift - slope * base_length)}


def even_sigmas(num_inference_steps: int) -> npt.NDArray[np.float64]:
    """Sigmas from 1 to 1/n at equal distances, which the noise_scheduler then shifts."""
    return np.linspace(1.0, 1.0 / num_inference_steps, num_inference_steps)


def num_skipped(request: Request) -> int:
    """Of the inference steps, how many image-to-image leaves out; diffusers rounds here in favor of the picture."""
    if request.image is None:
        return 0
    return int(request.num_inference_steps - request.num_inference_steps * request.strength)


def noise(request: Request, generator: Generator, *, num_channels: int, multiple: int, like: Tensor) -> Tensor:
    """Draw noise (1, C, h, w) for a picture `multiple` times larger, on the CPU so that devices agree."""
    shape = (1, num_channels, request.height // multiple, request.width // multiple)
    return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)


def start(request: Request, noise_scheduler: Any, noise: Tensor, *, encoded: Tensor | None) -> Start:
    """Start with noise, or with a picture's latents (1, C, h, w), as far towards noise as the first step has them."""
    if encoded is None:
        return Start(noise)
    sigma = float(noise_scheduler.sigmas[num_skipped(request) * noise_scheduler.order])
    return Start(sigma * noise + (1.0 - sigma) * encoded)


def pixels(request: Request, *, like: Tensor) -> Tensor | None:
    """The request's picture (1, 3, H, W) of values from -1 to 1, if it has one."""
    if request.image is None:
        return None
    image = 2.0 * (torch.from_numpy(request.image).float() / 255.0) - 1.0  # (H, W, 3)
    return image.permute(2, 0, 1)[None].to(like)


def pack(latents: Tensor) -> Tensor:
    """Turn latents (B, C, h, w) into tokens (B, h/2 * w/2, 4C), a square of two by two each."""
    batch, channels, height, width = latents.shape
    squares = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // 2 * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Turn tokens (B, h/2 * w/2, 4C) back into latents (B, C, h, w)."""
    batch, _, channels = tokens.shape
    squares = tokens.view(batch, height // 2, width // 2, channels // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)
