"""The family sd3: Stable Diffusion 3 and 3.5, with all three of its text encoders or any of them.

Knows the pipeline's parts and how its own loop uses them; knows nothing of batches, samplers or threads.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from darkroom_engine.errors import InvalidRequest
from darkroom_engine.families import base, flow
from darkroom_engine.families.base import Conditioning, Start
from darkroom_engine.families.text import tokenize
from darkroom_engine.request import Request

# Of the T5 text encoder, as diffusers cuts prompts off unless told otherwise.
T5_TOKENS = 256


class StableDiffusion3:
    """A loaded pipeline of this family on its device."""

    family: ClassVar[str] = "sd3"
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline")
    components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vae": ("config.json",),
        "text_encoder": ("config.json",),
        "text_encoder_2": ("config.json",),
        "text_encoder_3": ("config.json",),
        "transformer": ("config.json",),
        "tokenizer": ("tokenizer.json", "vocab.json"),
        "tokenizer_2": ("tokenizer.json", "vocab.json"),
        "tokenizer_3": ("tokenizer.json", "spiece.model"),
        "scheduler": ("scheduler_config.json",),
    }
    optional: ClassVar[frozenset[str]] = frozenset(
        {"text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"}
    )
    left_out: ClassVar[Mapping[str, Any]] = {"image_encoder": None, "feature_extractor": None}
    is_recordable: ClassVar[bool] = True

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._device = device
        self.vae = pipeline.vae.to(device).eval().requires_grad_(False)
        self.transformer = pipeline.transformer.to(device).eval().requires_grad_(False)
        encoders = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3)
        self._text_encoders = [encoder and encoder.to(device).eval().requires_grad_(False) for encoder in encoders]
        self._tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2, pipeline.tokenizer_3)
        self.scheduler_config: Mapping[str, Any] = pipeline.scheduler.config
        self._vae_multiple: int = pipeline.vae_scale_factor
        self.latent_multiple: int = pipeline.vae_scale_factor * self.transformer.config.patch_size
        self.features = frozenset({base.IMAGE_TO_IMAGE})

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        return base.num_bytes(self.vae, self.transformer, *(encoder for encoder in self._text_encoders if encoder))

    def check(self, request: Request) -> None:
        """Refuse sides longer than the table of positions."""
        longest = self.transformer.config.pos_embed_max_size * self.latent_multiple
        for field, size in (("width", request.width), ("height", request.height)):
            if size > longest:
                raise InvalidRequest(field, f"is {size}, and must be at most {longest}")

    def batch_key(self, request: Request) -> Hashable:
        """Say what requests must have in common to share a forward: the shape of their latents."""
        return (request.height, request.width)

    def num_rows(self, request: Request) -> int:
        """Two with classifier-free guidance, one without."""
        return 2 if request.guidance_scale > 1 else 1

    def timing(self, request: Request) -> Mapping[str, Any]:
        """Say the shift, where the model has one that depends on the size."""
        num_tokens = (request.height // self.latent_multiple) * (request.width // self.latent_multiple)
        return flow.shift_of(self.scheduler_config, num_tokens, max_shift=1.16)

    def num_skipped(self, request: Request) -> int:
        """Say how many steps image-to-image leaves out."""
        return flow.num_skipped(request)

    def start(self, request: Request, noise_scheduler: Any, generator: Generator) -> Start:
        """Encode the picture, if any, then draw the noise (1, C, h, w)."""
        encoded = self._encode_picture(request, generator)
        channels = self.transformer.config.in_channels
        like = self.transformer.pos_embed.proj.weight
        noise = flow.noise(request, generator, num_channels=channels, multiple=self._vae_multiple, like=like)
        return flow.start(request, noise_scheduler, noise, encoded=encoded)

    def encode(self, prompt: str, *, is_negative: bool) -> Conditioning:
        """Turn one prompt into embeddings (1, L, D) and pooled ones (1, P); an absent text encoder gives zeros."""
        clip_embeds, pooled = self._embed_by_clips(prompt)
        t5_embeds = self._embed_by_t5(prompt)
        clip_embeds = torch.nn.functional.pad(clip_embeds, (0, t5_embeds.shape[-1] - clip_embeds.shape[-1]))
        prompt_embeds = torch.cat([clip_embeds, t5_embeds], dim=-2)
        dtype = self.transformer.dtype
        return {"encoder_hidden_states": prompt_embeds.to(dtype), "pooled_projections": pooled.to(dtype)}

    def condition(self, request: Request, positive: Conditioning, negative: Conditioning | None) -> Conditioning:
        """Put together what `denoise` takes, each (num_rows, ...), the negative prompt first."""
        return positive if negative is None else base.stack([negative, positive])

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Put the rows of several requests below each other."""
        return base.stack(conditionings)

    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """One forward over latents (B, C, h, w) and timesteps (B,); every row may be at a timestep of its own."""
        prediction: Tensor = self.transformer(latents, timestep=timesteps, **conditioning, return_dict=False)[0]
        return prediction

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor) -> Tensor:
        """Bring both predictions (B, C, h, w) together."""
        return base.guide(unconditional, conditional, guidance_scale)

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
        return scaled.to(self.transformer.dtype)

    def _embed_by_clips(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Embed by the first two text encoders, side by side: (1, L, D) and pooled (1, P)."""
        embedded = [self._embed_by_clip(prompt, number) for number in (0, 1)]
        present = next((pair for pair in embedded if pair is not None), None)
        pooled_width = self.transformer.config.pooled_projection_dim
        if present is None:
            width = self.transformer.config.joint_attention_dim
            return self._zeros(1, 0, width), self._zeros(1, pooled_width)
        # Where one is absent, its width is what the other leaves over: hidden and pooled widths are alike.
        missing = pooled_width - present[1].shape[-1]
        absent = self._zeros(1, present[0].shape[1], missing), self._zeros(1, missing)
        first, second = (pair or absent for pair in embedded)
        return torch.cat([first[0], second[0]], dim=-1), torch.cat([first[1], second[1]], dim=-1)

    def _embed_by_clip(self, prompt: str, number: int) -> tuple[Tensor, Tensor] | None:
        tokenizer, text_encoder = self._tokenizers[number], self._text_encoders[number]
        if text_encoder is None:
            return None
        ids, _ = tokenize(tokenizer, prompt, tokenizer.model_max_length, device=self._device)
        output = text_encoder(ids, output_hidden_states=True)
        return output.hidden_states[-2], output[0]

    def _embed_by_t5(self, prompt: str) -> Tensor:
        tokenizer, text_encoder = self._tokenizers[2], self._text_encoders[2]
        if text_encoder is None:
            return self._zeros(1, T5_TOKENS, self.transformer.config.joint_attention_dim)
        ids, _ = tokenize(tokenizer, prompt, T5_TOKENS, device=self._device)
        embeds: Tensor = text_encoder(ids)[0]
        return embeds

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self._device, dtype=self.transformer.dtype)
