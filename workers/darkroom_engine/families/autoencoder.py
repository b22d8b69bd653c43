"""A VAE, and the scale in which its denoiser has latents. Knows pictures and latents; knows no request."""

from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Generator, Tensor


class Autoencoder:
    """Turns pictures of values from -1 to 1 into latents and back, in the VAE's own dtype."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self._mean = self._statistic("latents_mean", absent=0.0)  # (1, C, 1, 1)
        self._std = self._statistic("latents_std", absent=1.0)

    def encode(self, images: Tensor, generator: Generator) -> Tensor:
        """Turn pictures (B, 3, H, W) into latents (B, C, h, w), drawn from what the VAE gives where that is random."""
        encoded = self._vae.encode(images.to(self._vae.dtype))
        # AutoencoderTiny gives the latents themselves.
        latents: Tensor = encoded.latent_dist.sample(generator) if hasattr(encoded, "latent_dist") else encoded.latents
        latents = latents.to(images.dtype) - self._mean.to(images)
        latents = latents * self._vae.config.scaling_factor / self._std.to(images)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents (B, C, h, w) into pictures (B, 3, H, W)."""
        latents = latents * self._std.to(latents) / self._vae.config.scaling_factor + self._mean.to(latents)
        images: Tensor = self._vae.decode(latents.to(self._vae.dtype), return_dict=False)[0]
        return images

    @property
    def num_channels(self) -> int:
        """Channels of the latents."""
        return int(self._vae.config.latent_channels)

    @property
    def is_random(self) -> bool:
        """Whether `encode` draws from the generator."""
        return not isinstance(self._vae, AutoencoderTiny)

    def _statistic(self, name: str, *, absent: float) -> Tensor:
        values = self._vae.config.get(name) or [absent]
        return torch.tensor(values, device=self._vae.device)[None, :, None, None]
