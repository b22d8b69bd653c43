"""The family qwen-image: Qwen-Image, with an autoencoder of videos and a language model for a text encoder.

Knows the pipeline's parts and how its own loop uses them; knows nothing of batches, samplers or threads.
"""

import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from darkroom_engine.errors import InvalidRequest, UnfitPipeline
from darkroom_engine.families import base, flow
from darkroom_engine.families.base import Conditioning, Start
from darkroom_engine.families.text import RAGGED, mask_of, ragged, stack_ragged
from darkroom_engine.request import Request

# As diffusers cuts prompts off unless told otherwise: once in the tokenizer, once behind the text encoder.
TOKENIZED = 1024
MAX_TOKENS = 512


class QwenImage:
    """A loaded pipeline of this family on its device."""

    family: ClassVar[str] = "qwen-image"
    pipelines: ClassVar[tuple[str, ...]] = ("QwenImagePipeline", "QwenImageImg2ImgPipeline")
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
        if pipeline.transformer.config.guidance_embeds:
            raise UnfitPipeline("its denoiser takes the guidance scale as an input, which this family does not give")
        self._device = device
        self.vae = pipeline.vae.to(device).eval().requires_grad_(False)
        self.text_encoder = pipeline.text_encoder.to(device).eval().requires_grad_(False)
        self.transformer = pipeline.transformer.to(device).eval().requires_grad_(False)
        self.tokenizer = pipeline.tokenizer
        # Of the tokenizer, which breaks when two threads cut prompts off: requests are keyed on any.
        self._tokenizing = threading.Lock()
        self._template: str = pipeline.prompt_template_encode
        self._num_template_tokens: int = pipeline.prompt_template_encode_start_idx
        self.scheduler_config: Mapping[str, Any] = pipeline.scheduler.config
        self._vae_multiple: int = pipeline.vae_scale_factor
        self.latent_multiple: int = 2 * pipeline.vae_scale_factor
        self.features = frozenset({base.IMAGE_TO_IMAGE})

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        return base.num_bytes(self.vae, self.text_encoder, self.transformer)

    def check(self, request: Request) -> None:
        """Refuse a single step where the sigmas must end at one of the model's own: no line goes through one point."""
        if request.num_inference_steps < 2 and self.scheduler_config.get("shift_terminal"):
            raise InvalidRequest("num_inference_steps", f"is {request.num_inference_steps}, and must be at least 2")

    def batch_key(self, request: Request) -> Hashable:
        """Say what requests must have in common to share a forward: both sides; prompts may differ in length.

        Not where a request must be exact: how far its prompt is padded would depend on its neighbours.
        """
        shape = (request.height, request.width)
        if not request.is_exact:
            return shape
        prompts = [request.prompt, request.negative_prompt][: self.num_rows(request)]
        return (*shape, *(self._tokenize(prompt).input_ids.shape[1] for prompt in prompts))

    def num_rows(self, request: Request) -> int:
        """Two with classifier-free guidance (diffusers: true CFG), one without."""
        return 2 if request.guidance_scale > 1 else 1

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
        like = self.transformer.img_in.weight
        noise = flow.noise(request, generator, num_channels=channels, multiple=self._vae_multiple, like=like)
        return flow.start(request, noise_scheduler, noise, encoded=encoded)

    def encode(self, prompt: str, *, is_negative: bool) -> Conditioning:
        """Turn one prompt into the last hidden states (1, L, D) of as many tokens as it has."""
        tokens = self._tokenize(prompt).to(self._device)
        output = self.text_encoder(**tokens, output_hidden_states=True)
        words = output.hidden_states[-1][:, self._num_template_tokens :][:, :MAX_TOKENS]
        return ragged(words.to(self.transformer.dtype))

    def condition(self, request: Request, positive: Conditioning, negative: Conditioning | None) -> Conditioning:
        """Put together what `denoise` takes, each (num_rows, ...), the negative prompt first."""
        return positive if negative is None else stack_ragged([negative, positive])

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Put the rows of several requests below each other, prompts padded to the longest: a mask makes it exact."""
        return stack_ragged(conditionings)

    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """One forward over latents (B, C, h, w) and timesteps (B,); every row may be at a timestep of its own."""
        height, width = latents.shape[-2:]
        prediction = self.transformer(
            flow.pack(latents),
            timestep=timesteps.to(latents.dtype) / 1000,
            encoder_hidden_states=conditioning[RAGGED],
            encoder_hidden_states_mask=mask_of(conditioning),
            img_shapes=[[(1, height // 2, width // 2)]] * len(latents),
            return_dict=False,
        )[0]
        return flow.unpack(prediction, height, width)

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor) -> Tensor:
        """Bring both predictions (B, C, h, w) together; each token keeps the norm that the prompt alone gives it."""
        height, width = conditional.shape[-2:]
        alone = flow.pack(conditional)  # (B, N, 4C)
        guided = flow.pack(base.guide(unconditional, conditional, guidance_scale))
        norms = torch.norm(alone, dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True)
        return flow.unpack(guided * norms, height, width)

    def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Turn latents (B, C, h, w) into pictures (B, 3, H, W) of values from -1 to 1: videos of one frame."""
        latents = latents.to(self.vae.dtype)[:, :, None]  # (B, C, 1, h, w)
        latents = latents / (1.0 / self._channels("latents_std", latents)) + self._channels("latents_mean", latents)
        images: Tensor = self.vae.decode(latents, return_dict=False)[0][:, :, 0]
        return images

    def _encode_picture(self, request: Request, generator: Generator) -> Tensor | None:
        pixels = flow.pixels(request, like=self.vae.encoder.conv_in.weight)
        if pixels is None:
            return None
        latents = self.vae.encode(pixels[:, :, None]).latent_dist.sample(generator)  # (1, C, 1, h, w)
        mean, std = self._channels("latents_mean", latents), self._channels("latents_std", latents)
        scaled: Tensor = (latents - mean) * (1.0 / std)
        return scaled[:, :, 0].to(self.transformer.dtype)

    def _channels(self, name: str, latents: Tensor) -> Tensor:
        return torch.tensor(self.vae.config[name])[None, :, None, None, None].to(latents)  # (1, C, 1, 1, 1)

    def _tokenize(self, prompt: str) -> Any:
        max_length = TOKENIZED + self._num_template_tokens
        words = [self._template.format(prompt)]
        with self._tokenizing:
            return self.tokenizer(words, max_length=max_length, truncation=True, return_tensors="pt")
