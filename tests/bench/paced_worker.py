"""Run as a program: a real worker whose engine only counts steps, at a fixed pace, and whose pictures go nowhere."""

import os
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from darkroom import logs
from darkroom.catalog import Catalog
from darkroom.config import load_settings
from darkroom.fleet import WorkerFacts
from darkroom_engine.costs import Tally
from darkroom_engine.errors import RequestCanceled
from darkroom_engine.request import Handle, Output, Request
from darkroom_worker.app import open_database, serve
from darkroom_worker.output import Attempt, Outlet
from darkroom_worker.output_process import Stored

PICTURE = np.zeros((8, 8, 3), np.uint8)


class PacedEngine:
    """Advances everything it holds by one step each `step_seconds`, and notes when a canceled request left it."""

    def __init__(self, step_seconds: float) -> None:
        self.tally = Tally()
        self._step_seconds = step_seconds
        self._changed = threading.Condition()
        self._handles: list[Handle] = []
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, request: Request) -> Handle:
        handle = Handle(request, request.num_inference_steps)
        with self._changed:
            self._handles.append(handle)
            self._changed.notify()
        return handle

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._handles)
                handles, self._handles = self._handles, []
            time.sleep(self._step_seconds)
            self.tally = self.tally.plus(len(handles))
            left = [handle for handle in handles if not self._step(handle)]
            with self._changed:
                self._handles += left

    def _step(self, handle: Handle) -> bool:
        """Whether the request is done."""
        if handle.is_canceled:
            print(f"freed {handle.request.seed} {time.time()}", flush=True)
            handle.fail(RequestCanceled())
            return True
        if handle.progress.step + 1 < handle.request.num_inference_steps:
            handle.advance("denoise", handle.progress.step + 1)
            return False
        handle.succeed(PICTURE, "paced")
        return True


class Nowhere(Outlet):
    """Where pictures are dropped, and called stored."""

    def store_picture(self, held: Attempt, n: int, output: Output, *, texts: Mapping[str, str]) -> Future[Stored]:
        """Drop it."""
        dropped: Future[Stored] = Future()
        dropped.set_result(Stored(f"{held.claim.job_id}/{n}", "thumb", "image/png", 0, "", 0.0, 0.0))
        return dropped


def main(step_seconds: float) -> None:
    settings = load_settings()
    logs.configure(settings)
    facts: Mapping[str, Any] = {
        "id": f"paced-{os.getpid()}",
        "host": "here",
        "pid": os.getpid(),
        "device": "paced",
        "device_memory_bytes": 0,
        "fingerprint": "paced",
        "models": [Catalog.load(settings).default.name],  # what a request that names no model gets
        "slots": settings.worker_slots,
        "version": "0",
    }
    engine, outlet = PacedEngine(step_seconds), Nowhere(settings)
    database = open_database(settings)
    serve(settings, database=database, engine=engine, outlet=outlet, facts=WorkerFacts(**facts))


if __name__ == "__main__":
    main(float(sys.argv[1]))
