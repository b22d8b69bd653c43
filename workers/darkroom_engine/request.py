"""What goes into the engine and what comes out: a request, its handle, its progress, its picture. Knows no torch."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from darkroom_engine.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Stage = Literal["waiting", "encode", "denoise", "decode", "done"]

# What a request may ask beyond text-to-image, as a model publishes it.
IMAGE_TO_IMAGE = "img2img"
INPAINTING = "inpaint"
LORAS = "loras"

# The names of the stages as they appear in an output's timings.
_TIMING_NAMES: Mapping[Stage, str] = {"waiting": "wait", "encode": "encode", "denoise": "denoise", "decode": "decode"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture to develop.

    `priority` 0 is interactive and chosen before 1, bulk. `deadline` is a value of `time.monotonic()`.
    `image` (height, width, 3) and `mask` (height, width) are uint8 and of the request's own size: the picture that
    image-to-image begins with, of which `strength` (above 0, at most 1) is replaced; the mask is 255 where something
    new is to be painted, and 0 where the picture stays. `loras` are names of loaded adapters with their weights.
    `is_exact` asks for a picture that does not depend on its neighbours; `num_walk_frames` for as many frames of the
    walk from noise to picture, 0 for none.
    """

    model: str
    prompt: str
    negative_prompt: str = ""
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    seed: int
    priority: int = 0
    deadline: float | None = None
    image: "npt.NDArray[np.uint8] | None" = field(default=None, repr=False, compare=False)
    mask: "npt.NDArray[np.uint8] | None" = field(default=None, repr=False, compare=False)
    strength: float = 1.0
    loras: tuple[tuple[str, float], ...] = ()
    is_exact: bool = False
    num_walk_frames: int = 0


@dataclass(frozen=True)
class Progress:
    """How far a request is. `num_steps` counts denoiser steps, which some samplers have more of than was asked for.

    `changed_at` is the value of `time.monotonic()` when the stage or the step last changed.
    """

    stage: Stage
    step: int
    num_steps: int
    changed_at: float


@dataclass(frozen=True)
class Preview:
    """What a request looked like after a step. `paint` gives a small uint8 picture (h, w, 3), and may wait for it."""

    step: int
    paint: "Callable[[], npt.NDArray[np.uint8]]"


@dataclass(frozen=True)
class Output:
    """A developed picture: `image` is uint8 of shape (height, width, 3); `timings` are seconds per stage.

    `rows` is how many each of its forwards had if it was to be exact, else None; `fingerprint` is the device's.
    `walk` is (frames, h, w, 3), from noise to picture and mostly smaller than it, of a request that asked for one.
    """

    image: "npt.NDArray[np.uint8]"
    seed: int
    sampler: str
    timings: Mapping[str, float]
    num_steps: int
    fingerprint: str
    walk: "npt.NDArray[np.uint8] | None" = None
    rows: int | None = None


class Handle:
    """A submitted request, seen from any thread. Only the engine's own thread moves it on."""

    def __init__(self, request: Request, num_steps: int) -> None:
        self.request = request
        self.progress = Progress("waiting", 0, num_steps, time.monotonic())
        self.is_canceled = False
        self.preview: Preview | None = None
        self.shown_at = 0.0
        self._watched_until = 0.0
        self._timings: dict[str, float] = {}
        self._stage_began_at = self.progress.changed_at
        self._future: Future[Output] = Future()

    @property
    def done(self) -> bool:
        """Whether the picture is there, or will never be."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> Output:
        """Wait for the picture.

        Raises RequestCanceled, DeadlineExceeded, RequestFailed or EngineStopped; TimeoutError after `timeout` seconds.
        """
        return self._future.result(timeout)

    def cancel(self) -> None:
        """Ask the engine to drop the request at its next step. Does nothing to a request that is done."""
        self.is_canceled = True

    def add_done_callback(self, callback: Callable[["Handle"], object]) -> None:
        """Call `callback(handle)` once the request is done, on the engine's thread, so it must be quick.

        A request that is done already calls it at once, on this thread.
        """
        self._future.add_done_callback(lambda _: callback(self))

    def watch(self, seconds: float) -> None:
        """Ask for previews from now on and for so long; the latest is in `preview`."""
        self._watched_until = time.monotonic() + seconds

    def is_watched(self, now: float) -> bool:
        """Whether somebody wants previews."""
        return now < self._watched_until

    def advance(self, stage: Stage, step: int) -> None:
        """Record where the request is now. For the engine only."""
        now = time.monotonic()
        if stage != self.progress.stage:
            self._timings[_TIMING_NAMES[self.progress.stage]] = now - self._stage_began_at
            self._stage_began_at = now
        self.progress = Progress(stage, step, self.progress.num_steps, now)

    def succeed(
        self,
        image: "npt.NDArray[np.uint8]",
        fingerprint: str,
        *,
        walk: "npt.NDArray[np.uint8] | None" = None,
        rows: int | None = None,
    ) -> None:
        """Hand over the picture. For the engine only."""
        self.advance("done", self.progress.step)
        request = self.request
        self._future.set_result(
            Output(
                image, request.seed, request.sampler, self._timings, self.progress.num_steps, fingerprint, walk, rows
            )
        )

    def fail(self, error: EngineError) -> None:
        """End the request without a picture. For the engine only."""
        self.advance("done", self.progress.step)
        self._future.set_exception(error)
