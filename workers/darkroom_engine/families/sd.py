"""The family sd: Stable Diffusion 1.x and 2.x, and whatever else StableDiffusionPipeline loads.

Knows the pipeline's parts and how its own loop uses them; knows nothing of batches, samplers or threads.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Generator, Tensor

from darkroom_engine.errors import ModelLoadError
from darkroom_engine.families.folder import INDEX, ModelFolder, first_sentence
from darkroom_engine.quiet import quiet
from darkroom_engine.request import Request

# Each part, and the files of which it must have one.
COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "vae": ("config.json",),
    "text_encoder": ("config.json",),
    "unet": ("config.json",),
    "tokenizer": ("tokenizer.json", "vocab.json"),
    "scheduler": ("scheduler_config.json",),
}
WEIGHTED = ("vae", "text_encoder", "unet")

# Parts that text-to-image does without, left out even where the folder has them.
LEFT_OUT: Mapping[str, None] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}


def load_folder(name: str, path: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    """Load what save_pretrained wrote. Raises ModelLoadError naming the file and the reason."""
    folder = ModelFolder(name, path)
    foreign = sorted(folder.components - set(COMPONENTS) - set(LEFT_OUT))
    if foreign:
        raise ModelLoadError(name, f"{path / INDEX} has parts that family 'sd' does not know: {', '.join(foreign)}")
    for component, files in COMPONENTS.items():
        folder.check(component, files)
    parts = {component: folder.load_weights(component, dtype) for component in WEIGHTED}
    parts |= {component: folder.load(component) for component in COMPONENTS if component not in WEIGHTED}
    with quiet():
        return StableDiffusionPipeline(**parts, **LEFT_OUT, requires_safety_checker=False)


def download(name: str, repository: str, revision: str | None) -> Path:
    """Bring a pipeline from the hub into its cache, safetensors only, and say where it lies. Raises ModelLoadError."""
    try:
        with quiet():
            return Path(
                StableDiffusionPipeline.download(repository, revision=revision, use_safetensors=True, **LEFT_OUT)
            )
    except Exception as error:  # the hub's client raises network, cache and repository errors of many roots
        problem = first_sentence(error)
        raise ModelLoadError(name, f"{repository} could not be had from the hub: {problem}") from error


class StableDiffusion:
    """A loaded pipeline of this family on its device."""

    family = "sd"

    def __init__(self, pipeline: StableDiffusionPipeline, device: torch.device) -> None:
        self._pipeline = pipeline
        self._device = device
        self.vae = pipeline.vae.to(device).eval().requires_grad_(False)
        self.text_encoder = pipeline.text_encoder.to(device).eval().requires_grad_(False)
        self.unet = pipeline.unet.to(device).eval().requires_grad_(False)
        self.tokenizer = pipeline.tokenizer
        self.scheduler_config: Mapping[str, Any] = pipeline.scheduler.config
        self.latent_multiple: int = pipeline.vae_scale_factor

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        tensors = [
            tensor for module in (self.vae, self.text_encoder, self.unet) for tensor in module.state_dict().values()
        ]
        return sum(tensor.nbytes for tensor in tensors)

    def batch_key(self, request: Request) -> Hashable:
        """Say what requests must have in common to share a forward: the shape of their latents."""
        return (request.height, request.width)

    def num_rows(self, request: Request) -> int:
        """Two with classifier-free guidance, one without, or where the UNet takes the guidance scale as an input."""
        return 2 if request.guidance_scale > 1 and not self._embeds_guidance else 1

    def noise(self, request: Request, generator: Generator) -> Tensor:
        """Draw the initial latents (1, C, h, w), of standard deviation 1, on the CPU, so that devices agree."""
        shape = (
            1,
            self.unet.config.in_channels,
            request.height // self.latent_multiple,
            request.width // self.latent_multiple,
        )
        return torch.randn(shape, generator=generator, dtype=self.unet.dtype).to(self._device)

    def encode(self, request: Request) -> Mapping[str, Tensor]:
        """Turn the prompts into what `denoise` takes, each (num_rows, ...), the negative prompt first."""
        prompt_embeds = self._embed(request.prompt)  # (1, L, D)
        if self.num_rows(request) == 2:
            prompt_embeds = torch.cat([self._embed(request.negative_prompt), prompt_embeds])  # (2, L, D)
        conditioning = {"encoder_hidden_states": prompt_embeds}
        if self._embeds_guidance:
            conditioning["timestep_cond"] = self._embed_guidance(request.guidance_scale)  # (1, E)
        return conditioning

    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        """One UNet forward over latents (B, C, h, w) and timesteps (B,); every row may be at a timestep of its own."""
        prediction: Tensor = self.unet(latents, timesteps, **conditioning, return_dict=False)[0]
        return prediction

    def decode(self, latents: Tensor, generator: Generator) -> Tensor:
        """Turn latents (1, C, h, w) into a picture (3, H, W) of values from -1 to 1."""
        scaled = latents / self.vae.config.scaling_factor
        image: Tensor = self.vae.decode(scaled, return_dict=False, generator=generator)[0][0]
        return image

    @property
    def _embeds_guidance(self) -> bool:
        return self.unet.config.time_cond_proj_dim is not None

    def _embed(self, prompt: str) -> Tensor:
        tokens = self.tokenizer(
            [prompt],
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
