"""The family whole: any other pipeline of diffusers that makes pictures from words, by its own loop.

One request at a time, between whose steps other models have their turns. Knows neither denoiser nor sampler: each
request has the pipeline's own, called in a thread of its own, which moves only while `denoise` waits for it.
"""

import inspect
import itertools
import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import SchedulerMixin
from PIL.Image import Image
from torch import Generator, Tensor, nn

from darkroom_engine.errors import InvalidRequest, RequestFailed, UnfitPipeline
from darkroom_engine.families import base
from darkroom_engine.families.base import Conditioning, Start
from darkroom_engine.own_steps import OwnSteps
from darkroom_engine.quiet import quiet
from darkroom_engine.request import Request

logger = logging.getLogger(__name__)

STEP_END = "callback_on_step_end"
NEEDED = ("prompt", "width", "height", "num_inference_steps", "generator")
# Who takes one of these makes something that is no picture.
OTHER_MEDIA = {
    "num_frames": "videos",
    "video_length": "videos",
    "audio_length_in_s": "sound",
    "audio_end_in_s": "sound",
}
MAX_STEPS = 1000  # of a pipeline whose scheduler does not say


class WholePipeline:
    """A loaded pipeline of a class that no other family knows, on its device."""

    family: ClassVar[str] = "whole"
    # All that no other family has.
    pipelines: ClassVar[tuple[str, ...]] = ()
    components: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    optional: ClassVar[frozenset[str]] = frozenset()
    left_out: ClassVar[Mapping[str, Any]] = {}
    is_recordable: ClassVar[bool] = False

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._class = type(pipeline)
        self._accepted = inspect.signature(pipeline.__call__).parameters
        _check_makes_pictures(self._class.__name__, self._accepted)
        if STEP_END not in self._accepted:
            logger.warning("%s calls nobody between its steps: each request runs in one go", self._class.__name__)
        self._device = device
        self._parts = pipeline.components
        self._modules = [part for part in self._parts.values() if isinstance(part, nn.Module)]
        for module in self._modules:
            module.to(device).eval().requires_grad_(False)
        self._settings = _settings_of(pipeline)
        config = getattr(self._parts.get("scheduler"), "config", {})
        max_steps = config.get("num_train_timesteps", MAX_STEPS)
        self.scheduler_config: Mapping[str, Any] = {"has_own_steps": True, "num_train_timesteps": max_steps}
        processor = getattr(pipeline, "image_processor", None)
        self.latent_multiple = int(processor.config.vae_scale_factor) if processor else 8
        self.features: frozenset[str] = frozenset()
        self._runs: dict[int, PipelineRun] = {}
        self._numbers = itertools.count()

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        return base.num_bytes(*self._modules)

    def check(self, request: Request) -> None:
        """Refuse what only a family of one's own can give."""
        if request.is_exact:
            raise InvalidRequest("is_exact", "is asked for, and this model runs by its pipeline's own loop")
        if request.num_walk_frames:
            raise InvalidRequest("num_walk_frames", "is asked for, and this model shows nothing before its picture")

    def batch_key(self, request: Request) -> Hashable:
        """Say nothing: requests wait for each other's steps, whatever they ask for."""
        return ()

    def num_rows(self, request: Request) -> int:
        """One, though a step of it may cost as much as several."""
        return 1

    def timing(self, request: Request) -> Mapping[str, Any]:
        """Nothing beside the number of steps."""
        return {}

    def num_skipped(self, request: Request) -> int:
        """None."""
        return 0

    def start(self, request: Request, noise_scheduler: OwnSteps, generator: Generator) -> Start:
        """Get a run of the pipeline ready; what the request has for latents (1, 1) is the run's number."""
        own = self._pipeline_of_its_own()
        arguments = self._arguments(request, generator)

        def call(at_step_end: Callable[..., Any]) -> Any:
            return own(**arguments, **({STEP_END: at_step_end} if STEP_END in self._accepted else {}))

        run = PipelineRun(call, (request.height, request.width))
        number = next(self._numbers)
        self._runs[number] = run
        noise_scheduler.run = run

        def end() -> None:
            run.close()
            del self._runs[number]

        return Start(torch.tensor([[number]], device=self._device), end=end)

    def encode(self, prompt: str, *, is_negative: bool) -> Conditioning:
        """Leave the prompt to the pipeline."""
        return {}

    def condition(self, request: Request, positive: Conditioning, negative: Conditioning | None) -> Conditioning:
        """Nothing: the pipeline has the prompts."""
        return {}

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Nothing."""
        return {}

    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Bring each run (B, 1) one step further, one after the other; one with timestep 0 to its end."""
        for number, timestep in zip(latents[:, 0].tolist(), timesteps.tolist(), strict=True):
            self._runs[number].advance(is_last=timestep == 0)
        return latents

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor) -> Tensor:
        """Leave the prediction as it is: there is but one."""
        return conditional

    def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Give the pictures (B, 3, H, W), which the last step has put in the latents' place."""
        return latents

    def _pipeline_of_its_own(self) -> Any:
        """Build another pipeline of the same parts: its loop keeps state in the object, and so do noise_schedulers."""
        parts = {
            name: type(part).from_config(part.config) if isinstance(part, SchedulerMixin) else part
            for name, part in self._parts.items()
        }
        with quiet():
            own = self._class(**self._settings, **parts)
        own.set_progress_bar_config(disable=True)
        return own

    def _arguments(self, request: Request, generator: Generator) -> dict[str, Any]:
        guidance = "guidance_scale" if "guidance_scale" in self._accepted else "true_cfg_scale"
        offered = {
            "prompt": request.prompt,
            # Most pipelines take an empty one for words of its own, and some for a wish for guidance.
            "negative_prompt": request.negative_prompt or None,
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.num_inference_steps,
            guidance: request.guidance_scale,
            "generator": generator,
            "output_type": "pil",
            # Else some would make a picture of a size that they like better.
            "use_resolution_binning": False,
        }
        return {name: value for name, value in offered.items() if name in self._accepted and value is not None}


