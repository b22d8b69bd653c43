"""Requests between their last step and their picture, and what is seen of those before it.

Puts into the lane what is decoded together, and takes out what is done; decides nothing about steps, and never waits.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from darkroom_engine.batch import Development
from darkroom_engine.families.base import Family
from darkroom_engine.faults import check_device, reason
from darkroom_engine.frames import PREVIEW_PIXELS, Size, preview_latents, shrink, walk_latents, wants_preview
from darkroom_engine.lanes import MAX_PIXELS_TOGETHER, Pixels, Running, copy_to_host, open_lane
from darkroom_engine.latent_colors import LatentColors, fit_latent_colors
from darkroom_engine.request import Preview
from darkroom_engine.tiling import tile_large_pictures

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

logger = logging.getLogger(__name__)

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
    """What is in the lane: the pictures or previews of several requests of one size, or the walk of one."""

    kind: Literal["pictures", "previews", "walk"]
    developments: tuple[Development, ...]
    gather: Callable[[], tuple[Tensor, Size]]  # the latents (B, ...), and at what size they are decoded
    steps: tuple[int, ...] = ()  # of previews


@dataclass(frozen=True)
class Watched:
    """What is to be shown of a request: the latents that its picture is expected to have after a step."""

    step: int
    latents: Tensor  # (1, ...)
    size: Size


class Decoder:
    """Decodes for one device. For the engine's thread alone."""

    def __init__(self, device: torch.device, models: Mapping[str, Family]) -> None:
        self._models = models
        self._colors: dict[str, LatentColors] = {}
        self._lane = open_lane(device)
        self._waiting: dict[Development, None] = {}
        self._alone: set[Development] = set()  # of a decode of several that failed
        self._watched: dict[Development, Watched] = {}
        self._walking: dict[Development, Picture] = {}  # developed, and their walks not yet
        self._running: tuple[Decode, Running] | None = None

    @property
    def developments(self) -> tuple[Development, ...]:
        """Every request that waits for its picture, the oldest first."""
        running = self._running[0] if self._running else None
        decoded = running.developments if running and running.kind == "pictures" else ()
        known = dict.fromkeys((*decoded, *self._walking, *self._waiting))
        return tuple(development for development in known if not development.handle.done)

    @property
    def models_in_use(self) -> set[str]:
        """The models that something is being decoded with, or soon will be."""
        running = self._running[0].developments if self._running else ()
        waiting = (*running, *self._waiting, *self._walking, *self._watched)
        return {development.request.model for development in waiting}

    def adopt(self, name: str, model: Any) -> None:
        """Take in a loaded model. Of one without a VAE of its own nothing is shown before its pictures."""
        vae = getattr(model, "vae", None)
        if vae is None:
            return
        tile_large_pictures(vae)
        if not isinstance(vae, AutoencoderTiny):  # that one is so small that previews are decoded with it
            self._colors[name] = fit_latent_colors(model)

    def add(self, developments: Iterable[Development]) -> None:
        """Take in requests whose denoising has ended."""
        for development in developments:
            development.handle.advance("decode", development.step)
            self._waiting[development] = None

    def show(self, developments: Iterable[Development]) -> None:
        """Give those who watch some of these requests previews, soon. Costs nothing where nobody does."""
        now = time.monotonic()
        for development in developments:
            if wants_preview(development, now):
                try:
                    self._show(development)
                except Exception as error:
                    check_device(error)
                    logger.warning("a preview failed", exc_info=True)  # no picture is worse for it

    def _show(self, development: Development) -> None:
        development.handle.shown_at = time.monotonic()
        latents = preview_latents(development)
        model = self._models[development.request.model]
        if colors := self._colors.get(development.request.model):
            on_host, copied = copy_to_host(latents), _record(latents)
            development.handle.preview = Preview(development.step, partial(_paint, colors, on_host, copied))
        elif hasattr(model, "vae"):
            small, size = shrink(latents, _size(development), PREVIEW_PIXELS)
            self._watched[development] = Watched(development.step, small, size)

    def advance(self) -> DecodeOutcome:
        """Take what came out of the lane, and put in what waits. Raises DeviceLost; other failures are in the outcome.

        A request that is done already, because it was canceled, is dropped on the way.
        """
        outcome = DecodeOutcome()
        if self._running:
            self._collect(*self._running, outcome)
        while self._running is None and (decode_next := self._next()):
            self._start(decode_next, outcome)
        return outcome

    def close(self) -> None:
        """End the lane after the decode that runs."""
        self._lane.close()

    def _next(self) -> Decode | None:
        """Put together what is decoded next: pictures, then previews, then walks; the oldest first."""
        if not (self._waiting or self._watched or self._walking):
            return None
        self._forget_those_done()
        if self._waiting:
            return self._pictures()
        if self._watched:
            return self._previews()
        for development in self._walking:
            return Decode("walk", (development,), partial(walk_latents, development))
        return None

    def _forget_those_done(self) -> None:
        self._waiting = dict.fromkeys(d for d in self._waiting if not d.handle.done)
        self._watched = {d: watched for d, watched in self._watched.items() if not d.handle.done}
        self._walking = {d: picture for d, picture in self._walking.items() if not d.handle.done}

    def _pictures(self) -> Decode:
        """The oldest with others of its model and size, but no exact one: an exact picture is decoded as one row."""
        oldest, *others = self._waiting
        size = _size(oldest)
        together = [oldest]
        if not self._is_alone(oldest):
            key = (oldest.request.model, size)
            together += [d for d in others if not self._is_alone(d) and (d.request.model, _size(d)) == key]
        developments = tuple(together[: max(1, MAX_PIXELS_TOGETHER // (size[0] * size[1]))])
        for development in developments:
            del self._waiting[development]
        latents = [development.latents for development in developments if development.latents is not None]
        return Decode("pictures", developments, lambda: (torch.cat(latents), size))

    def _is_alone(self, development: Development) -> bool:
        return development.request.is_exact or development in self._alone

    def _previews(self) -> Decode:
        oldest, first = next(iter(self._watched.items()))
        key = (oldest.request.model, first.size)
        group = {d: watched for d, watched in self._watched.items() if (d.request.model, watched.size) == key}
        for development in group:
            del self._watched[development]
        latents = [watched.latents for watched in group.values()]
        steps = tuple(watched.step for watched in group.values())
        return Decode("previews", tuple(group), lambda: (torch.cat(latents), first.size), steps)

    def _start(self, decode: Decode, outcome: DecodeOutcome) -> None:
        try:
            model = self._models[decode.developments[0].request.model]
            self._running = (decode, self._lane.start(model, *decode.gather()))
        except Exception as error:
            self._fail(decode, error, outcome)

    def _collect(self, decode: Decode, running: Running, outcome: DecodeOutcome) -> None:
        try:
            if not running.is_done:
                return
            self._running = None
            pixels = running.pixels()
        except Exception as error:
            self._running = None
            self._fail(decode, error, outcome)
            return
        if decode.kind == "pictures":
            self._collect_pictures(decode.developments, pixels, outcome)
        elif decode.kind == "previews":
            for development, step, image in zip(decode.developments, decode.steps, pixels.values, strict=True):
                development.handle.preview = Preview(step, image.numpy)
        else:
            [development] = decode.developments
            picture = self._walking.pop(development)
            self._finish(development, Picture(picture.image, pixels.values.numpy()), outcome)

    def _collect_pictures(self, developments: tuple[Development, ...], pixels: Pixels, outcome: DecodeOutcome) -> None:
        for development, image, is_finite in zip(developments, pixels.values, pixels.are_finite, strict=True):
            if not is_finite:
                self._finish(development, NOT_FINITE, outcome)
            elif development.walk:
                self._walking[development] = Picture(image.numpy())
            else:
                self._finish(development, Picture(image.numpy()), outcome)

    def _fail(self, decode: Decode, error: Exception, outcome: DecodeOutcome) -> None:
        """Where a decode of several fails, decode each alone, so that the request at fault fails alone."""
        check_device(error)
        if decode.kind == "previews":
            logger.warning("previews failed", exc_info=error)
        elif len(decode.developments) > 1:
            logger.warning("a decode of %d pictures failed; they are decoded one by one", len(decode.developments))
            self._alone.update(decode.developments)
            self._waiting = dict.fromkeys((*decode.developments, *self._waiting))
        else:
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


def _size(development: Development) -> Size:
    return development.request.height, development.request.width


def _record(tensor: Tensor) -> Any:
    if not tensor.is_cuda:
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))
    return event


def _paint(colors: LatentColors, latents: Tensor, copied: Any) -> Any:
    """Wait for the latents, on the thread of whoever looks, and paint them."""
    if copied is not None:
        copied.synchronize()
    return colors.paint(latents)
