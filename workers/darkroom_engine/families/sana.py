"""The family sana: Sana, whose pictures have 32 times fewer latents to a side and whose text encoder is Gemma.

Knows the pipeline's parts and how its own loop uses them; knows nothing of batches, samplers or threads.
"""

import inspect
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import SanaPipeline
from torch import Generator, Tensor

from darkroom_engine.families import base, flow
from darkroom_engine.families.base import Conditioning, Start
from darkroom_engine.families.text import tokenize
from darkroom_engine.request import Request

# As diffusers cuts prompts off unless told otherwise.
MAX_TOKENS = 300

# Words put before every prompt, never before a negative one: diffusers' own default.
INSTRUCTION = "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)


class Sana:
    """A loaded pipeline of this family on its device."""

    family: ClassVar[str] = "sana"
    pipelines: ClassVar[tuple[str, ...]] = ("SanaPipeline",)
    components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vae": ("config.json",),
        "text_encoder": ("config.json",),
        "transformer": ("config.json",),
        "tokenizer": ("tokenizer.json", "tokenizer.model"),
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
        self.tokenizer.padding_side = "right"
        self.scheduler_config: Mapping[str, Any] = pipeline.scheduler.config
        self._vae_multiple: int = pipeline.vae_scale_factor
        # The pipeline itself asks for sides that are multiples of 32.
        self.latent_multiple = math.lcm(32, pipeline.vae_scale_factor * self.transformer.config.patch_size)
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
        """Draw the initial latents (1, C, h, w), in float32 whatever the denoiser's dtype is."""
        channels = self.transformer.config.in_channels
        like = torch.empty(0, device=self._device)
        return Start(flow.noise(request, generator, num_channels=channels, multiple=self._vae_multiple, like=like))

    def encode(self, prompt: str, *, is_negative: bool) -> Conditioning:
        """Turn one prompt, in lower case, into Gemma's embeddings (1, L, D) and the mask of its words (1, L)."""
        words, max_length = prompt.lower().strip(), MAX_TOKENS
        if not is_negative:
            words = INSTRUCTION + words
            max_length += len(self.tokenizer.encode(INSTRUCTION)) - 2
        ids, mask = tokenize(self.tokenizer, words, max_length, device=self._device)
        prompt_embeds = self.text_encoder(ids, attention_mask=mask)[0]
        # The first token, then the last ones: the instruction's own are left out.
        kept = [0, *range(max_length - MAX_TOKENS + 1, max_length)]
        return {
            "encoder_hidden_states": prompt_embeds[:, kept].to(self.transformer.dtype),
            "encoder_attention_mask": mask[:, kept],
        }

    def condition(self, request: Request, positive: Conditioning, negative: Conditioning | None) -> Conditioning:
        """Put together what `denoise` takes, each (num_rows, ...), the negative prompt first."""
        return positive if negative is None else base.stack([negative, positive])

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Put the rows of several requests below each other."""
        return base.stack(conditionings)

    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """One forward over latents (B, C, h, w) and timesteps (B,); every row may be at a timestep of its own."""
        prediction: Tensor = self.transformer(
            latents.to(self.transformer.dtype),
            **conditioning,
            timestep=timesteps * self.transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        return prediction.float()[:, : latents.shape[1]]

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor) -> Tensor:
        """Bring both predictions (B, C, h, w) together."""
        return base.guide(unconditional, conditional, guidance_scale)

    def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Turn latents (B, C, h, w) into pictures (B, 3, H, W) of values from -1 to 1."""
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        images: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return images
