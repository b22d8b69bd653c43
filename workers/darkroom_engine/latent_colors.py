"""Colors of latents without the VAE: the linear map from a latent pixel to the color of the picture there.

Good enough to watch a picture emerge, and thousands of times cheaper than a decode. It is fitted to the model's own
VAE, so it holds for whatever VAE a model has. Knows no request.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NUM_SAMPLES = 2
SAMPLE_SIZE = 16


@dataclass(frozen=True)
class LatentColors:
    """The map: `factors` (C + 1, 3), the last row what is added, for colors from -1 to 1. On the host."""

    factors: Tensor

    def paint(self, latents: Tensor) -> "npt.NDArray[np.uint8]":
        """Turn latents (1, C, h, w) on the host into a picture (h, w, 3)."""
        colors = _with_one(latents[0].float().permute(1, 2, 0)) @ self.factors  # (h, w, 3)
        return (colors * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).numpy()


@torch.inference_mode()
def fit_latent_colors(model: Any) -> LatentColors:
    """Fit the map by least squares to what the model's VAE makes of a few soft random latents (some ms on a GPU)."""
    config = model.vae.config
    samples = _soft_noise(config.get("latent_channels") or config["z_dim"])  # (B, C, h, w)
    size = SAMPLE_SIZE * model.latent_multiple
    images = model.decode(samples.to(model.vae.device, model.vae.dtype), (size, size)).float().cpu()  # (B, 3, H, W)
    colors = torch.nn.functional.interpolate(images, size=samples.shape[-2:], mode="area")  # (B, 3, h, w)
    inputs = _with_one(samples.permute(0, 2, 3, 1).flatten(0, 2))  # (B * h * w, C + 1)
    return LatentColors(torch.linalg.lstsq(inputs, colors.permute(0, 2, 3, 1).flatten(0, 2)).solution)


def _soft_noise(num_channels: int) -> Tensor:
    """Latents (B, C, h, w) of size 1 that have shapes, as pictures have: noise of several sizes."""
    generator = Generator().manual_seed(0)
    sizes = (SAMPLE_SIZE // 8, SAMPLE_SIZE // 4, SAMPLE_SIZE // 2, SAMPLE_SIZE)
    layers = [torch.randn((NUM_SAMPLES, num_channels, size, size), generator=generator) for size in sizes]
    whole = (SAMPLE_SIZE, SAMPLE_SIZE)
    blurred = [torch.nn.functional.interpolate(layer, size=whole, mode="bilinear") for layer in layers]
    mixed = torch.stack(blurred).sum(0)
    return mixed / mixed.std()


def _with_one(latents: Tensor) -> Tensor:
    return torch.cat([latents, torch.ones_like(latents[..., :1])], dim=-1)
