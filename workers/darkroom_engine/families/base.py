"""What the engine asks of a family: the Protocol that each of them meets, and the few values that pass between them.

Knows tensors; knows no batch, no thread and no sampler's formula.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor

from darkroom_engine.request import Request

# What a request may ask beyond text-to-image, as a model publishes it.
IMAGE_TO_IMAGE = "img2img"
INPAINTING = "inpaint"
LORAS = "loras"

Conditioning = Mapping[str, Tensor]


@dataclass(frozen=True)
class Kept:
    """What an inpainting request keeps of its picture where the denoiser itself knows no mask: put back at every step.

    Latents and noise are (1, C, h, w); the mask (1, 1, h, w) is 1 where something new is painted.
    """

    latents: Tensor
    noise: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Start:
    """Where a request's walk begins: its latents (1, ...), noised as its noise_scheduler's first timestep has them."""

    latents: Tensor
    kept: Kept | None = None


class Family(Protocol):
    """A loaded pipeline of one family on its device."""

    family: ClassVar[str]
    # The classes that a model_index.json may name.
    pipelines: ClassVar[tuple[str, ...]]
    # Each part of the pipeline, and the files of which it must have one; parts with a config.json have weights.
    components: ClassVar[Mapping[str, tuple[str, ...]]]
    # Parts that are left out even where the folder has them, and what the pipeline gets in their place.
    left_out: ClassVar[Mapping[str, Any]]
    features: frozenset[str]
    scheduler_config: Mapping[str, Any]
    latent_multiple: int

    def __init__(self, pipeline: Any, device: torch.device) -> None: ...

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""

    def check(self, request: Request) -> None:
        """Raise InvalidRequest for what this model cannot develop and the common checks do not know."""

    def batch_key(self, request: Request) -> Hashable:
        """Say what requests must have in common to share a forward."""

    def num_rows(self, request: Request) -> int:
        """Two with classifier-free guidance, one without, or where the denoiser takes the scale as an input."""

    def timing(self, request: Request) -> Mapping[str, Any]:
        """Say what set_timesteps() is to be given beside the number of steps: sigmas, mu."""

    def num_skipped(self, request: Request) -> int:
        """Of its inference steps, how many a request leaves out at the beginning: image-to-image."""

    def start(self, request: Request, noise_scheduler: Any, generator: Generator) -> Start:
        """Draw the noise, on the CPU so that devices agree, and put it onto the request's picture if it has one."""

    def encode(self, prompt: str, *, is_negative: bool) -> Conditioning:
        """Turn one prompt into embeddings, each (1, ...). The same prompt gives the same embeddings: they are kept."""

    def condition(self, request: Request, positive: Conditioning, negative: Conditioning | None) -> Conditioning:
        """Put together what `denoise` takes, each (num_rows, ...), the negative prompt first."""

    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """One forward over latents (B, ...) and float32 timesteps (B,), each row at a timestep of its own."""

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor) -> Tensor:
        """Bring both predictions (B, ...) together; guidance_scale (B, 1, ...) is each request's own."""

    def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Turn latents (B, ...) into pictures (B, 3, H, W) of values from -1 to 1; `size` is (H, W)."""


def guide(unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6), as most families have it."""
    return unconditional + guidance_scale * (conditional - unconditional)


def num_bytes(*modules: torch.nn.Module) -> int:
    """Memory of the weights and buffers of some modules."""
    return sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())
