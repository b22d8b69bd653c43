"""Runs what the scheduler picked: encodes, one denoiser forward for all, each request's own sampler step, decodes.

Knows tensors and families; decides nothing about whose turn it is. A failure ends one request, never its neighbours.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from darkroom_engine.batch import Development, StepBatch, StepOutcome
from darkroom_engine.errors import DeviceLost, InvalidRequest, RequestFailed, UnknownModel
from darkroom_engine.families.base import Conditioning, Family, Start
from darkroom_engine.request import Handle, Request
from darkroom_engine.samplers import make_noise_scheduler, samplers_for, step_arguments
from darkroom_engine.step_table import StepTable, read_step_table
from darkroom_engine.stepping import advance, model_input
from darkroom_engine.validation import check_extras, check_request

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

logger = logging.getLogger(__name__)

# Step tables that are kept: requests mostly ask for the same few samplers and numbers of steps.
MAX_STEP_TABLES = 256


class ModelRunner:
    """Holds the loaded models of one device and steps batches of requests on it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.models: dict[str, Family] = {}
        self._building = threading.Lock()  # of noise_schedulers, and of their step tables
        self._step_tables: dict[Hashable, StepTable | None] = {}

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
        model.check(request)
        num_skipped = model.num_skipped(request)
        if num_skipped == request.num_inference_steps:
            steps = request.num_inference_steps
            raise InvalidRequest("strength", f"is {request.strength}, and leaves not one of {steps} steps")
        make = partial(
            make_noise_scheduler,
            request.sampler,
            model.scheduler_config,
            request.num_inference_steps,
            seed=request.seed,
            timing=model.timing(request),
            num_skipped=num_skipped,
        )
        with self._building:
            noise_scheduler = make()
            timesteps = noise_scheduler.timesteps[num_skipped * noise_scheduler.order :]
            step_table = self._step_table(request, noise_scheduler, timesteps, make)
        generator = Generator().manual_seed(request.seed)
        return Development(
            request=request,
            handle=Handle(request, len(timesteps)),
            batch_key=(request.model, request.loras, model.batch_key(request)),
            num_rows=model.num_rows(request),
            noise_scheduler=noise_scheduler,
            timesteps=timesteps,
            step_arguments=step_arguments(noise_scheduler, generator),
            generator=generator,
            step_table=step_table,
        )

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
        """Bring every request of the batch one denoiser step further, the new ones encoded, the last step decoded.

        Raises DeviceLost; every other failure is in the outcome.
        """
        outcome = StepOutcome()
        model = self.models[batch.developments[0].request.model]
        for development in batch.developments:
            if development.conditioning is None:
                self._encode(model, development, outcome)
        self._denoise(model, [d for d in batch.developments if d not in outcome.failures], outcome)
        for development in batch.developments:
            if development.step == len(development.timesteps) and development not in outcome.failures:
                self._decode(model, development, outcome)
        return outcome

    def _encode(self, model: Family, development: Development, outcome: StepOutcome) -> None:
        development.handle.advance("encode", 0)
        with self._isolated(development, outcome):
            start = model.start(development.request, development.noise_scheduler, development.generator)
            development.latents, development.kept = start.latents, start.kept
            development.conditioning = {**_condition(model, development), **_for_each_row(development, start)}
            development.handle.advance("denoise", 0)

    def _denoise(self, model: Family, developments: Sequence[Development], outcome: StepOutcome) -> None:
        """One forward for all. Where it fails, one for each, so that the request at fault fails alone."""
        if not developments:
            return
        try:
            prediction = _forward(model, developments, self.device)
        except Exception as error:
            _check_device(error)
            if len(developments) == 1:
                outcome.failures[developments[0]] = _reason(error)
                logger.exception("a request failed")
            elif _is_out_of_memory(error):
                outcome.is_out_of_memory = True
            else:
                logger.warning("a step of %d requests failed; they are stepped one by one", len(developments))
                for development in developments:
                    self._denoise(model, [development], outcome)
            return
        self._advance(model, developments, prediction, outcome)

    def _advance(
        self, model: Family, developments: Sequence[Development], prediction: Tensor, outcome: StepOutcome
    ) -> None:
        """Step all together. Where that fails, each alone, so that the request at fault fails alone."""
        states = [development.generator.get_state() for development in developments]
        steps = [development.step for development in developments]
        try:
            advance(model, developments, prediction)
        except Exception as error:
            _check_device(error)
            logger.warning("stepping %d requests together failed", len(developments), exc_info=True)
            rows = prediction.split([development.num_rows for development in developments])
            for development, state, step, own in zip(developments, states, steps, rows, strict=True):
                if development.step == step:
                    development.generator.set_state(state)
                    with self._isolated(development, outcome):
                        advance(model, [development], own)
        for development in developments:
            development.handle.advance("denoise", development.step)

    def _decode(self, model: Family, development: Development, outcome: StepOutcome) -> None:
        development.handle.advance("decode", development.step)
        with self._isolated(development, outcome):
            assert development.latents is not None
            request = development.request
            image = model.decode(development.latents, (request.height, request.width))[0]
            # The one place that waits for the device: once per picture, not once per step.
            if not (development.latents.isfinite().all() and image.isfinite().all()):
                raise RequestFailed("the picture is not finite: the denoiser or the decoder overflowed")
            outcome.images[development] = _to_pixels(image)

    @contextmanager
    def _isolated(self, development: Development, outcome: StepOutcome) -> Iterator[None]:
        """Let what goes wrong inside end this request and no other."""
        try:
            yield
        except Exception as error:
            _check_device(error)
            outcome.failures[development] = _reason(error)
            logger.exception("a request failed")


