"""How a model uses its device, apart from what it computes: each a switch, all off unless said. Knows no request."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from darkroom_engine.errors import ModelLoadError
from darkroom_engine.families.base import Family, modules_of
from darkroom_engine.models import DTYPES

# Which of PyTorch's attention kernels may be chosen from; math has no limits of shape, and is the slowest.
ATTENTION: Mapping[str, tuple[SDPBackend, ...]] = {
    "cudnn": (SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH),
    "efficient": (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
    "flash": (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH),
    "math": (SDPBackend.MATH,),
}


@dataclass(frozen=True)
class Tuning:
    """What can be switched for a model.

    `attention` names the kernel that is tried first (a key of ATTENTION), None leaves it to PyTorch. `channels_last`
    lays convolutions' weights out as tensor cores read them. `cuda_graphs` records each forward once per shape and row
    count, and replays it: it takes away what launching thousands of kernels costs. `vae_dtype` is the VAE's own dtype.
    """

    attention: str | None = None
    channels_last: bool = False
    cuda_graphs: bool = False
    vae_dtype: str | None = None


def check_tuning(name: str, tuning: Tuning, device: torch.device) -> None:
    """Raise ModelLoadError for a switch that this device does not have."""
    if tuning.attention is not None and tuning.attention not in ATTENTION:
        raise ModelLoadError(name, f"attention {tuning.attention!r} is none of {', '.join(ATTENTION)}")
    if tuning.vae_dtype is not None and tuning.vae_dtype not in DTYPES:
        raise ModelLoadError(name, f"vae_dtype {tuning.vae_dtype!r} is none of {', '.join(DTYPES)}")
    if tuning.cuda_graphs and device.type != "cuda":
        raise ModelLoadError(name, f"cuda_graphs needs a CUDA device, and this one is {device}")


def apply_tuning(name: str, model: Family, tuning: Tuning) -> None:
    """Lay out the weights as the switches say. Raises ModelLoadError for a switch that this model does not have."""
    if tuning.cuda_graphs and not model.is_recordable:
        raise ModelLoadError(name, f"cuda_graphs cannot be had with family {model.family!r}")
    if tuning.channels_last:
        for module in modules_of(model):
            _lay_out(module)
    vae = getattr(model, "vae", None)
    if tuning.vae_dtype is not None and vae is not None:
        vae.to(DTYPES[tuning.vae_dtype])


@contextmanager
def attention_of(tuning: Tuning) -> Iterator[None]:
    """Let attention inside be computed by the kernel that was chosen."""
    if tuning.attention is None:
        yield
        return
    with sdpa_kernel(list(ATTENTION[tuning.attention]), set_priority=True):
        yield


def _lay_out(module: Any) -> None:
    """Lay out the weights of 2-d convolutions; those of others have no such order."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
