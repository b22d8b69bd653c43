"""Where a UNet family's requests start: from noise, a noised picture, or a picture of which a part is repainted.

Draws from the generator in the order of diffusers' pipelines, so that equal seeds give equal pictures.
"""

from typing import Any

import torch
from torch import Generator, Tensor

from darkroom_engine.families.autoencoder import Autoencoder
from darkroom_engine.families.base import Kept, Start, noise_scales
from darkroom_engine.request import Request


def num_skipped(request: Request) -> int:
    """Of the inference steps, how many image-to-image leaves out: those that a strength below 1 has no use for."""
    if request.image is None:
        return 0
    return request.num_inference_steps - int(request.num_inference_steps * request.strength)


def start(
    request: Request,
    noise_scheduler: Any,
    generator: Generator,
    *,
    autoencoder: Autoencoder,
    multiple: int,
    like: Tensor,
    takes_mask: bool,
) -> Start:
    """Start a request with latents (1, C, h, w), `multiple` times smaller than its picture, of device and dtype `like`.

    A UNet that `takes_mask` is given one for every request: one without a mask of its own repaints everything.
    """
    is_repainted = takes_mask or request.mask is not None
    is_noise_alone = request.image is None or (is_repainted and request.strength == 1)
    is_kept = request.mask is not None and not takes_mask

    shape = (1, autoencoder.num_channels, request.height // multiple, request.width // multiple)
    is_encoded = is_kept or not is_noise_alone
    encoded = autoencoder.encode(_image(request).to(like), generator) if is_encoded else None  # (1, C, h, w)
    noise = torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)
    first_step = num_skipped(request) * noise_scheduler.order
    if encoded is None or is_noise_alone:
        latents = noise * getattr(noise_scheduler, "init_noise_sigma", 1.0)  # of flow matching it is always 1
    else:
        [(scale, noise_scale)] = noise_scales(noise_scheduler, [first_step], like.dtype)
        latents = scale * encoded + noise_scale * noise
    if takes_mask:
        masked = autoencoder.encode((_image(request) * (1 - _mask(request))).to(like), generator)
        return Start(latents, conditioning={"mask": _small_mask(request, latents), "masked_latents": masked})
    if encoded is None or not is_kept:
        return Start(latents)
    if autoencoder.is_random:
        # diffusers encodes the masked picture here too, and has no use for it; what it draws is drawn.
        torch.randn(shape, generator=generator, dtype=like.dtype)
    later_steps = range(first_step + 1, len(noise_scheduler.timesteps))
    scales = (*noise_scales(noise_scheduler, later_steps, like.dtype), (1.0, 0.0))
    return Start(latents, kept=Kept(encoded, noise, _small_mask(request, latents), scales))


def _image(request: Request) -> Tensor:
    """The request's picture (1, 3, H, W) of values from -1 to 1; gray where it has none."""
    if request.image is None:
        return torch.zeros((1, 3, request.height, request.width))
    return 2.0 * (torch.from_numpy(request.image).float() / 255.0).permute(2, 0, 1)[None] - 1.0


def _mask(request: Request) -> Tensor:
    """The request's mask (1, 1, H, W), 1 where something new is painted: everywhere, if it has none."""
    if request.mask is None:
        return torch.ones((1, 1, request.height, request.width))
    return (torch.from_numpy(request.mask)[None, None] >= 128).float()


def _small_mask(request: Request, latents: Tensor) -> Tensor:
    """The mask at the size of the latents (1, 1, h, w)."""
    return torch.nn.functional.interpolate(_mask(request), size=latents.shape[-2:]).to(latents)