def _check_device(error: Exception) -> None:
    """Raise DeviceLost for an error after which nothing runs on the device any more."""
    if isinstance(error, torch.AcceleratorError) and not _is_out_of_memory(error):
        raise DeviceLost(str(error)) from error


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. Only CUDA's allocator has an error class of its own for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "out of memory")
    )


def _reason(error: Exception) -> str:
    if isinstance(error, RequestFailed):
        return error.reason
    if _is_out_of_memory(error):
        return "the request alone does not fit into the device's memory"
    return f"{type(error).__name__}: {error}"


def _condition(model: Family, development: Development) -> Conditioning:
    request = development.request
    positive = model.encode(request.prompt, is_negative=False)
    has_negative = development.num_rows == 2
    negative = model.encode(request.negative_prompt, is_negative=True) if has_negative else None
    return model.condition(request, positive, negative)


def _for_each_row(development: Development, start: Start) -> Conditioning:
    """What the request's picture adds to the conditioning (1, ...), for each of its rows (num_rows, ...)."""
    return {key: tensor.expand(development.num_rows, *tensor.shape[1:]) for key, tensor in start.conditioning.items()}


def _forward(model: Family, developments: Sequence[Development], device: torch.device) -> Tensor:
    """One denoiser forward for all rows: the prediction (rows, ...)."""
    latents, timesteps, conditionings = [], [], []
    for development in developments:
        assert development.latents is not None
        assert development.conditioning is not None
        latents += [model_input(development)] * development.num_rows
        timesteps += [float(development.timesteps[development.step])] * development.num_rows
        conditionings.append(development.conditioning)
    return model.denoise(
        torch.cat(latents),  # (B, ...)
        # float32: some samplers stand between the integer timesteps, and it holds the integers exactly.
        torch.tensor(timesteps, dtype=torch.float32).to(device, non_blocking=True),
        {key: torch.cat([conditioning[key] for conditioning in conditionings]) for key in conditionings[0]},
    )


def _to_pixels(image: Tensor) -> "npt.NDArray[np.uint8]":
    """Turn (3, H, W) from -1 to 1 into uint8 (H, W, 3), rounded as diffusers rounds."""
    pixels = (image.float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(1, 2, 0).cpu().contiguous().numpy()
