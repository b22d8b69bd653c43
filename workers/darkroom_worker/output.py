"""Developed pictures on their way out of a worker, through a few processes of its own. Knows jobs; knows no format.

Not through threads: boto3's Python and eight encodes at a time made the engine's steps up to 3.6 times as long.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import structlog

from darkroom.config import Settings
from darkroom.errors import StaleAttempt
from darkroom.jobs import Claim
from darkroom_engine import Output
from darkroom_worker import output_process
from darkroom_worker.errors import OutputLost
from darkroom_worker.output_process import Picture, Place, Stored

logger = structlog.get_logger(__name__)

# Started when they are needed. Each encodes and uploads one picture at a time.
NUM_PROCESSES = 4
# How soon a job that is lost is noticed while it waits.
LOST_SECONDS = 0.5
CLOSE_SECONDS = 2.0

Result = TypeVar("Result")


class Attempt(Protocol):
    """A job in this worker's hands, as far as its output is concerned."""

    claim: Claim
    is_lost: bool


class Outlet:
    """Stores pictures; safe to use from any thread. A future raises StorageError when the storage stayed away."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._processes = self._open()

    def store_picture(self, held: Attempt, n: int, output: Output, *, texts: Mapping[str, str]) -> Future[Stored]:
        """Have picture n and its thumbnail encoded and uploaded."""
        params = held.claim.params
        picture = Picture(n, output.image, params.format, params.quality, texts)
        return self._submit(output_process.store_picture, _place(held), picture)

    def store_walk(self, held: Attempt, frames: npt.NDArray[np.uint8]) -> Future[str]:
        """Have a walk (F, h, w, 3) encoded and uploaded; the future gives its key."""
        return self._submit(output_process.store_walk, _place(held), frames)

    def warm_up(self) -> None:
        """Begin to start a process, for the first picture not to wait for it."""
        self._processes.submit(os.getpid)

    def close(self) -> None:
        """End the processes. One that still stores something ends with this one at the latest."""
        with self._lock:
            shutdown = self._processes.shutdown
        ending = threading.Thread(target=shutdown, kwargs={"cancel_futures": True}, name="outlet", daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)

    def _submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        with self._lock:
            try:
                return self._processes.submit(function, self._settings, *arguments)
            except BrokenProcessPool:
                logger.warning("output_processes_replaced")
                self._processes = self._open()
                return self._processes.submit(function, self._settings, *arguments)

    def _open(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            NUM_PROCESSES,
            # A fork would take over the device's driver, and the locks of threads that it does not have.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=output_process.begin,
            initargs=(self._settings, os.getpid()),
        )


def wait_for(held: Attempt, future: Future[Result]) -> Result:
    """Wait for what is being stored. Raises what it does, StaleAttempt once the job is lost, or OutputLost."""
    while True:
        try:
            return future.result(LOST_SECONDS)
        except TimeoutError:
            if held.is_lost:
                raise StaleAttempt(held.claim.job_id, held.claim.attempt) from None
        except BrokenProcessPool as error:
            raise OutputLost from error


def _place(held: Attempt) -> Place:
    return Place(held.claim.job_id, held.claim.attempt)
