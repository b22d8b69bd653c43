"""The family z-image: Z-Image, whose denoiser takes its rows as lists, and guidance on top of the prompt's own.

Knows the pipeline's parts and how its own loop uses them; knows nothing of batches, samplers or threads.
"""

import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from darkroom_engine.families import base, flow
from darkroom_engine.families.base import Conditioning, Start
from darkroom_engine.families.text import COUNTS, RAGGED, ragged, stack_ragged, tokenize
from darkroom_engine.request import Request

# As diffusers cuts prompts off unless told otherwise.
MAX_TOKENS = 512


class ZImage:
    """A loaded pipeline of this family on its device."""

    family: ClassVar[str] = "z-image"
    pipelines: ClassVar[tuple[str, ...]] = ("ZImagePipeline", "ZImageImg2ImgPipeline")
    components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vae": ("config.json",),
        "text_encoder": ("config.json",),
        "transformer": ("config.json",),
        "tokenizer": ("tokenizer.json", "vocab.json"),
        "scheduler": ("scheduler_config.json",),
    }
    optional: ClassVar[frozenset[str]] = frozenset()
    left_out: ClassVar[Mapping[str, Any]] = {}
    is_recordable: ClassVar[bool] = False

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._device = device
        self.vae = pipeline.vae.to(device).eval().requires_grad_(False)
        self.text_encoder = pipeline.text_encoder.to(device).eval().requires_grad_(False)
        self.transformer = pipeline.transformer.to(device).eval().requires_grad_(False)
        self.tokenizer = pipeline.tokenizer
        # Of the tokenizer, which breaks when two threads cut prompts off: requests are keyed on any.
        self._tokenizing = threading.Lock()
        self.scheduler_config: Mapping[str, Any] = pipeline.scheduler.config
        self._vae_multiple: int = pipeline.vae_scale_factor
        self.latent_multiple: int = 2 * pipeline.vae_scale_factor
        self.features = frozenset({base.IMAGE_TO_IMAGE})

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        return base.num_bytes(self.vae, self.text_encoder, self.transformer)

    def check(self, request: Request) -> None:
        """Nothing beyond the common checks."""

    def batch_key(self, request: Request) -> Hashable:
        """Say what requests must have in common to share a forward: both sides; prompts may differ in length.

        Not where a request must be exact: how far its prompt is padded would depend on its neighbours.
        """
        shape = (request.height, request.width)
        if not request.is_exact:
            return shape
        prompts = [request.prompt, request.negative_prompt][: self.num_rows(request)]
        return (*shape, *(int(self._tokenize(prompt)[1].sum()) for prompt in prompts))

    def num_rows(self, request: Request) -> int:
        """Two with any guidance, for its scale counts from 0; one without."""
        return 2 if request.guidance_scale > 0 else 1

    def timing(self, request: Request) -> Mapping[str, Any]:
        """Say the sigmas, and the shift where the model has one that depends on the size."""
        num_tokens = (request.height // self.latent_multiple) * (request.width // self.latent_multiple)
        sigmas = flow.even_sigmas(request.num_inference_steps)
        return {"sigmas": sigmas, **flow.shift_of(self.scheduler_config, num_tokens)}

    def num_skipped(self, request: Request) -> int:
        """Say how many steps image-to-image leaves out."""
        return flow.num_skipped(request)

    def start(self, request: Request, noise_scheduler: Any, generator: Generator) -> Start:
        """Encode the picture, if any, then draw the noise (1, C, h, w), in float32 whatever the denoiser's dtype is."""
        encoded = self._encode_picture(request, generator)
        channels = self.transformer.config.in_channels
        like = torch.empty(0, device=self._device)
        noise = flow.noise(request, generator, num_channels=channels, multiple=self._vae_multiple, like=like)
        return flow.start(request, noise_scheduler, noise, encoded=encoded)

    def encode(self, prompt: str, *, is_negative: bool) -> Conditioning:
        """Turn one prompt into the hidden states before the last (1, L, D) of as many tokens as it has."""
        ids, mask = self._tokenize(prompt)
        output = self.text_encoder(
            input_ids=ids.to(self._device), attention_mask=mask.to(self._device), output_hidden_states=True
        )
        words = mask[0].nonzero()[:, 0].to(self._device)
        return ragged(output.hidden_states[-2][:, words].to(self.transformer.dtype))

    def condition(self, request: Request, positive: Conditioning, negative: Conditioning | None) -> Conditioning:
        """Put together what `denoise` takes, each (num_rows, ...), the negative prompt first."""
        return positive if negative is None else stack_ragged([negative, positive])

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Put the rows of several requests below each other, prompts padded to the longest; `denoise` cuts them."""
        return stack_ragged(conditionings)

    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """One forward over latents (B, C, h, w) and timesteps (B,); every row may be at a timestep of its own."""
        counts = conditioning[COUNTS].tolist()
        predictions = self.transformer(
            list(latents.to(self.transformer.dtype)[:, :, None]),  # (C, 1, h, w) each
            (1000 - timesteps) / 1000,
            [row[:count] for row, count in zip(conditioning[RAGGED], counts, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(list(predictions)).float()[:, :, 0]

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor) -> Tensor:
        """Bring both predictions (B, C, h, w) together: a scale of 0 leaves the prompt's own."""
        return conditional + guidance_scale * (conditional - unconditional)

    def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Turn latents (B, C, h, w) into pictures (B, 3, H, W) of values from -1 to 1."""
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + self.vae.config.shift_factor
        images: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return images

    def _encode_picture(self, request: Request, generator: Generator) -> Tensor | None:
        pixels = flow.pixels(request, like=self.vae.encoder.conv_in.weight)
        if pixels is None:
            return None
        latents = self.vae.encode(pixels).latent_dist.sample(generator)
        scaled: Tensor = (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        return scaled.float()

    def _tokenize(self, prompt: str) -> tuple[Tensor, Tensor]:
        words = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        with self._tokenizing:
            return tokenize(self.tokenizer, words, MAX_TOKENS, device=torch.device("cpu"))
