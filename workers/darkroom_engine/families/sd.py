"""The family sd: Stable Diffusion 1.x and 2.x, and whatever else StableDiffusionPipeline loads.

Knows the pipeline's parts and how its own loop uses them; knows nothing of batches, samplers or threads.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionPipeline
from torch import Generator, Tensor

from darkroom_engine.families import base
from darkroom_engine.families.autoencoder import Autoencoder
from darkroom_engine.families.base import Conditioning, Start
from darkroom_engine.families.lora import Adapters
from darkroom_engine.families.start import num_skipped, start
from darkroom_engine.request import Request


class StableDiffusion:
    """A loaded pipeline of this family on its device."""

    family: ClassVar[str] = "sd"
    pipelines: ClassVar[tuple[str, ...]] = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
    )
    components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vae": ("config.json",),
        "text_encoder": ("config.json",),
        "unet": ("config.json",),
        "tokenizer": ("tokenizer.json", "vocab.json"),
        "scheduler": ("scheduler_config.json",),
    }
    optional: ClassVar[frozenset[str]] = frozenset()
    left_out: ClassVar[Mapping[str, Any]] = {
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }
    is_recordable: ClassVar[bool] = True

    def __init__(self, pipeline: StableDiffusionPipeline, device: torch.device) -> None:
        self._pipeline = pipeline
        self._device = device
        self.vae = pipeline.vae.to(device).eval().requires_grad_(False)
        self.text_encoder = pipeline.text_encoder.to(device).eval().requires_grad_(False)
        self.unet = pipeline.unet.to(device).eval().requires_grad_(False)
        self.tokenizer = pipeline.tokenizer
        self.scheduler_config: Mapping[str, Any] = pipeline.scheduler.config
        self.latent_multiple: int = pipeline.vae_scale_factor
        self.features = frozenset({base.IMAGE_TO_IMAGE, base.INPAINTING, base.LORAS})
        self.adapters = Adapters({"unet": self.unet, "text_encoder": self.text_encoder}, StableDiffusionPipeline)
        self._autoencoder = Autoencoder(self.vae)
        self._takes_mask = base.takes_mask(self.unet, self.vae)

    @property
    def num_bytes(self) -> int:
        """Memory of the weights, and of what LoRAs add to them."""
        return base.num_bytes(self.vae, self.text_encoder, self.unet) + self.adapters.num_bytes

    def check(self, request: Request) -> None:
        """Raise InvalidRequest for a LoRA that is not loaded."""
        self.adapters.check(request.loras)

    def batch_key(self, request: Request) -> Hashable:
        """Say what requests must have in common to share a forward: the shape of their latents."""
        return (request.height, request.width)

    def num_rows(self, request: Request) -> int:
        """Two with classifier-free guidance, one without, or where the UNet takes the guidance scale as an input."""
        return 2 if request.guidance_scale > 1 and not self._embeds_guidance else 1

    def timing(self, request: Request) -> Mapping[str, Any]:
        """Nothing beside the number of steps."""
        return {}

    def num_skipped(self, request: Request) -> int:
        """Say how many steps image-to-image leaves out."""
        return num_skipped(request)

    def start(self, request: Request, noise_scheduler: Any, generator: Generator) -> Start:
        """Draw the initial latents (1, C, h, w), on the CPU so that devices agree."""
        return start(
            request,
            noise_scheduler,
            generator,
            autoencoder=self._autoencoder,
            multiple=self.latent_multiple,
            like=self.unet.conv_in.weight,
            takes_mask=self._takes_mask,
        )

    def encode(self, prompt: str, *, is_negative: bool) -> Conditioning:
        """Turn one prompt into the text encoder's last hidden states (1, L, D)."""
        return {"encoder_hidden_states": self._embed([prompt])}

    def encode_together(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Turn several prompts, none of them negative, into what `encode` gives for each, up to rounding."""
        # Copies: a row of many would keep the memory of all of them.
        return [{"encoder_hidden_states": row.clone()} for row in self._embed(prompts).split(1)]

    def condition(self, request: Request, positive: Conditioning, negative: Conditioning | None) -> Conditioning:
        """Put together what `denoise` takes, each (num_rows, ...), the negative prompt first."""
        embeds = positive["encoder_hidden_states"]  # (1, L, D)
        if negative is not None:
            embeds = torch.cat([negative["encoder_hidden_states"], embeds])  # (2, L, D)
        conditioning = {"encoder_hidden_states": embeds}
        if self._embeds_guidance:
            conditioning["timestep_cond"] = self._embed_guidance(request.guidance_scale)  # (1, E)
        return conditioning

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Put the rows of several requests below each other."""
        return base.stack(conditionings)

    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """One UNet forward over latents (B, C, h, w) and timesteps (B,); every row may be at a timestep of its own."""
        if self._takes_mask:
            latents = torch.cat([latents, conditioning["mask"], conditioning["masked_latents"]], dim=1)
        prediction: Tensor = self.unet(
            latents,
            timesteps,
            encoder_hidden_states=conditioning["encoder_hidden_states"],
            timestep_cond=conditioning.get("timestep_cond"),
            return_dict=False,
        )[0]
        return prediction

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor) -> Tensor:
        """Bring both predictions (B, C, h, w) together."""
        return base.guide(unconditional, conditional, guidance_scale)

    def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Turn latents (B, C, h, w) into pictures (B, 3, H, W) of values from -1 to 1."""
        return self._autoencoder.decode(latents)

    @property
    def _embeds_guidance(self) -> bool:
        return self.unet.config.time_cond_proj_dim is not None

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        takes_mask = getattr(self.text_encoder.config, "use_attention_mask", False)
        attention_mask = tokens.attention_mask.to(self._device) if takes_mask else None
        prompt_embeds: Tensor = self.text_encoder(tokens.input_ids.to(self._device), attention_mask=attention_mask)[0]
        return prompt_embeds.to(self.unet.dtype)

    def _embed_guidance(self, guidance_scale: float) -> Tensor:
        embedding: Tensor = self._pipeline.get_guidance_scale_embedding(
            torch.tensor([guidance_scale - 1]), embedding_dim=self.unet.config.time_cond_proj_dim
        )
        return embedding.to(self._device, self.unet.dtype)
