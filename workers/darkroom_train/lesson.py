"""The figures of docs/how-pictures-are-made.md: what each part of a model of family sd does, shown with itself.

Knows the parts and how to lay pictures out; knows no training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Generator, Tensor

from darkroom_engine.families.autoencoder import Autoencoder
from darkroom_engine.families.base import Family
from darkroom_engine.families.sd import StableDiffusion
from darkroom_engine.noising import PARAMETERIZATIONS, NoiseSchedule
from darkroom_train.errors import TrainError
from darkroom_train.sampling import Order, Sampling, generate
from darkroom_train.sheet import contact_sheet

Picture = npt.NDArray[np.uint8]

# How far along the way from the picture to noise a figure looks.
POSITIONS = (0.0, 0.06, 0.12, 0.25, 0.5, 0.999)
STEPS = (1, 2, 4, 8, 12, 20)
GUIDANCE_SCALES = (1.0, 2.0, 3.0, 5.0, 8.0)
# How much of a channel's values is shown: so many standard deviations to both sides of nothing.
SHOWN_DEVIATIONS = 2.5


@dataclass(frozen=True, kw_only=True)
class Example:
    """What the figures are about: prompts of which each says more than the one before, and one starting noise."""

    prompts: Sequence[str]
    seed: int
    size: int
    sampling: Sampling


class Lesson:
    """Draws the figures. Raises TrainError for a model of another family than sd, or one of flow matching."""

    def __init__(self, model: Family, example: Example, device: torch.device) -> None:
        prediction = model.scheduler_config.get("prediction_type", "epsilon")
        if not isinstance(model, StableDiffusion) or prediction not in PARAMETERIZATIONS:
            raise TrainError("the figures are drawn for models of family sd that predict epsilon or v")
        self._model = model
        self._example = example
        self._device = device
        self._autoencoder = Autoencoder(model.vae)
        self._schedule = NoiseSchedule.of(DDIMScheduler.from_config(model.scheduler_config)).to(device)
        self._parameterization = PARAMETERIZATIONS[prediction]

    def figures(self) -> Iterator[tuple[str, Image.Image]]:
        """Give each figure with its name, in the order of the page."""
        with torch.no_grad():
            picture = self._draw(self._prompt)
            latents = self._encode(picture)
            yield "noise", self._noise(latents)
            yield "denoiser", self._denoiser(latents)
            yield "latents", self._latents(picture, latents)
            yield "words", self._words()
            yield "guidance", self._guidance()
            yield "steps", self._steps()

    def _noise(self, latents: Tensor) -> Image.Image:
        """The picture, noised in one step to some timesteps."""
        noisy, timesteps = self._noised(latents)
        captions = [f"timestep {timestep}" for timestep in timesteps]
        return contact_sheet(self._decode(noisy), columns=len(captions), captions=captions)

    def _denoiser(self, latents: Tensor) -> Image.Image:
        """What the denoiser takes for the picture at each of these timesteps, asked once."""
        noisy, timesteps = self._noised(latents)
        prompt_embeds = self._model.encode(self._prompt, is_negative=False)
        conditioning = self._model.stack([prompt_embeds] * len(noisy))
        prediction = self._model.denoise(noisy, timesteps.float(), conditioning)
        denoised = self._parameterization.denoised(noisy, prediction, *self._schedule.scales(timesteps))
        captions = [f"timestep {timestep}" for timestep in timesteps] + ["taken for this"] * len(noisy)
        return contact_sheet([*self._decode(noisy), *self._decode(denoised)], columns=len(timesteps), captions=captions)

    def _latents(self, picture: Picture, latents: Tensor) -> Image.Image:
        """A picture, its latents channel by channel, and the picture that comes back."""
        grays = ((latents[0] / SHOWN_DEVIATIONS).clamp(-1, 1) + 1) * 127.5  # (C, h, w)
        enlarged = [
            np.asarray(
                Image.fromarray(gray.byte().cpu().numpy()).resize(picture.shape[:0:-1], Image.Resampling.NEAREST)
            )
            for gray in grays
        ]
        channels = [np.repeat(gray[None], 3, axis=0) for gray in enlarged]
        names = [f"channel {number}" for number in range(1, len(channels) + 1)]
        return contact_sheet(
            [picture, *channels, *self._decode(latents)],
            columns=len(channels) + 2,
            captions=["picture", *names, "decoded again"],
        )

    def _words(self) -> Image.Image:
        """One noise, and more and more words."""
        prompts = ["", *self._example.prompts]
        captions = [prompt or "(no words)" for prompt in prompts]
        return contact_sheet([self._draw(prompt) for prompt in prompts], columns=len(prompts), captions=captions)

    def _guidance(self) -> Image.Image:
        """One noise and one prompt, at several guidance scales."""
        pictures = [self._draw(self._prompt, guidance_scale=scale) for scale in GUIDANCE_SCALES]
        captions = [f"guidance {scale:g}" for scale in GUIDANCE_SCALES]
        return contact_sheet(pictures, columns=len(pictures), captions=captions)

    def _steps(self) -> Image.Image:
        """One noise and one prompt, in more and more steps."""
        pictures = [self._draw(self._prompt, num_inference_steps=number) for number in STEPS]
        captions = [f"{number} step{'s' if number > 1 else ''}" for number in STEPS]
        return contact_sheet(pictures, columns=len(pictures), captions=captions)

    @property
    def _prompt(self) -> str:
        return self._example.prompts[-1]

    def _draw(
        self, prompt: str, *, guidance_scale: float | None = None, num_inference_steps: int | None = None
    ) -> Picture:
        example = self._example
        sampling = Sampling(
            num_inference_steps or example.sampling.num_inference_steps,
            example.sampling.sampler,
            guidance_scale or example.sampling.guidance_scale,
        )
        order = Order(prompt, example.seed, sampling)
        return generate(self._model, [order], side=example.size, device=self._device)[0]

    def _noised(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        timesteps = self._schedule.timesteps(torch.tensor(POSITIONS, device=self._device))
        noise = torch.randn(latents.shape, generator=Generator().manual_seed(self._example.seed)).to(latents)
        several = latents.repeat(len(timesteps), 1, 1, 1)
        return self._schedule.add_noise(several, noise, timesteps), timesteps

    def _encode(self, picture: Picture) -> Tensor:
        """Give the latents (1, C, h, w) of a picture (3, S, S)."""
        image = torch.from_numpy(picture).to(self._device, torch.float32)[None] / 127.5 - 1
        return self._autoencoder.encode(image, Generator().manual_seed(self._example.seed))

    def _decode(self, latents: Tensor) -> list[Picture]:
        """Give the pictures (3, S, S) of latents (B, C, h, w)."""
        size = (self._example.size, self._example.size)
        images = ((self._model.decode(latents, size).clamp(-1, 1) + 1) * 127.5).round().byte()
        return list(images.cpu().numpy())
