"""An engine without weights: a prompt is an order to it. Knows no torch.

Run as a program it is what a worker's engine process is, around this engine.
"""

import os
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from darkroom_engine.costs import Tally
from darkroom_engine.errors import (
    DeadlineExceeded,
    EngineError,
    EngineStopped,
    InvalidRequest,
    RequestCanceled,
    RequestFailed,
)
from darkroom_engine.request import Handle, Preview, Request
from darkroom_worker.engine_plan import EngineFacts
from darkroom_worker.engine_process import main

TICK_SECONDS = 0.01
CRASH_STEP = 20


class FakeEngine:
    """Develops a gray picture, or the one it began from, in as many ticks as steps, unless the prompt orders otherwise.

    wait:<file>          until the file is there
    first-only:<file>    picture 0 of a job with seed 0 at once, the others when the file is there
    stall:<file>         as wait, but without any sign of progress
    stuck:<file>         as stall, and nothing else moves either: the device hangs
    fail | break         is refused by the engine | raises what nobody expects
    crash                ends the process
    lose-device          ends the engine
    """

    def __init__(self, control: Path) -> None:
        self.tally = Tally()
        self._control = control
        self._lock = threading.Lock()
        self._handles: list[Handle] = []
        self._is_stopped = False
        threading.Thread(target=self._develop, daemon=True).start()

    def submit(self, request: Request) -> Handle:
        if self._is_stopped:
            raise EngineStopped
        if request.prompt == "break":
            raise RuntimeError("nobody expected this")
        if request.width % 2:
            raise InvalidRequest("width", f"is {request.width}, and must be even")
        self._note("began", request)
        handle = Handle(request, request.num_inference_steps)
        with self._lock:
            self._handles.append(handle)
        return handle

    def _develop(self) -> None:
        while not self._is_stopped:
            with self._lock:
                handles = list(self._handles)
            if handles:
                self.tally = self.tally.plus(len(handles))
            for handle in handles:
                self._step(handle)
            with self._lock:
                self._handles = [handle for handle in self._handles if not handle.done]
            time.sleep(TICK_SECONDS)
        for handle in self._handles:
            handle.fail(EngineStopped())

    def _step(self, handle: Handle) -> None:
        request, progress = handle.request, handle.progress
        if handle.is_watched(time.monotonic()):
            handle.preview = Preview(progress.step, partial(_picture, request))
        order, _, file = request.prompt.partition(":")
        if handle.is_canceled:
            self._end(handle, "dropped", RequestCanceled())
        elif request.deadline is not None and request.deadline <= time.monotonic():
            self._end(handle, "overdue", DeadlineExceeded())
        elif order == "fail":
            self._end(handle, "failed", RequestFailed("the latents are not a number"))
        elif order == "crash" and progress.step == CRASH_STEP:
            os._exit(9)
        elif order == "lose-device":
            self._is_stopped = True
        elif order == "crash" or not self._may_end(order, file, request):
            self._move(handle, order, file)
        elif progress.step < request.num_inference_steps:
            handle.advance("denoise", progress.step + 1)
        else:
            handle.succeed(_picture(request), "fake", walk=_walk(request))
            self._note("developed", request)

    def _may_end(self, order: str, file: str, request: Request) -> bool:
        if order == "first-only" and request.seed == 0:
            return True
        return not file or (self._control / file).exists()

    def _move(self, handle: Handle, order: str, file: str) -> None:
        if order not in {"stall", "stuck"} or handle.progress.stage == "waiting":
            handle.advance("denoise", handle.progress.step + 1)
        if order == "stuck":
            while not (self._control / file).exists():
                time.sleep(TICK_SECONDS)

    def _end(self, handle: Handle, word: str, error: EngineError) -> None:
        self._note(word, handle.request)
        handle.fail(error)

    def _note(self, word: str, request: Request) -> None:
        """One line in the journal that all fake engines share; a short append is never torn."""
        with (self._control / "journal").open("a") as journal:
            journal.write(f"{os.getpid()} {word} {request.prompt}\n")


def _picture(request: Request) -> npt.NDArray[np.uint8]:
    """The picture that the request began from, or one as gray as its seed."""
    if request.image is not None:
        return request.image
    return np.full((request.height, request.width, 3), request.seed % 256, np.uint8)


def _walk(request: Request) -> npt.NDArray[np.uint8] | None:
    """Frames from black to the picture."""
    picture = _picture(request).astype(float)
    frames = [picture * n / (request.num_walk_frames - 1) for n in range(request.num_walk_frames)]
    return np.stack(frames).astype(np.uint8) if frames else None


def open_engine(words: Mapping[str, Any]) -> tuple[FakeEngine, EngineFacts]:
    """Open an engine as the worker says, once the file "slow" is not there, unless the file "broken" is."""
    control = Path(words["control"])
    while (control / "slow").exists():
        time.sleep(TICK_SECONDS)
    if (control / "broken").exists():
        raise EngineError("the device is broken")
    return FakeEngine(control), EngineFacts("fake", 0, "fake", ["darkroom-seeded"])


if __name__ == "__main__":
    main(open_engine)