class PipelineRun:
    """One call of a pipeline, in a thread that stands still but for the time of `advance` and `close`."""

    def __init__(self, call: Callable[[Callable[..., Any]], Any], size: tuple[int, int]) -> None:
        self._call = call
        self._size = size
        self._may_move = threading.Semaphore(0)
        self._stands_still = threading.Semaphore(0)
        self._is_closed = False
        self._has_ended = False
        self._output: Any = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="darkroom-pipeline", daemon=True)

    def advance(self, *, is_last: bool) -> None:
        """Let the pipeline go on until its next step has ended, or its last. Raises what it raises."""
        self._move()
        while is_last and not self._has_ended:
            self._move()
        if self._error:
            raise self._error

    @property
    def picture(self) -> Tensor:
        """What it ended with (1, 3, H, W), of values from -1 to 1. Raises RequestFailed when that is none."""
        images = getattr(self._output, "images", None)
        image = images[0] if isinstance(images, list) and images else None
        if not isinstance(image, Image):
            raise RequestFailed(f"the pipeline gave a {type(self._output).__name__} without a picture")
        if (image.height, image.width) != self._size:
            height, width = self._size
            raise RequestFailed(
                f"the pipeline gave {image.width} x {image.height} pixels in place of {width} x {height}"
            )
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).float()  # (H, W, 3)
        return (2.0 * pixels / 255.0 - 1.0).permute(2, 0, 1)[None]

    def close(self) -> None:
        """End the thread where it stands, and wait until it is gone."""
        self._is_closed = True
        if self._thread.is_alive():
            self._may_move.release()
            self._thread.join()

    def _move(self) -> None:
        if self._has_ended:
            return
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._may_move.release()
        self._stands_still.acquire()

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                self._output = self._call(self._stand_still)
        except _Closed:
            pass
        except Exception as error:
            self._error = error
        finally:
            self._has_ended = True
            self._stands_still.release()

    def _stand_still(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self._stands_still.release()
        self._may_move.acquire()
        if self._is_closed:
            raise _Closed
        return tensors


class _Closed(Exception):
    """Unwinds a pipeline whose picture nobody wants any more."""


def _check_makes_pictures(name: str, accepted: Mapping[str, inspect.Parameter]) -> None:
    for argument, medium in OTHER_MEDIA.items():
        if argument in accepted:
            raise UnfitPipeline(f"{name} makes {medium}")
    for argument in NEEDED:
        if argument not in accepted:
            raise UnfitPipeline(f"{name} takes no {argument}")
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    for argument, parameter in accepted.items():
        if parameter.default is parameter.empty and parameter.kind not in variadic and argument not in NEEDED:
            raise UnfitPipeline(f"{name} needs {argument}, which no request has")


def _settings_of(pipeline: Any) -> dict[str, Any]:
    """What the pipeline's constructor was given beside its parts."""
    accepted = inspect.signature(type(pipeline).__init__).parameters
    return {
        name: value for name, value in pipeline.config.items() if name in accepted and name not in pipeline.components
    }
