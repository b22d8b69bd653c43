"""The autoencoder stage: pictures to 4 latent channels at an eighth of the size, and back.

AutoencoderTiny without any norm, begun as "shrink and enlarge". GroupNorm would take away the absolute level, which
is exactly what flat colors are.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from darkroom_train.group import Group
from darkroom_train.recipe import AutoencoderRecipe
from darkroom_train.training import Optimization

LATENT_CHANNELS = 4
FACTOR = 8

# The mean over 2x2 pixels in a convolution of stride 2 and padding 1, and a soft blur after doubling.
HALVE = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.25, 0.25], [0.0, 0.25, 0.25]])
BLUR = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
POINT = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
# Colors from 0 to 1 become latents around 0, and come back.
COLOR_SCALE = 3.0
COLOR_MEAN = 0.6
RESIDUAL_SCALE = 0.1

GRADIENT_WEIGHT = 0.5
LATENT_WEIGHT = 0.01


def build_autoencoder(recipe: AutoencoderRecipe, seed: int) -> AutoencoderTiny:
    """Build the autoencoder in its initial state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder = AutoencoderTiny(
            latent_channels=LATENT_CHANNELS,
            encoder_block_out_channels=(recipe.width,) * 4,
            decoder_block_out_channels=(recipe.width,) * 4,
            num_encoder_blocks=recipe.encoder_blocks,
            num_decoder_blocks=recipe.decoder_blocks,
        )
    with torch.no_grad():
        _pass_through(autoencoder.encoder.layers, COLOR_SCALE)
        _pass_through(autoencoder.decoder.layers, 1 / COLOR_SCALE)
        _shift(autoencoder)
    return autoencoder


def _pass_through(layers: nn.Sequential, scale: float) -> None:
    """Let the first three channels carry the colors, unchanged but for being shrunk or enlarged."""
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    for number, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            enlarges = number > 0 and isinstance(layers[number - 1], nn.Upsample)
            kernel = HALVE if layer.stride == (2, 2) else BLUR if enlarges else POINT
            _carry(layer, kernel)
        elif isinstance(layer, AutoencoderTinyBlock):
            layer.conv[-1].weight.mul_(RESIDUAL_SCALE)
            layer.conv[-1].bias.zero_()
    # The encoder's colors are scaled where they leave, the decoder's where they enter.
    scaled = convolutions[-1] if scale > 1 else convolutions[0]
    scaled.weight[:3].mul_(scale)


def _carry(convolution: nn.Conv2d, kernel: Tensor) -> None:
    convolution.weight[:3].zero_()
    for channel in range(3):
        convolution.weight[channel, channel] = kernel
    if convolution.bias is not None:
        convolution.bias.zero_()


def _shift(autoencoder: AutoencoderTiny) -> None:
    autoencoder.encoder.layers[-1].bias[:3] = -COLOR_SCALE * COLOR_MEAN
    autoencoder.decoder.layers[0].bias[:3] = COLOR_MEAN


def encode(autoencoder: AutoencoderTiny, pictures: Tensor) -> Tensor:
    """Turn uint8 pictures (B, 3, H, W) into latents (B, 4, H/8, W/8) of about unit variance."""
    latents: Tensor = autoencoder.encode(to_signed(pictures), return_dict=False)[0]
    return latents


