"""The family flux: Flux.1, dev with the guidance scale as an input of its denoiser, schnell without.

Knows the pipeline's parts and how its own loop uses them; knows nothing of batches, samplers or threads.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline
from torch import Generator, Tensor

from darkroom_engine.families import base, flow
from darkroom_engine.families.base import Conditioning, Start
from darkroom_engine.families.lora import Adapters
from darkroom_engine.families.text import tokenize
from darkroom_engine.request import Request

# Of the T5 text encoder, as diffusers cuts prompts off unless told otherwise.
T5_TOKENS = 512


class Flux:
    """A loaded pipeline of this family on its device."""

    family: ClassVar[str] = "flux"
    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline", "FluxImg2ImgPipeline")
    components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vae": ("config.json",),
        "text_encoder": ("config.json",),
        "text_encoder_2": ("config.json",),
        "transformer": ("config.json",),
        "tokenizer": ("tokenizer.json", "vocab.json"),
        "tokenizer_2": ("tokenizer.json", "spiece.model"),
        "scheduler": ("scheduler_config.json",),
    }
    optional: ClassVar[frozenset[str]] = frozenset()
    left_out: ClassVar[Mapping[str, Any]] = {"image_encoder": None, "feature_extractor": None}
    is_recordable: ClassVar[bool] = True

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._device = device
        self.vae = pipeline.vae.to(device).eval().requires_grad_(False)
        self.text_encoder = pipeline.text_encoder.to(device).eval().requires_grad_(False)
        self.text_encoder_2 = pipeline.text_encoder_2.to(device).eval().requires_grad_(False)
        self.transformer = pipeline.transformer.to(device).eval().requires_grad_(False)
        self.tokenizer = pipeline.tokenizer
        self.tokenizer_2 = pipeline.tokenizer_2
        self.scheduler_config: Mapping[str, Any] = pipeline.scheduler.config
        self._vae_multiple: int = pipeline.vae_scale_factor
        self.latent_multiple: int = 2 * pipeline.vae_scale_factor
        self.features = frozenset({base.IMAGE_TO_IMAGE, base.LORAS})
        self.adapters = Adapters({"transformer": self.transformer, "text_encoder": self.text_encoder}, FluxPipeline)

    @property
    def num_bytes(self) -> int:
        """Memory of the weights, and of what LoRAs add to them."""
        weights = base.num_bytes(self.vae, self.text_encoder, self.text_encoder_2, self.transformer)
        return weights + self.adapters.num_bytes

    def check(self, request: Request) -> None:
        """Raise InvalidRequest for a LoRA that is not loaded."""
        self.adapters.check(request.loras)

    def batch_key(self, request: Request) -> Hashable:
        """Say what requests must have in common to share a forward: both sides, for positions are told once for all."""
        return (request.height, request.width)

    def num_rows(self, request: Request) -> int:
        """One; where the scale is no input of the denoiser, a negative prompt makes it two (diffusers: true CFG)."""
        is_guided = request.guidance_scale > 1 and request.negative_prompt != ""
        return 2 if is_guided and not self._embeds_guidance else 1

    def timing(self, request: Request) -> Mapping[str, Any]:
        """Say the sigmas, and the shift where the model has one that depends on the size."""
        num_tokens = (request.height // self.latent_multiple) * (request.width // self.latent_multiple)
        sigmas = flow.even_sigmas(request.num_inference_steps)
        return {"sigmas": sigmas, **flow.shift_of(self.scheduler_config, num_tokens)}

    def num_skipped(self, request: Request) -> int:
        """Say how many steps image-to-image leaves out."""
        return flow.num_skipped(request)

    def start(self, request: Request, noise_scheduler: Any, generator: Generator) -> Start:
        """Encode the picture, if any, then draw the noise (1, C, h, w)."""
        encoded = self._encode_picture(request, generator)
        channels = self.transformer.config.in_channels // 4
        like = self.transformer.x_embedder.weight
        noise = flow.noise(request, generator, num_channels=channels, multiple=self._vae_multiple, like=like)
        return flow.start(request, noise_scheduler, noise, encoded=encoded)

    def encode(self, prompt: str, *, is_negative: bool) -> Conditioning:
        """Turn one prompt into T5's embeddings (1, L, D) and CLIP's pooled ones (1, P)."""
        ids, _ = tokenize(self.tokenizer, prompt, self.tokenizer.model_max_length, device=self._device)
        t5_ids, _ = tokenize(self.tokenizer_2, prompt, T5_TOKENS, device=self._device)
        dtype = self.transformer.dtype
        return {
            "encoder_hidden_states": self.text_encoder_2(t5_ids)[0].to(dtype),
            "pooled_projections": self.text_encoder(ids).pooler_output.to(dtype),
        }

    def condition(self, request: Request, positive: Conditioning, negative: Conditioning | None) -> Conditioning:
        """Put together what `denoise` takes, each (num_rows, ...), the negative prompt first."""
        if negative is not None:
            return base.stack([negative, positive])
        if not self._embeds_guidance:
            return positive
        return {**positive, "guidance": torch.tensor([request.guidance_scale]).to(self._device)}

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Put the rows of several requests below each other."""
        return base.stack(conditionings)

    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """One forward over latents (B, C, h, w) and timesteps (B,); every row may be at a timestep of its own."""
        height, width = latents.shape[-2:]
        prediction = self.transformer(
            flow.pack(latents),
            timestep=timesteps.to(latents.dtype) / 1000,
            **conditioning,
            txt_ids=latents.new_zeros(conditioning["encoder_hidden_states"].shape[1], 3),
            img_ids=_places(height // 2, width // 2, like=latents),
            return_dict=False,
        )[0]
        return flow.unpack(prediction, height, width)

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor) -> Tensor:
        """Bring both predictions (B, C, h, w) together."""
        return base.guide(unconditional, conditional, guidance_scale)

    def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Turn latents (B, C, h, w) into pictures (B, 3, H, W) of values from -1 to 1."""
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + self.vae.config.shift_factor
        images: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return images

    @property
    def _embeds_guidance(self) -> bool:
        return bool(self.transformer.config.guidance_embeds)

    def _encode_picture(self, request: Request, generator: Generator) -> Tensor | None:
        pixels = flow.pixels(request, like=self.vae.encoder.conv_in.weight)
        if pixels is None:
            return None
        latents = self.vae.encode(pixels).latent_dist.sample(generator)
        scaled: Tensor = (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        return scaled.to(self.transformer.dtype)


def _places(height: int, width: int, *, like: Tensor) -> Tensor:
    """Where each token is (h * w, 3): nothing, row, column."""
    places = torch.zeros(height, width, 3, device=like.device, dtype=like.dtype)
    places[..., 1] = torch.arange(height, device=like.device)[:, None]
    places[..., 2] = torch.arange(width, device=like.device)[None]
    return places.reshape(-1, 3)
