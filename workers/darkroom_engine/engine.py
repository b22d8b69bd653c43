"""The engine: takes requests from any thread and steps them together on one device, in three calls a tick.

Its thread develops and nothing else: no file, no network, no picture format.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import MappingProxyType

import torch

from darkroom_engine.batch import Development, StepBatch, StepOutcome
from darkroom_engine.costs import Tally
from darkroom_engine.decoding import DecodeOutcome, Decoder
from darkroom_engine.device import DeviceInfo, describe_device, open_device
from darkroom_engine.errors import (
    DeadlineExceeded,
    DeviceLost,
    EngineError,
    EngineStopped,
    InvalidSnapshot,
    LoraLoadError,
    ModelLoadError,
    RequestCanceled,
    RequestFailed,
    UnknownModel,
)
from darkroom_engine.families.base import Family, modules_of
from darkroom_engine.families.lora import TakesAdapters
from darkroom_engine.memory import cpu_bound
from darkroom_engine.models import LoadedModel, load_model
from darkroom_engine.request import Handle, Request
from darkroom_engine.residency import Residency
from darkroom_engine.runner import ModelRunner
from darkroom_engine.samplers import samplers_for
from darkroom_engine.scheduler import Scheduler
from darkroom_engine.sources import find_lora
from darkroom_engine.tuning import Tuning, apply_tuning, check_tuning

logger = logging.getLogger(__name__)

# Of a GPU's memory, what weights may take: the rest is left to forwards, decodes and what is in flight.
MODEL_SHARE = 0.7
# How long the thread sleeps with nothing to do; a request wakes it. Short enough to show a watchdog that it lives.
IDLE_SECONDS = 1.0
# How often it looks for a picture that it has nothing else to do than wait for.
DECODE_POLL_SECONDS = 0.001
# What a warm-up may take: enough for a dozen row counts of a few sizes on a device that is worth having.
WARM_UP_SECONDS = 20.0


class Engine:
    """One device, its models, and the requests in flight on it.

    Pictures come from `start()`, which runs a thread, or from calling `step()` until it returns False; never from both.
    `num_threads` sets torch's threads for the whole process. When the models' weights are more than `max_model_bytes`,
    those of the least recently used wait in the host's memory until a request needs them; without it that is
    MODEL_SHARE of a GPU's memory, and elsewhere they all stay.
    """

    def __init__(
        self,
        device: str = "cpu",
        max_rows: int = 8,
        *,
        num_threads: int | None = None,
        max_model_bytes: int | None = None,
    ) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}, and must be at least 1")
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        torch_device = open_device(device)
        self.device_info: DeviceInfo = describe_device(torch_device)
        self._runner = ModelRunner(torch_device)
        self._max_rows = max_rows
        self._scheduler = Scheduler(max_rows)
        self._decoder = Decoder(torch_device, self._runner.models)
        if max_model_bytes is None and torch_device.type == "cuda":
            max_model_bytes = int(MODEL_SHARE * self.device_info.memory_bytes)
        self._residency = Residency(max_model_bytes, on_move=self._runner.forget_addresses)
        self._models: dict[str, LoadedModel] = {}
        self._inbox: deque[Development] = deque()
        self._snapshots: deque[tuple[Handle, Future[bytes]]] = deque()  # wanted
        self._tally = Tally()
        self._wakeup = threading.Condition()  # guards the inbox, the thread and the flag
        self._is_stopped = False
        self._thread: threading.Thread | None = None

    @property
    def models(self) -> Mapping[str, LoadedModel]:
        """The loaded models by name."""
        return MappingProxyType(self._models)

    @property
    def tally(self) -> Tally:
        """How many forwards were run, and how many rows they had: compare two of them to know how it goes."""
        return self._tally

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
        tuning: Tuning | None = None,
    ) -> LoadedModel:
        """Load a model onto the device from "seeded:<n>", a folder, a single .safetensors file, or the hub.

        `dtype` is float32 unless said. A family that is named must be the source's own. On the hub, "<owner>/<name>" is
        a folder, and "<owner>/<name>/<file>.safetensors" a file; only these open a connection. Raises ModelLoadError.
        """
        tuning = tuning or Tuning()
        check_tuning(name, tuning, self._runner.device)
        model = load_model(name, family, source=source, revision=revision, dtype=dtype, device=self._runner.device)
        apply_tuning(name, model, tuning)
        return self.add(name, model, source=source, tuning=tuning)

    def load_lora(self, model: str, name: str, *, source: str, revision: str | None = None) -> None:
        """Load a LoRA that requests for the model may then name, from a .safetensors file, a folder or the hub.

        On the hub it is named "<owner>/<name>", or with its file "<owner>/<name>/<file>.safetensors". Requests in
        flight go on meanwhile. Raises UnknownModel or LoraLoadError.
        """
        if model not in self._models:
            raise UnknownModel(model, tuple(self._models))
        family = self._runner.models[model]
        if not isinstance(family, TakesAdapters):
            raise LoraLoadError(name, f"model {model!r} is of family {family.family!r}, which takes none")
        if self._thread is None:
            self._residency.use(model, busy=())
        elif self._residency.is_parked(model):
            raise LoraLoadError(
                name, f"the weights of model {model!r} wait on the host; load it before the engine starts"
            )
        family.adapters.load(name, find_lora(name, source, revision))
        self._models[model] = replace(self._models[model], num_bytes=family.num_bytes)

    def add(self, name: str, model: Family, *, source: str, tuning: Tuning | None = None) -> LoadedModel:
        """Take in a model that is in memory already. Raises ModelLoadError when the name is taken."""
        if name in self._models:
            raise ModelLoadError(name, f"a model of that name is loaded already, from {self._models[name].source}")
        self._runner.adopt(name, model, tuning or Tuning())
        self._decoder.adopt(name, model)
        self._residency.add(name, modules_of(model))
        if self._runner.device.type == "cpu":
            self._runner.memory[name] = cpu_bound(self.device_info.memory_bytes)
        memory = self._runner.memory.get(name)
        self._models[name] = LoadedModel(
            name=name,
            family=model.family,
            source=source,
            num_bytes=model.num_bytes,
            samplers=tuple(samplers_for(model.scheduler_config)),
            latent_multiple=model.latent_multiple,
            features=model.features,
            max_pixels=memory.max_pixels if memory else None,
        )
        return self._models[name]

    def warm_up(self, name: str, sizes: Sequence[tuple[int, int]], *, seconds: float = WARM_UP_SECONDS) -> LoadedModel:
        """Measure what forwards of some sizes (width, height) cost, and on CUDA the memory they take, before `start()`.

        How many rows run is decided by the costs, and what `max_pixels` of the model is by the memory. Without it the
        costs become known while pictures are developed. It takes about so many seconds, and longer where one forward
        of each size does. Raises UnknownModel, InvalidRequest or whatever the model cannot do.
        """
        if self._thread is not None:
            raise RuntimeError("an engine is warmed up before it is started")
        if name not in self._models:
            raise UnknownModel(name, tuple(self._models))
        self._residency.use(name, busy=())
        for width, height in sizes:
            request = Request(
                model=name,
                prompt="",
                width=width,
                height=height,
                num_inference_steps=2,  # one is too few for some samplers
                guidance_scale=1.0,
                sampler=self._models[name].samplers[0],
                seed=0,
            )
            for cost in self._runner.warm_up(request, max_rows=self._max_rows, seconds=seconds / len(sizes)):
                self._scheduler.costs.record(cost)
        memory = self._runner.memory.get(name)
        self._models[name] = replace(self._models[name], max_pixels=memory.max_pixels if memory else None)
        return self._models[name]

    def submit(self, request: Request) -> Handle:
        """Take in a request, from any thread. Raises InvalidRequest, UnknownModel or EngineStopped at once."""
        return self._accept(self._runner.prepare(request))

    def _accept(self, development: Development) -> Handle:
        with self._wakeup:
            if self._is_stopped:
                raise EngineStopped
            self._inbox.append(development)
            self._wakeup.notify()
        return development.handle

    def snapshot(self, handle: Handle) -> bytes:
        """Write a request down between two of its steps, from any thread; it goes on all the same.

        Restored by an engine with an equal fingerprint, a request that is exact ends in the bit-equal picture; others
        end within the bound of the normal mode. Raises InvalidSnapshot when its walk is over or it is not here, and
        EngineStopped.
        """
        if self._thread is None or self._thread is threading.current_thread():
            return self._take_snapshot(handle)
        taken: Future[bytes] = Future()
        with self._wakeup:
            if self._is_stopped:
                raise EngineStopped
            self._snapshots.append((handle, taken))
            self._wakeup.notify()
        return taken.result()

    def restore(self, snapshot: bytes) -> Handle:
        """Take in a request where a snapshot left it, from any thread.

        Raises InvalidSnapshot, and what `submit` raises.
        """
        return self._accept(self._runner.restore(snapshot))

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
        """Run one tick. Returns whether there was a request to step, or a picture to wait for."""
        self._take_in()
        batch = self._scheduler.schedule()
        if batch is not None:
            self._step(batch)
        elif self._decoder.developments:
            self._wait_for_pictures()
        else:
            return False
        self._hand_over(self._decoder.advance())
        return True

    def _step(self, batch: StepBatch) -> None:
        outcome = self._run(batch)
        if not outcome.is_out_of_memory:
            self._tally = self._tally.plus(batch.num_rows)
        self._scheduler.update(batch, outcome)
        self._decoder.add(outcome.denoised)
        self._decoder.show(batch.developments)
        for development, reason in outcome.failures.items():
            development.handle.fail(RequestFailed(reason))

    def _wait_for_pictures(self) -> None:
        """With nothing to step, sleep until a decode may be done or a request comes."""
        with self._wakeup:
            self._wakeup.wait_for(lambda: self._inbox or self._is_stopped, DECODE_POLL_SECONDS)

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
            if not self._inbox and not self._snapshots and not self._in_flight:
                self._wakeup.wait_for(lambda: self._inbox or self._snapshots or self._is_stopped, IDLE_SECONDS)
            return not self._is_stopped

    @property
    def _in_flight(self) -> tuple[Development, ...]:
        return (*self._scheduler.developments, *self._decoder.developments)

    def _take_in(self) -> None:
        """Bring new requests to the scheduler, and take from it those that were canceled or are too late."""
        while self._inbox:
            self._scheduler.add(self._inbox.popleft())
        while self._snapshots:
            handle, taken = self._snapshots.popleft()
            try:
                taken.set_result(self._take_snapshot(handle))
            except Exception as error:  # whoever asked hears of it; the requests in flight go on
                taken.set_exception(error)
        now = time.monotonic()
        for development in self._in_flight:
            deadline = development.request.deadline
            if development.handle.is_canceled:
                self._drop(development, RequestCanceled())
            elif deadline is not None and deadline <= now:
                self._drop(development, DeadlineExceeded())

    def _take_snapshot(self, handle: Handle) -> bytes:
        for development in (*self._inbox, *self._in_flight):
            if development.handle is handle:
                return self._runner.snapshot(development)
        raise InvalidSnapshot("the request is not in flight here")

    def _drop(self, development: Development, error: EngineError) -> None:
        self._scheduler.remove([development])
        development.handle.fail(error)

    def _run(self, batch: StepBatch) -> StepOutcome:
        try:
            model = batch.developments[0].request.model
            self._residency.use(model, busy=self._decoder.models_in_use)
            return self._runner.step(batch)
        except DeviceLost:
            raise
        except Exception as error:
            logger.exception("a step failed")
            return StepOutcome(failures=dict.fromkeys(batch.developments, f"{type(error).__name__}: {error}"))

    def _hand_over(self, outcome: DecodeOutcome) -> None:
        for development, picture in outcome.pictures.items():
            development.handle.succeed(
                picture.image, self.device_info.fingerprint, walk=picture.walk, rows=development.exact_rows
            )
        for development, reason in outcome.failures.items():
            development.handle.fail(RequestFailed(reason))

    def _abandon(self) -> None:
        """Stop taking requests, and end those in flight."""
        with self._wakeup:
            self._is_stopped = True
            abandoned = [*self._inbox, *self._in_flight]
            self._inbox.clear()
            while self._snapshots:
                self._snapshots.popleft()[1].set_exception(EngineStopped())
            self._scheduler.remove(abandoned)
        self._decoder.close()
        for development in abandoned:
            development.handle.fail(EngineStopped())
