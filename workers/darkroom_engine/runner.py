"""Runs what the scheduler picked: encodes, one denoiser forward for all, each request's own sampler step.

Knows tensors and families; decides nothing about whose turn it is. A failure ends one request, never its neighbours.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from darkroom_engine.batch import Development, StepBatch, StepOutcome
from darkroom_engine.calibration import measure_costs, measure_memory
from darkroom_engine.costs import ForwardCost
from darkroom_engine.errors import InvalidRequest, InvalidSnapshot, UnknownModel
from darkroom_engine.exact import exact_rows
from darkroom_engine.families.base import Conditioning, Family, Start
from darkroom_engine.families.whole import WholePipeline
from darkroom_engine.faults import check_device, is_out_of_memory, reason
from darkroom_engine.forwards import Forwards
from darkroom_engine.frames import keep_frame
from darkroom_engine.memory import MemoryBound
from darkroom_engine.prompt_cache import PromptCache
from darkroom_engine.request import Handle, Request
from darkroom_engine.samplers import make_noise_scheduler, samplers_for, step_arguments
from darkroom_engine.snapshots import put_back, read_snapshot, take_snapshot
from darkroom_engine.step_table import StepTable, read_step_table
from darkroom_engine.stepping import advance, draws
from darkroom_engine.tuning import Tuning
from darkroom_engine.validation import check_extras, check_pixels, check_request

logger = logging.getLogger(__name__)

# Step tables that are kept, and courses: requests mostly ask for the same few samplers and numbers of steps.
MAX_STEP_TABLES = 256


@dataclass(frozen=True)
class Course:
    """The steps that a request goes. With a step table the noise_scheduler is never stepped, and many may share it."""

    noise_scheduler: Any
    timesteps: Tensor
    step_table: StepTable | None


class ModelRunner:
    """Holds the loaded models of one device and steps batches of requests on it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.models: dict[str, Family] = {}
        self.memory: dict[str, MemoryBound] = {}  # of the models whose prices are known
        self._forwards = Forwards(device)
        self._prompts = PromptCache()
        self._building = threading.Lock()  # of noise_schedulers, and of their step tables
        self._step_tables: dict[Hashable, StepTable | None] = {}
        self._courses: dict[Hashable, Course] = {}

    def adopt(self, name: str, model: Family, tuning: Tuning) -> None:
        """Take in a loaded model, and how it is to use the device."""
        self.models[name] = model
        self._forwards.adopt(model, tuning)

    def forget_addresses(self, name: str) -> None:
        """Drop what remembers where a model's weights lay."""
        self._forwards.forget(self.models[name])

    def prepare(self, request: Request) -> Development:
        """Check a request and give it its own sampler and generator. Safe on any thread; touches no device.

        Raises UnknownModel or InvalidRequest.
        """
        model = self.models.get(request.model)
        if model is None:
            raise UnknownModel(request.model, tuple(self.models))
        max_steps = model.scheduler_config["num_train_timesteps"]
        samplers = samplers_for(model.scheduler_config)
        check_request(request, samplers=samplers, latent_multiple=model.latent_multiple, max_steps=max_steps)
        check_extras(request, features=model.features)
        memory = self.memory.get(request.model)
        num_pixels = request.width * request.height
        if memory:
            check_pixels(request, memory.max_pixels)
        model.check(request)
        num_skipped = model.num_skipped(request)
        if num_skipped == request.num_inference_steps:
            steps = request.num_inference_steps
            raise InvalidRequest("strength", f"is {request.strength}, and leaves not one of {steps} steps")
        with self._building:
            course = self._course(model, request, num_skipped)
        generator = Generator().manual_seed(request.seed)
        return Development(
            request=request,
            handle=Handle(request, len(course.timesteps)),
            batch_key=(request.model, request.loras, model.batch_key(request)),
            num_rows=model.num_rows(request),
            noise_scheduler=course.noise_scheduler,
            timesteps=course.timesteps,
            step_arguments=step_arguments(course.noise_scheduler, generator),
            generator=generator,
            step_table=course.step_table,
            max_rows=memory.max_rows(num_pixels) if memory else None,
            exact_rows=exact_rows(request.width, request.height) if request.is_exact else None,
        )

    @torch.inference_mode()
    def warm_up(self, request: Request, *, max_rows: int, seconds: float) -> list[ForwardCost]:
        """Measure forwards of a request's shape, and on CUDA the memory they take. For before any request is stepped.

        Raises what prepare() raises, and whatever the model does.
        """
        development = self.prepare(request)
        model = self.models[request.model]
        if isinstance(model, WholePipeline):
            return []  # it has no forwards that could be run by themselves
        self._start(model, development)
        costs = measure_costs(model, development, self._forwards, max_rows=max_rows, seconds=seconds)
        if self.device.type == "cuda":
            bound = measure_memory(model, development, self._forwards)
            known = self.memory.get(request.model)
            self.memory[request.model] = bound.stricter(known) if known else bound
        return costs

    def _course(self, model: Family, request: Request, num_skipped: int) -> Course:
        """Lay out a request's steps; those that tables say are laid out once for all requests that ask for the same."""
        size = (request.width, request.height) if model.timing(request) else None
        key = (request.model, request.sampler, request.num_inference_steps, num_skipped, size)
        if key in self._courses:
            return self._courses[key]
        make = partial(_make_noise_scheduler, model, request)
        noise_scheduler = make()
        timesteps = noise_scheduler.timesteps[num_skipped * noise_scheduler.order :]
        course = Course(noise_scheduler, timesteps, self._step_table(request, noise_scheduler, timesteps, make))
        if course.step_table is not None:
            self._courses[key] = course
            if len(self._courses) > MAX_STEP_TABLES:
                del self._courses[next(iter(self._courses))]
        return course

    def _step_table(
        self, request: Request, noise_scheduler: Any, timesteps: Tensor, make: Callable[[], Any]
    ) -> StepTable | None:
        """Read the sampler's steps off a noise_scheduler of its own, once for all requests that step alike."""
        sigmas = getattr(noise_scheduler, "sigmas", timesteps)
        key = (request.model, request.sampler, tuple(timesteps.tolist()), tuple(sigmas.tolist()))
        if key not in self._step_tables:
            self._step_tables[key] = read_step_table(make(), timesteps)
            if len(self._step_tables) > MAX_STEP_TABLES:
                del self._step_tables[next(iter(self._step_tables))]
        return self._step_tables[key]

    @torch.inference_mode()
    def step(self, batch: StepBatch) -> StepOutcome:
        """Bring every request of the batch one denoiser step further, the new ones encoded.

        Raises DeviceLost; every other failure is in the outcome.
        """
        outcome = StepOutcome()
        model = self.models[batch.developments[0].request.model]
        # Asked by name: isinstance() of a Protocol takes 30 us, a tenth of what a step may cost the host.
        if adapters := getattr(model, "adapters", None):
            adapters.activate(batch.developments[0].request.loras)
        newcomers = [development for development in batch.developments if development.conditioning is None]
        if len(newcomers) > 1:
            self._encode_prompts_together(model, newcomers)
        for development in newcomers:
            self._encode(model, development, outcome)
        # Those of two rows first: both rows of all of them are then found by their places.
        in_order = sorted(batch.developments, key=lambda development: -development.num_rows)
        self._denoise(model, [d for d in in_order if d not in outcome.failures], batch.exact_rows, outcome)
        for development in batch.developments:
            if development not in outcome.failures:
                self._note(development, outcome)
        outcome.costs = self._forwards.costs()
        return outcome

    def _encode(self, model: Family, development: Development, outcome: StepOutcome) -> None:
        development.handle.advance("encode", 0)
        with self._isolated(development, outcome):
            self._start(model, development)
            development.handle.advance("denoise", development.step)

    def _encode_prompts_together(self, model: Family, newcomers: Sequence[Development]) -> None:
        """Encode the prompts of several requests in one go, where the family can: it takes little longer than one.

        Not those of exact requests, whose embeddings would differ in the last bits.
        """
        encode_together = getattr(model, "encode_together", None)
        prompts = {
            _prompt_key(development.request, development.request.prompt, is_negative=False): development.request.prompt
            for development in newcomers
            if not development.request.is_exact
        }
        new = {key: prompt for key, prompt in prompts.items() if key not in self._prompts}
        if encode_together is None or len(new) < 2:
            return
        try:
            embeddings = encode_together(list(new.values()))
        except Exception as error:
            check_device(error)
            logger.warning("encoding %d prompts together failed; each is encoded alone", len(new), exc_info=True)
            return
        for key, embedding in zip(new, embeddings, strict=True):
            self._prompts.put(key, embedding)

    def _start(self, model: Family, development: Development) -> None:
        start = model.start(development.request, development.noise_scheduler, development.generator)
        development.latents, development.kept = start.latents, start.kept
        if end := start.end:
            development.handle.add_done_callback(lambda _: end())
        development.conditioning = {**self._condition(model, development), **_for_each_row(development, start)}
        keep_frame(development)
        if development.snapshot is not None:
            put_back(development.snapshot, development)
            development.snapshot = None

    def _condition(self, model: Family, development: Development) -> Conditioning:
        request = development.request

        def embeddings(prompt: str, *, is_negative: bool) -> Conditioning:
            key = _prompt_key(request, prompt, is_negative=is_negative)
            return self._prompts.get(key, partial(model.encode, prompt, is_negative=is_negative))

        positive = embeddings(request.prompt, is_negative=False)
        has_negative = development.num_rows == 2
        negative = embeddings(request.negative_prompt, is_negative=True) if has_negative else None
        return model.condition(request, positive, negative)

    def snapshot(self, development: Development) -> bytes:
        """Write a development down. Raises InvalidSnapshot when its walk is over, or its sampler has no words."""
        if development.step == development.num_steps:
            raise InvalidSnapshot("its walk is over")
        fresh = None
        if development.step_table is None:  # else its noise_scheduler has nothing to remember
            with self._building:
                fresh = _make_noise_scheduler(self.models[development.request.model], development.request)
        return take_snapshot(development, fresh)

    def restore(self, snapshot: bytes) -> Development:
        """Prepare a request that goes on where a snapshot was taken.

        Raises InvalidSnapshot, and what `prepare` raises.
        """
        read = read_snapshot(snapshot)
        development = self.prepare(read.request)
        development.snapshot = read
        return development

    def _denoise(
        self, model: Family, developments: Sequence[Development], exact_rows: int | None, outcome: StepOutcome
    ) -> None:
        """One forward for all. Where it fails, one for each, so that the request at fault fails alone."""
        if not developments:
            return
        try:
            prediction = self._forwards.run(model, developments, exact_rows)
        except Exception as error:
            check_device(error)
            if len(developments) == 1 or (exact_rows and is_out_of_memory(error)):
                # The rows of a forward that must be exact cannot be halved; the neighbors are tried again without it.
                exact = [development for development in developments if development.exact_rows]
                outcome.failures[(exact or developments)[0]] = reason(error)
                logger.exception("a request failed")
            elif is_out_of_memory(error):
                outcome.is_out_of_memory = True
            else:
                logger.warning("a step of %d requests failed; they are stepped one by one", len(developments))
                for development in developments:
                    self._denoise(model, [development], exact_rows, outcome)
            return
        self._advance(model, developments, prediction, outcome)

    def _advance(
        self, model: Family, developments: Sequence[Development], prediction: Tensor, outcome: StepOutcome
    ) -> None:
        """Step all together. Where that fails, each alone, so that the request at fault fails alone."""
        # A copy takes 6 us, and most steps draw nothing.
        states = [development.generator.get_state() if draws(development) else None for development in developments]
        steps = [development.step for development in developments]
        try:
            advance(model, developments, prediction)
        except Exception as error:
            check_device(error)
            logger.warning("stepping %d requests together failed", len(developments), exc_info=True)
            rows = prediction.split([development.num_rows for development in developments])
            for development, state, step, own in zip(developments, states, steps, rows, strict=True):
                if development.step == step:
                    if state is not None:
                        development.generator.set_state(state)
                    with self._isolated(development, outcome):
                        advance(model, [development], own)
        for development in developments:
            development.handle.advance("denoise", development.step)

    def _note(self, development: Development, outcome: StepOutcome) -> None:
        """Keep what the request's walk needs, and name it as denoised when it has reached its last step."""
        if development.step == development.num_steps:
            outcome.denoised.append(development)
        elif development.request.num_walk_frames:
            with self._isolated(development, outcome):
                keep_frame(development)

    @contextmanager
    def _isolated(self, development: Development, outcome: StepOutcome) -> Iterator[None]:
        """Let what goes wrong inside end this request and no other."""
        try:
            yield
        except Exception as error:
            check_device(error)
            outcome.failures[development] = reason(error)
            logger.exception("a request failed")


def _prompt_key(request: Request, prompt: str, *, is_negative: bool) -> Hashable:
    """Say what a prompt's embeddings depend on. Exact ones are encoded one at a time, and kept apart."""
    return (request.model, request.loras, prompt, is_negative, request.is_exact)


def _make_noise_scheduler(model: Family, request: Request) -> Any:
    return make_noise_scheduler(
        request.sampler,
        model.scheduler_config,
        request.num_inference_steps,
        seed=request.seed,
        timing=model.timing(request),
        num_skipped=model.num_skipped(request),
    )


def _for_each_row(development: Development, start: Start) -> Conditioning:
    """What the request's picture adds to the conditioning (1, ...), for each of its rows (num_rows, ...)."""
    return {key: tensor.expand(development.num_rows, *tensor.shape[1:]) for key, tensor in start.conditioning.items()}
