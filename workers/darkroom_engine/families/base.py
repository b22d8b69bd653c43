"""What the engine asks of a family: the Protocol that each of them meets, and the few values that pass between them.

Knows tensors; knows no batch, no thread and no sampler's formula.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor

from darkroom_engine.errors import UnfitPipeline
from darkroom_engine.request import IMAGE_TO_IMAGE as IMAGE_TO_IMAGE
from darkroom_engine.request import INPAINTING as INPAINTING
from darkroom_engine.request import LORAS as LORAS
from darkroom_engine.request import Request

Conditioning = Mapping[str, Tensor]


@dataclass(frozen=True)
class Kept:
    """What an inpainting request keeps of its picture where the denoiser itself knows no mask: put back at every step.

    Latents and noise are (1, C, h, w); the mask (1, 1, h, w) is 1 where something new is painted. After each step of
    the request, both are scaled by a pair of `scales`.
    """

    latents: Tensor
    noise: Tensor
    mask: Tensor
    scales: tuple[tuple[float, float], ...]

    def put_back(self, latents: Tensor, step: int) -> Tensor:
        """Put what is kept into latents (1, C, h, w) that have so many steps behind them, as noisy as they are."""
        scale, noise_scale = self.scales[step - 1]
        return (1 - self.mask) * (scale * self.latents + noise_scale * self.noise) + self.mask * latents


@dataclass(frozen=True)
class Start:
    """Where a request's walk begins: its latents (1, ...), noised as its noise_scheduler's first timestep has them.

    `conditioning`, each (1, ...), is what the request's picture adds to each of its rows. `end` is called once the
    request is done, whichever way it ends.
    """

    latents: Tensor
    kept: Kept | None = None
    conditioning: Conditioning = field(default_factory=dict)
    end: Callable[[], object] | None = None


class Family(Protocol):
    """A loaded pipeline of one family on its device."""

    family: ClassVar[str]
    # The classes that a model_index.json may name.
    pipelines: ClassVar[tuple[str, ...]]
    # Each part of the pipeline, and the files of which it must have one; parts with a config.json have weights.
    components: ClassVar[Mapping[str, tuple[str, ...]]]
    # Of these parts, the ones that a folder may lack; the pipeline gets None in their place.
    optional: ClassVar[frozenset[str]]
    # Parts that are left out even where the folder has them, and what the pipeline gets in their place.
    left_out: ClassVar[Mapping[str, Any]]
    # Whether `denoise` launches the same work whatever its inputs hold, so that a recording of it can be replayed.
    is_recordable: ClassVar[bool]
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

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Put the rows of several requests below each other, for one forward."""

    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """One forward over latents (B, ...) and float32 timesteps (B,), each row at a timestep of its own."""

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor) -> Tensor:
        """Bring both predictions (B, ...) together; guidance_scale (B, 1, ...) is each request's own."""

    def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Turn latents (B, ...) into pictures (B, 3, H, W) of values from -1 to 1; `size` is (H, W)."""


def stack(conditionings: Sequence[Conditioning]) -> Conditioning:
    """Put rows of equal shape below each other."""
    return {key: torch.cat([conditioning[key] for conditioning in conditionings]) for key in conditionings[0]}


def guide(unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6), as most families have it."""
    return unconditional + guidance_scale * (conditional - unconditional)


def noise_scales(noise_scheduler: Any, steps: Iterable[int], dtype: torch.dtype) -> tuple[tuple[float, float], ...]:
    """Say how a noise_scheduler that has not stepped yet scales latents and noise before each of some steps.

    Its own add_noise() would do the same, but on a GPU it moves its tables there, and then waits for them at each step.
    """
    scales = []
    for step in steps:
        if not hasattr(noise_scheduler, "add_noise"):  # flow matching: on the straight line between both
            sigma = float(noise_scheduler.sigmas[step])
            scales.append((1.0 - sigma, sigma))
            continue
        # With a begin index it takes the sigma of that place, and need not search for one by timestep.
        begin_index = getattr(noise_scheduler, "begin_index", None)
        if begin_index is not None:
            noise_scheduler.set_begin_index(step)
        latents, noise = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=dtype)
        timesteps = noise_scheduler.timesteps[step].repeat(2)  # (2,)
        scales.append(tuple(noise_scheduler.add_noise(latents, noise, timesteps).tolist()))
        if begin_index is not None:
            noise_scheduler.set_begin_index(begin_index)
    return tuple(scales)


def takes_mask(unet: Any, vae: Any) -> bool:
    """Whether a UNet is made for inpainting, and takes the mask and the masked latents beside the noisy ones.

    Raises UnfitPipeline for one that takes something else.
    """
    num_channels = vae.config.latent_channels
    if unet.config.in_channels not in (num_channels, 2 * num_channels + 1):
        raise UnfitPipeline(
            f"the UNet takes {unet.config.in_channels} channels,"
            f" and with latents of {num_channels} must take {num_channels}, or {2 * num_channels + 1} for inpainting"
        )
    return bool(unet.config.in_channels != num_channels)


def num_bytes(*modules: torch.nn.Module) -> int:
    """Memory of the weights and buffers of some modules."""
    return sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())


def modules_of(model: Family) -> list[torch.nn.Module]:
    """Find the networks that a family holds: in its attributes, or in lists of them."""
    held = (part for parts in vars(model).values() for part in (parts if isinstance(parts, list | tuple) else [parts]))
    return [part for part in held if isinstance(part, torch.nn.Module)]
