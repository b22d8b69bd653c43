"""The family pixart: PixArt alpha and sigma.

Knows the pipeline's parts and how its own loop uses them; knows nothing of batches, samplers or threads.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import PixArtAlphaPipeline
from torch import Generator, Tensor

from darkroom_engine.families import base, flow
from darkroom_engine.families.base import Conditioning, Start
from darkroom_engine.families.text import tokenize
from darkroom_engine.request import Request

# As diffusers cuts prompts off unless told otherwise.
ALPHA_TOKENS = 120
SIGMA_TOKENS = 300


class PixArt:
    """A loaded pipeline of this family on its device."""

    family: ClassVar[str] = "pixart"
    pipelines: ClassVar[tuple[str, ...]] = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vae": ("config.json",),
        "text_encoder": ("config.json",),
        "transformer": ("config.json",),
        "tokenizer": ("tokenizer.json", "spiece.model"),
        "scheduler": ("scheduler_config.json",),
    }
    optional: ClassVar[frozenset[str]] = frozenset()
    left_out: ClassVar[Mapping[str, Any]] = {}
    is_recordable: ClassVar[bool] = True

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._device = device
        self.vae = pipeline.vae.to(device).eval().requires_grad_(False)
        self.text_encoder = pipeline.text_encoder.to(device).eval().requires_grad_(False)
        self.transformer = pipeline.transformer.to(device).eval().requires_grad_(False)
        self.tokenizer = pipeline.tokenizer
        self._max_tokens = ALPHA_TOKENS if isinstance(pipeline, PixArtAlphaPipeline) else SIGMA_TOKENS
        self.scheduler_config: Mapping[str, Any] = pipeline.scheduler.config
        self._vae_multiple: int = pipeline.vae_scale_factor
        self.latent_multiple: int = pipeline.vae_scale_factor * self.transformer.config.patch_size
        self.features: frozenset[str] = frozenset()

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        return base.num_bytes(self.vae, self.text_encoder, self.transformer)

    def check(self, request: Request) -> None:
        """Nothing beyond the common checks."""

    def batch_key(self, request: Request) -> Hashable:
        """Say what requests must have in common to share a forward: the shape of their latents."""
        return (request.height, request.width)

    def num_rows(self, request: Request) -> int:
        """Two with classifier-free guidance, one without."""
        return 2 if request.guidance_scale > 1 else 1

    def timing(self, request: Request) -> Mapping[str, Any]:
        """Nothing beside the number of steps."""
        return {}

    def num_skipped(self, request: Request) -> int:
        """None: diffusers offers no image-to-image."""
        return 0

    def start(self, request: Request, noise_scheduler: Any, generator: Generator) -> Start:
        """Draw the initial latents (1, C, h, w)."""
        channels = self.transformer.config.in_channels
        like = self.transformer.pos_embed.proj.weight
        noise = flow.noise(request, generator, num_channels=channels, multiple=self._vae_multiple, like=like)
        return Start(noise * noise_scheduler.init_noise_sigma)

    def encode(self, prompt: str, *, is_negative: bool) -> Conditioning:
        """Turn one prompt, in lower case, into T5's embeddings (1, L, D) and the mask of its words (1, L)."""
        ids, mask = tokenize(self.tokenizer, prompt.lower().strip(), self._max_tokens, device=self._device)
        prompt_embeds = self.text_encoder(ids, attention_mask=mask)[0]
        return {"encoder_hidden_states": prompt_embeds.to(self.transformer.dtype), "encoder_attention_mask": mask}

    def condition(self, request: Request, positive: Conditioning, negative: Conditioning | None) -> Conditioning:
        """Put together what `denoise` takes, each (num_rows, ...), the negative prompt first."""
        conditioning = dict(positive if negative is None else base.stack([negative, positive]))
        if self.transformer.use_additional_conditions:
            shape = [[request.height, request.width]] * self.num_rows(request)
            resolution = torch.tensor(shape).to(self._device, self.transformer.dtype)
            ratio = torch.tensor([[request.height / request.width]] * self.num_rows(request))
            conditioning["resolution"] = resolution
            conditioning["aspect_ratio"] = ratio.to(self._device, self.transformer.dtype)
        return conditioning

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Put the rows of several requests below each other."""
        return base.stack(conditionings)

    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """One forward over latents (B, C, h, w) and timesteps (B,); every row may be at a timestep of its own."""
        prediction: Tensor = self.transformer(
            latents,
            encoder_hidden_states=conditioning["encoder_hidden_states"],
            encoder_attention_mask=conditioning["encoder_attention_mask"],
            timestep=timesteps,
            added_cond_kwargs={key: conditioning.get(key) for key in ("resolution", "aspect_ratio")},
            return_dict=False,
        )[0]
        # The other half is the variance that it learned, which no sampler here uses.
        return prediction[:, : latents.shape[1]]

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor) -> Tensor:
        """Bring both predictions (B, C, h, w) together."""
        return base.guide(unconditional, conditional, guidance_scale)

    def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Turn latents (B, C, h, w) into pictures (B, 3, H, W) of values from -1 to 1."""
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        images: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return images
