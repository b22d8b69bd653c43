"""The engine: takes requests from any thread and steps them together on one device, in three calls a tick.

Its thread develops and nothing else: no file, no network, no picture format.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType

import torch

from darkroom_engine.batch import Development, StepBatch, StepOutcome
from darkroom_engine.device import DeviceInfo, describe_device, open_device
from darkroom_engine.errors import (
    DeadlineExceeded,
    DeviceLost,
    EngineError,
    EngineStopped,
    ModelLoadError,
    RequestCanceled,
    RequestFailed,
)
from darkroom_engine.families.base import Family
from darkroom_engine.models import LoadedModel, load_model
from darkroom_engine.request import Handle, Request
from darkroom_engine.runner import ModelRunner
from darkroom_engine.samplers import SAMPLERS
from darkroom_engine.scheduler import Scheduler

logger = logging.getLogger(__name__)

# How long the thread sleeps with nothing to do; a request wakes it. Short enough to show a watchdog that it lives.
IDLE_SECONDS = 1.0


class Engine:
    """One device, its models, and the requests in flight on it.

    Pictures come from `start()`, which runs a thread, or from calling `step()` until it returns False; never from both.
    `num_threads` sets torch's threads for the whole process.
    """

    def __init__(self, device: str = "cpu", max_rows: int = 8, *, num_threads: int | None = None) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}, and must be at least 1")
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        torch_device = open_device(device)
        self.device_info: DeviceInfo = describe_device(torch_device)
        self._runner = ModelRunner(torch_device)
        self._scheduler = Scheduler(max_rows)
        self._models: dict[str, LoadedModel] = {}
        self._inbox: deque[Development] = deque()
        self._wakeup = threading.Condition()  # guards the inbox, the thread and the flag
        self._is_stopped = False
        self._thread: threading.Thread | None = None

    @property
    def models(self) -> Mapping[str, LoadedModel]:
        """The loaded models by name."""
        return MappingProxyType(self._models)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs. A lost device ends it."""
        return self._thread is not None and self._thread.is_alive()

    def load(
        self,
        name: str,
        family: str | None = None,
        *,
        source: str,
        revision: str | None = None,
        dtype: str | None = None,
    ) -> LoadedModel:
        """Load a model onto the device from "seeded:<n>", a folder, or a hub id. Raises ModelLoadError.

        `dtype` is float32 unless said. A family that is named must be the source's own. Only a hub id opens a
        connection.
        """
        model = load_model(name, family, source=source, revision=revision, dtype=dtype, device=self._runner.device)
        return self.add(name, model, source=source)

    def add(self, name: str, model: Family, *, source: str) -> LoadedModel:
        """Take in a model that is in memory already. Raises ModelLoadError when the name is taken."""
        if name in self._models:
            raise ModelLoadError(name, f"a model of that name is loaded already, from {self._models[name].source}")
        self._runner.models[name] = model
        self._models[name] = LoadedModel(
            name=name,
            family=model.family,
            source=source,
            num_bytes=model.num_bytes,
            samplers=tuple(SAMPLERS),
            latent_multiple=model.latent_multiple,
            features=model.features,
        )
        return self._models[name]

    def submit(self, request: Request) -> Handle:
        """Take in a request, from any thread. Raises InvalidRequest, UnknownModel or EngineStopped at once."""
        development = self._runner.prepare(request)
        with self._wakeup:
            if self._is_stopped:
                raise EngineStopped
            self._inbox.append(development)
            self._wakeup.notify()
        return development.handle

    def start(self) -> None:
        """Run the thread that develops. Does nothing when it runs; raises EngineStopped after `stop()`."""
        with self._wakeup:
            if self._is_stopped:
                raise EngineStopped
            if self._thread is None:
                self._thread = threading.Thread(target=self._develop, name="darkroom-engine", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End after the step that runs; requests in flight get EngineStopped. A stopped engine stays stopped."""
        with self._wakeup:
            self._is_stopped = True
            self._wakeup.notify()
        if self._thread is None:
            self._abandon()
        elif self._thread is not threading.current_thread():
            self._thread.join()

    def step(self) -> bool:
        """Run one tick. Returns whether there was a request to step."""
        self._take_in()
        batch = self._scheduler.schedule()
        if batch is None:
            return False
        outcome = self._run(batch)
        self._scheduler.update(batch, outcome)
        self._hand_over(outcome)
        return True

    def _develop(self) -> None:
        try:
            while self._wait_for_work():
                self.step()
        except DeviceLost:
            # Nothing runs on this device any more, and no request is to blame: end, and let the process be replaced.
            logger.critical("the device is lost", exc_info=True)
        finally:
            self._abandon()

    def _wait_for_work(self) -> bool:
        with self._wakeup:
            if not self._inbox and not self._scheduler.developments:
                self._wakeup.wait_for(lambda: self._inbox or self._is_stopped, IDLE_SECONDS)
            return not self._is_stopped

    def _take_in(self) -> None:
        """Bring new requests to the scheduler, and take from it those that were canceled or are too late."""
        while self._inbox:
            self._scheduler.add(self._inbox.popleft())
        now = time.monotonic()
        for development in self._scheduler.developments:
            deadline = development.request.deadline
            if development.handle.is_canceled:
                self._drop(development, RequestCanceled())
            elif deadline is not None and deadline <= now:
                self._drop(development, DeadlineExceeded())

    def _drop(self, development: Development, error: EngineError) -> None:
        self._scheduler.remove([development])
        development.handle.fail(error)

    def _run(self, batch: StepBatch) -> StepOutcome:
        try:
            return self._runner.step(batch)
        except DeviceLost:
            raise
        except Exception as error:
            logger.exception("a step failed")
            return StepOutcome(failures=dict.fromkeys(batch.developments, f"{type(error).__name__}: {error}"))

    def _hand_over(self, outcome: StepOutcome) -> None:
        for development, image in outcome.images.items():
            development.handle.succeed(image, self.device_info.fingerprint)
        for development, reason in outcome.failures.items():
            development.handle.fail(RequestFailed(reason))

    def _abandon(self) -> None:
        """Stop taking requests, and end those in flight."""
        with self._wakeup:
            self._is_stopped = True
            abandoned = [*self._inbox, *self._scheduler.developments]
            self._inbox.clear()
            self._scheduler.remove(abandoned)
        for development in abandoned:
            development.handle.fail(EngineStopped())
