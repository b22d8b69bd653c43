"""The family sdxl: Stable Diffusion XL, base and turbo, and whatever else StableDiffusionXLPipeline loads.

Knows the pipeline's parts and how its own loop uses them; knows nothing of batches, samplers or threads.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Generator, Tensor

from darkroom_engine.errors import UnfitPipeline
from darkroom_engine.families import base
from darkroom_engine.families.autoencoder import Autoencoder
from darkroom_engine.families.base import Conditioning, Start
from darkroom_engine.families.lora import Adapters
from darkroom_engine.families.start import num_skipped, start
from darkroom_engine.request import Request

# Height and width of the original, top and left of the crop, height and width of the picture.
NUM_TIME_IDS = 6


class StableDiffusionXL:
    """A loaded pipeline of this family on its device."""

    family: ClassVar[str] = "sdxl"
    pipelines: ClassVar[tuple[str, ...]] = (
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    )
    components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vae": ("config.json",),
        "text_encoder": ("config.json",),
        "text_encoder_2": ("config.json",),
        "unet": ("config.json",),
        "tokenizer": ("tokenizer.json", "vocab.json"),
        "tokenizer_2": ("tokenizer.json", "vocab.json"),
        "scheduler": ("scheduler_config.json",),
    }
    optional: ClassVar[frozenset[str]] = frozenset()
    left_out: ClassVar[Mapping[str, Any]] = {
        "feature_extractor": None,
        "image_encoder": None,
        "add_watermarker": False,
    }
    is_recordable: ClassVar[bool] = True

    def __init__(self, pipeline: StableDiffusionXLPipeline, device: torch.device) -> None:
        self._pipeline = pipeline
        self._device = device
        self.vae = pipeline.vae.to(device).eval().requires_grad_(False)
        self.text_encoder = pipeline.text_encoder.to(device).eval().requires_grad_(False)
        self.text_encoder_2 = pipeline.text_encoder_2.to(device).eval().requires_grad_(False)
        self.unet = pipeline.unet.to(device).eval().requires_grad_(False)
        if self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.to(torch.float32)  # its activations overflow in float16
        self.scheduler_config: Mapping[str, Any] = pipeline.scheduler.config
        self.latent_multiple: int = pipeline.vae_scale_factor
        self.features = frozenset({base.IMAGE_TO_IMAGE, base.INPAINTING, base.LORAS})
        self.adapters = Adapters(
            {"unet": self.unet, "text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2},
            StableDiffusionXLPipeline,
        )
        self._autoencoder = Autoencoder(self.vae)
        self._takes_mask = base.takes_mask(self.unet, self.vae)
        self._check_time_ids()

    @property
    def num_bytes(self) -> int:
        """Memory of the weights, and of what LoRAs add to them."""
        weights = base.num_bytes(self.vae, self.text_encoder, self.text_encoder_2, self.unet)
        return weights + self.adapters.num_bytes

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
        """Turn one prompt into both encoders' last but one hidden states (1, L, D) and the second's pooled (1, P)."""
        embeds, pooled = self._embed([prompt])
        if is_negative and not prompt and self._pipeline.config.force_zeros_for_empty_prompt:
            # It was trained to take zeros where there is no prompt.
            embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
        return {"encoder_hidden_states": embeds, "text_embeds": pooled}

    def encode_together(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Turn several prompts, none of them negative, into what `encode` gives for each, up to rounding."""
        embeds, pooled = self._embed(prompts)
        # Copies: a row of many would keep the memory of all of them.
        return [
            {"encoder_hidden_states": row.clone(), "text_embeds": own_pooled.clone()}
            for row, own_pooled in zip(embeds.split(1), pooled.split(1), strict=True)
        ]

    def _embed(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Give (B, L, D) and (B, P), in the UNet's dtype."""
        hidden_states = []
        encoders = (
            (self._pipeline.tokenizer, self.text_encoder),
            (self._pipeline.tokenizer_2, self.text_encoder_2),
        )
        for tokenizer, text_encoder in encoders:
            tokens = tokenizer(
                list(prompts),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            encoded = text_encoder(tokens.input_ids.to(self._device), output_hidden_states=True)
            hidden_states.append(encoded.hidden_states[-2])
        embeds, pooled = torch.cat(hidden_states, dim=-1), encoded[0]  # (B, L, D), (B, P)
        return embeds.to(self.unet.dtype), pooled.to(self.unet.dtype)

    def condition(self, request: Request, positive: Conditioning, negative: Conditioning | None) -> Conditioning:
        """Put together what `denoise` takes, each (num_rows, ...), the negative prompt first."""
        prompts = [positive] if negative is None else [negative, positive]
        conditioning = {key: torch.cat([prompt[key] for prompt in prompts]) for key in positive}
        size = (request.height, request.width)
        time_ids = torch.tensor([(*size, 0, 0, *size)] * len(prompts), dtype=self.unet.dtype)  # (num_rows, 6)
        conditioning["time_ids"] = time_ids.to(self._device)
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
            added_cond_kwargs={key: conditioning[key] for key in ("text_embeds", "time_ids")},
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

    def _embed_guidance(self, guidance_scale: float) -> Tensor:
        embedding: Tensor = self._pipeline.get_guidance_scale_embedding(
            torch.tensor([guidance_scale - 1]), embedding_dim=self.unet.config.time_cond_proj_dim
        )
        return embedding.to(self._device, self.unet.dtype)

    def _check_time_ids(self) -> None:
        """Refuse a UNet that takes other numbers than the sizes: the refiner's has an aesthetic score among them."""
        num_features = self.unet.add_embedding.linear_1.in_features - self.text_encoder_2.config.projection_dim
        num_time_ids = num_features // self.unet.config.addition_time_embed_dim
        if num_time_ids != NUM_TIME_IDS:
            raise UnfitPipeline(f"the UNet takes {num_time_ids} time ids, and {NUM_TIME_IDS} are known")
