"""Turns the last latents into pictures beside the step loop, those of one size together; nothing here waits.

On CUDA the decoder runs on a stream of its own and its pictures arrive in pinned memory; elsewhere it has a thread.
"""

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from darkroom_engine.batch import Development
from darkroom_engine.families.base import Family
from darkroom_engine.faults import check_device, reason
from darkroom_engine.frames import walk_latents

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

logger = logging.getLogger(__name__)

# As much as four pictures of 1024 x 1024. More at once decode no faster, and their memory is the steps'.
MAX_PIXELS_TOGETHER = 4 * 1024 * 1024
NOT_FINITE = "the picture is not finite: the denoiser or the decoder overflowed"


@dataclass(frozen=True)
class Picture:
    """What a request gets: uint8 (H, W, 3), and the frames of its walk (F, h, w, 3) if it asked for one."""

    image: "npt.NDArray[np.uint8]"
    walk: "npt.NDArray[np.uint8] | None" = None


@dataclass
class DecodeOutcome:
    """Pictures, and failures with their reasons."""

    pictures: dict[Development, Picture] = field(default_factory=dict)
    failures: dict[Development, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Decode:
    """One call of a family's decoder: the pictures of several requests of one size, or the walk of one."""

    developments: tuple[Development, ...]
    latents: Tensor  # (B, ...)
    size: tuple[int, int]
    is_walk: bool = False


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

    def start(self, model: Family, decode: Decode) -> Running: ...

    def close(self) -> None: ...


class Decoder:
    """The requests between their last step and their picture. For the engine's thread alone."""

    def __init__(self, device: torch.device, models: Mapping[str, Family]) -> None:
        self._models = models
        self._lane: Lane = StreamLane(device) if device.type == "cuda" else ThreadLane()
        self._waiting: dict[Development, None] = {}
        self._alone: set[Development] = set()  # of a decode of several that failed
        self._walking: dict[Development, Picture] = {}  # developed, and their walks not yet
        self._running: tuple[Decode, Running] | None = None

    @property
    def developments(self) -> tuple[Development, ...]:
        """Every request that waits for its picture, the oldest first."""
        running = self._running[0].developments if self._running else ()
        known = dict.fromkeys((*running, *self._walking, *self._waiting))
        return tuple(development for development in known if not development.handle.done)

    def add(self, developments: Iterable[Development]) -> None:
        """Take in requests whose denoising has ended."""
        for development in developments:
            development.handle.advance("decode", development.step)
            self._waiting[development] = None

    def advance(self) -> DecodeOutcome:
        """Take what came out of the lane, and put in what waits. Raises DeviceLost; other failures are in the outcome.

        A request that is done already, because it was canceled, is dropped on the way.
        """
        outcome = DecodeOutcome()
        if self._running and self._running[1].is_done:
            decode, running = self._running
            self._running = None
            self._collect(decode, running, outcome)
        while self._running is None and (decode_next := self._next()):
            self._start(decode_next, outcome)
        return outcome

    def close(self) -> None:
        """End the lane after the decode that runs."""
        self._lane.close()

    def _next(self) -> Decode | None:
        """Put together what is decoded next: pictures before walks, the oldest first."""
        self._waiting = dict.fromkeys(d for d in self._waiting if not d.handle.done)
        self._walking = {d: picture for d, picture in self._walking.items() if not d.handle.done}
        if self._waiting:
            developments = self._group()
            for development in developments:
                del self._waiting[development]
            return Decode(developments, torch.cat([_latents(d) for d in developments]), _size(developments[0]))
        for development in self._walking:
            latents, size = walk_latents(development)
            return Decode((development,), latents, size, is_walk=True)
        return None

    def _group(self) -> tuple[Development, ...]:
        """Who is decoded with the oldest: those of its model and size, but no exact one, whose rows are always one."""
        oldest, *others = self._waiting
        if self._is_alone(oldest):
            return (oldest,)
        height, width = _size(oldest)
        key = (oldest.request.model, height, width)
        alike = [d for d in others if not self._is_alone(d) and (d.request.model, *_size(d)) == key]
        return (oldest, *alike)[: max(1, MAX_PIXELS_TOGETHER // (height * width))]

    def _is_alone(self, development: Development) -> bool:
        return development.request.is_exact or development in self._alone

    def _start(self, decode: Decode, outcome: DecodeOutcome) -> None:
        try:
            model = self._models[decode.developments[0].request.model]
            self._running = (decode, self._lane.start(model, decode))
        except Exception as error:
            self._fail(decode, error, outcome)

    def _collect(self, decode: Decode, running: Running, outcome: DecodeOutcome) -> None:
        try:
            pixels = running.pixels()
        except Exception as error:
            self._fail(decode, error, outcome)
            return
        if decode.is_walk:
            [development] = decode.developments
            if picture := self._walking.pop(development, None):
                self._finish(development, Picture(picture.image, pixels.values.numpy()), outcome)
            return
        for development, image, is_finite in zip(decode.developments, pixels.values, pixels.are_finite, strict=True):
            if not is_finite:
                self._finish(development, NOT_FINITE, outcome)
            elif development.walk:
                self._walking[development] = Picture(image.numpy())
            else:
                self._finish(development, Picture(image.numpy()), outcome)

    def _fail(self, decode: Decode, error: Exception, outcome: DecodeOutcome) -> None:
        """Where a decode of several fails, decode each alone, so that the request at fault fails alone."""
        check_device(error)
        if len(decode.developments) > 1:
            logger.warning("a decode of %d pictures failed; they are decoded one by one", len(decode.developments))
            self._alone.update(decode.developments)
            self._waiting = dict.fromkeys((*decode.developments, *self._waiting))
            return
        logger.error("a decode failed", exc_info=error)
        [development] = decode.developments
        self._walking.pop(development, None)
        self._finish(development, reason(error), outcome)

    def _finish(self, development: Development, ending: Picture | str, outcome: DecodeOutcome) -> None:
        self._alone.discard(development)
        if development.handle.done:
            return
        if isinstance(ending, Picture):
            outcome.pictures[development] = ending
        else:
            outcome.failures[development] = ending


class ThreadLane:
    """A thread, for devices whose work is the processor's own: the steps go on beside it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="darkroom-decode")

    def start(self, model: Family, decode: Decode) -> Running:
        """Decode in the thread."""
        return _InThread(self._thread.submit(_decode, model, decode))

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

    def start(self, model: Family, decode: Decode) -> Running:
        """Put a decode and the copy of its pictures into the stream."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        decode.latents.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            pixels = _decode(model, decode)
            on_host = Pixels(_pinned_copy(pixels.values), _pinned_copy(pixels.are_finite))
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


def _pinned_copy(tensor: Tensor) -> Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


@torch.inference_mode()
def _decode(model: Family, decode: Decode) -> Pixels:
    height, width = decode.size
    num_rows = max(1, MAX_PIXELS_TOGETHER // (height * width))
    parts = [_to_pixels(model.decode(latents, decode.size), latents) for latents in decode.latents.split(num_rows)]
    return Pixels(torch.cat([part.values for part in parts]), torch.cat([part.are_finite for part in parts]))


def _to_pixels(images: Tensor, latents: Tensor) -> Pixels:
    """Turn (B, 3, H, W) from -1 to 1 into uint8 (B, H, W, 3), rounded as diffusers rounds."""
    pixels = (images.float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    # The latents too: a decoder may turn what is no number into one.
    are_finite = images.isfinite().flatten(1).all(1) & latents.isfinite().flatten(1).all(1)
    return Pixels(pixels.permute(0, 2, 3, 1).contiguous(), are_finite)


def _latents(development: Development) -> Tensor:
    assert development.latents is not None
    return development.latents


def _size(development: Development) -> tuple[int, int]:
    return development.request.height, development.request.width
