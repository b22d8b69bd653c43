"""CUDA graphs of a model's forward: recorded once per shape and row count, then replayed.

A forward of a UNet launches thousands of kernels, and at small shapes the launches cost more than the work. Knows
tensors and one function; knows no request.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Denoise = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]

# Recordings that are kept, the least recently used leaving first: each holds its own results' memory.
MAX_GRAPHS = 32
# Up to so many rows each count has its own recording; above, counts are rounded up to a multiple of so many.
EXACT_ROWS = 8
ROWS_STEP = 4
# PyTorch asks for some runs before a recording, in which libraries choose their kernels.
NUM_WARM_UPS = 3


class Recorder(Protocol):
    """Records what a function launches. `run` is called now; `replay` does the same again, into the same results."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]: ...


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory: they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Run a few times beside the stream that works, then record."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UPS):
                run()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = run()
        self._pool = self._pool or graph.pool()
        return graph.replay, result


@dataclass(frozen=True)
class _Recording:
    latents: Tensor
    timesteps: Tensor
    conditioning: Mapping[str, Tensor]
    replay: Callable[[], None]
    prediction: Tensor


class GraphedDenoise:
    """A denoiser's forward that is recorded the first time it sees a shape, and replayed from then on.

    What it gives is overwritten by the next call. Weights may change in place, as LoRAs change them; a model whose
    forward cannot be recorded goes on without, and the log says so.
    """

    def __init__(self, denoise: Denoise, recorder: Recorder) -> None:
        self._denoise = denoise
        self._recorder = recorder
        self._recordings: OrderedDict[Any, _Recording] = OrderedDict()
        self._can_record = True

    def __call__(self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        """Run one forward over latents (B, ...) and timesteps (B,)."""
        if not self._can_record:
            return self._denoise(latents, timesteps, conditioning)
        num_rows = len(latents)
        num_padding = _rounded_up(num_rows) - num_rows
        rows = {key: _pad(tensor, num_padding) for key, tensor in conditioning.items()}
        recording = self._recording(_pad(latents, num_padding), _pad(timesteps, num_padding), rows)
        if recording is None:
            return self._denoise(latents, timesteps, conditioning)
        recording.replay()
        return recording.prediction[:num_rows]

    def forget(self) -> None:
        """Drop the recordings: the weights are not where they were."""
        self._recordings.clear()

    def _recording(self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> _Recording | None:
        """Find the recording of these shapes with these inputs in it, or make it. None when that does not work."""
        shapes = (latents.shape, latents.dtype, *((key, rows.shape, rows.dtype) for key, rows in conditioning.items()))
        found = self._recordings.get(shapes)
        if found is not None:
            self._recordings.move_to_end(shapes)
            found.latents.copy_(latents)
            found.timesteps.copy_(timesteps)
            for key, rows in conditioning.items():
                found.conditioning[key].copy_(rows)
            return found
        own = (latents.clone(), timesteps.clone(), {key: rows.clone() for key, rows in conditioning.items()})
        try:
            replay, prediction = self._recorder.record(lambda: self._denoise(*own))
        except torch.OutOfMemoryError:
            raise  # the batch is halved, and the smaller one recorded
        except RuntimeError:
            logger.exception("the denoiser's forward cannot be recorded; it runs without CUDA graphs")
            self._can_record = False
            return None
        self._recordings[shapes] = _Recording(*own, replay, prediction)
        if len(self._recordings) > MAX_GRAPHS:
            self._recordings.popitem(last=False)
        return self._recordings[shapes]


def _rounded_up(num_rows: int) -> int:
    return num_rows if num_rows <= EXACT_ROWS else -(-num_rows // ROWS_STEP) * ROWS_STEP


def _pad(rows: Tensor, num_padding: int) -> Tensor:
    """Repeat the first row: what comes of it is left out."""
    return torch.cat([rows, rows[:1].expand(num_padding, *rows.shape[1:])]) if num_padding else rows
