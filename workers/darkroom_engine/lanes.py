"""Where latents become pictures beside the step loop: a CUDA stream, or a thread; nothing here waits.

Knows families and tensors; knows no request.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from darkroom_engine.families.base import Family

# As much as four pictures of 1024 x 1024. More at once decode no faster, and their memory is the steps'.
MAX_PIXELS_TOGETHER = 4 * 1024 * 1024


@dataclass(frozen=True)
class Pixels:
    """What came out of a decoder, on the host: uint8 (B, H, W, 3), and which of them are pictures at all, (B,)."""

    values: Tensor
    are_finite: Tensor


class Running(Protocol):
    """A decode under way."""

    @property
    def is_done(self) -> bool: ...

    def pixels(self) -> Pixels:
        """Give what came out, once it is done. Raises what the family or the device raised."""


class Lane(Protocol):
    """Where decodes run, one at a time."""

    def start(self, model: Family, latents: Tensor, size: tuple[int, int]) -> Running: ...

    def close(self) -> None: ...


def open_lane(device: torch.device) -> Lane:
    """Give a device the lane that its decodes run in."""
    return StreamLane(device) if device.type == "cuda" else ThreadLane()


class ThreadLane:
    """A thread, for devices whose work is the processor's own: the steps go on beside it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="darkroom-decode")

    def start(self, model: Family, latents: Tensor, size: tuple[int, int]) -> Running:
        """Decode in the thread."""
        return _InThread(self._thread.submit(_decode, model, latents, size))

    def close(self) -> None:
        """End the thread after the decode that runs."""
        self._thread.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _InThread:
    future: Future[Pixels]

    @property
    def is_done(self) -> bool:
        return self.future.done()

    def pixels(self) -> Pixels:
        return self.future.result()


class StreamLane:
    """A CUDA stream beside the steps' own. Everything is put into it by the engine's thread, and nothing waited for."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def start(self, model: Family, latents: Tensor, size: tuple[int, int]) -> Running:
        """Put a decode and the copy of its pictures, into pinned memory, into the stream."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        latents.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            pixels = _decode(model, latents, size)
            on_host = Pixels(copy_to_host(pixels.values), copy_to_host(pixels.are_finite))
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return _InStream(on_host, copied)

    def close(self) -> None:
        """Do nothing: what the stream still does, nobody waits for."""


@dataclass(frozen=True)
class _InStream:
    on_host: Pixels
    copied: Any

    @property
    def is_done(self) -> bool:
        return bool(self.copied.query())

    def pixels(self) -> Pixels:
        return self.on_host


def copy_to_host(tensor: Tensor) -> Tensor:
    """Copy without waiting: what is put into the same stream later finds it done."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor, non_blocking=True)


@torch.inference_mode()
def _decode(model: Family, latents: Tensor, size: tuple[int, int]) -> Pixels:
    height, width = size
    num_rows = max(1, MAX_PIXELS_TOGETHER // (height * width))
    parts = [_to_pixels(model.decode(some, size), some) for some in latents.split(num_rows)]
    return Pixels(torch.cat([part.values for part in parts]), torch.cat([part.are_finite for part in parts]))


def _to_pixels(images: Tensor, latents: Tensor) -> Pixels:
    """Turn (B, 3, H, W) from -1 to 1 into uint8 (B, H, W, 3), rounded as diffusers rounds."""
    pixels = (images.float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    # The latents too: a decoder may turn what is no number into one.
    are_finite = images.isfinite().flatten(1).all(1) & latents.isfinite().flatten(1).all(1)
    return Pixels(pixels.permute(0, 2, 3, 1).contiguous(), are_finite)