def decode(autoencoder: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Turn latents into uint8 pictures (B, 3, H, W)."""
    pictures: Tensor = autoencoder.decode(latents, return_dict=False)[0]
    return (pictures.float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)


def to_signed(pictures: Tensor) -> Tensor:
    """Turn uint8 into values from -1 to 1."""
    return pictures.float() / 127.5 - 1


def peak_signal_to_noise(pictures: Tensor, others: Tensor) -> float:
    """Compare uint8 pictures, in decibels: the mean over pictures of 10 log10(255^2 / MSE)."""
    errors = (pictures.float() - others.float()).square().mean(dim=(1, 2, 3)).clamp(min=1e-3)
    return float((10 * torch.log10(255**2 / errors)).mean())


def reconstruction_loss(autoencoder: AutoencoderTiny, pictures: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """Compare pictures (B, 3, H, W) from -1 to 1 with what comes back from their latents, a little noise added.

    Absolute error, that of the edges, squared error, and a pull of each latent channel toward mean 0 and deviation 1.
    """
    latents = autoencoder.encode(pictures, return_dict=False)[0].float()
    returned = autoencoder.decode(latents + noise, return_dict=False)[0].float()
    edges = l1_loss(returned.diff(dim=-1), pictures.diff(dim=-1)) + l1_loss(
        returned.diff(dim=-2), pictures.diff(dim=-2)
    )
    deviation, mean = torch.std_mean(latents, dim=(0, 2, 3))
    scale = ((deviation + 1e-4).log().square() + mean.square()).mean()
    colors = l1_loss(returned, pictures) + mse_loss(returned, pictures)
    return {"loss": colors + GRADIENT_WEIGHT * edges + LATENT_WEIGHT * scale, "latent_scale": scale.detach()}


class AutoencoderTraining:
    """The stage as the loop sees it. `pictures` (N, 3, H, W) and `held_out` are uint8, on the device."""

    def __init__(
        self, recipe: AutoencoderRecipe, *, seed: int, pictures: Tensor, held_out: Tensor, group: Group
    ) -> None:
        self.autoencoder = build_autoencoder(recipe, seed).to(group.device)
        self._recipe = recipe
        self._seed = seed
        self._pictures = pictures
        self._held_out = held_out
        self._group = group
        self._device = group.device
        self._optimization = Optimization(self.autoencoder, recipe, group)
        self._loss = torch.compile(reconstruction_loss, dynamic=False) if recipe.compile else reconstruction_loss

    def step(self, number: int, *, progress: float, learning_rate: float) -> Mapping[str, Tensor]:
        """Train on crops, in the last part on whole pictures."""
        generator = self._group.generator(self._seed, number)
        is_whole = progress >= 1 - self._recipe.whole_part
        pictures = to_signed(self._whole(generator) if is_whole else self._crops(generator))
        height, width = pictures.shape[-2] // FACTOR, pictures.shape[-1] // FACTOR
        noise = torch.randn((len(pictures), LATENT_CHANNELS, height, width), generator=generator, device=self._device)
        with self._optimization.autocast():
            losses = self._loss(self.autoencoder, pictures, self._recipe.latent_noise * noise)
        self._optimization.apply(losses["loss"], number, learning_rate=learning_rate)
        return {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def report(self, number: int) -> Mapping[str, float]:
        """Measure held-out pictures, whole."""
        returned, latents = [], []
        for pictures in self._held_out.split(16):
            latents.append(encode(self.autoencoder, pictures))
            returned.append(decode(self.autoencoder, latents[-1]))
        deviations = torch.cat(latents).std(dim=(0, 2, 3))
        return {
            "psnr": peak_signal_to_noise(self._held_out, torch.cat(returned)),
            **{f"deviation_{channel}": float(deviation) for channel, deviation in enumerate(deviations)},
        }

    def state_dict(self) -> dict[str, Any]:
        return {"autoencoder": self.autoencoder.state_dict(), **self._optimization.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.autoencoder.load_state_dict(state["autoencoder"])
        self._optimization.load_state_dict(state)

    def _whole(self, generator: torch.Generator) -> Tensor:
        return self._pictures[self._indices(self._group.share(self._recipe.whole_batch_size), generator)]

    def _crops(self, generator: torch.Generator) -> Tensor:
        """Cut a square at a random place out of each picture."""
        indices = self._indices(self._group.share(self._recipe.batch_size), generator)
        crop, size = self._recipe.crop, self._pictures.shape[-1]
        corners = torch.randint(size - crop + 1, (2, len(indices), 1), generator=generator, device=self._device)
        rows, columns = corners + torch.arange(crop, device=self._device)  # each (B, crop)
        return self._pictures[
            indices[:, None, None, None],
            torch.arange(3, device=self._device)[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]  # (B, 3, crop, crop)

    def _indices(self, batch_size: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self._pictures), (batch_size,), generator=generator, device=self._device)


@torch.no_grad()
def fold_scale(autoencoder: AutoencoderTiny, latents: Tensor) -> None:
    """Bring each latent channel to mean 0 and deviation 1 by changing the weights around the latents.

    Exact but for the decoder's soft clamp, so it is done while the factors are near 1.
    """
    deviation, mean = torch.std_mean(latents, dim=(0, 2, 3))
    leaving, entering = autoencoder.encoder.layers[-1], autoencoder.decoder.layers[0]
    leaving.weight.div_(deviation[:, None, None, None])
    leaving.bias.sub_(mean).div_(deviation)
    # At the border the entering convolution sees zeros, which were 0 before and mean the mean now: a faint difference.
    entering.bias.add_(torch.einsum("oihw,i->o", entering.weight, mean))
    entering.weight.mul_(deviation[None, :, None, None])
