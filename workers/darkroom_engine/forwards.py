"""The denoiser's forwards: one for all rows of a batch, padded where their count is fixed, and timed.

Knows families and the requests' tensors; knows neither why these requests share a forward nor what comes of it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from darkroom_engine.batch import Development
from darkroom_engine.costs import ForwardCost
from darkroom_engine.families.base import Conditioning, Family
from darkroom_engine.graphs import CudaRecorder, GraphedDenoise
from darkroom_engine.stepping import model_inputs
from darkroom_engine.stopwatch import stopwatch_for
from darkroom_engine.tuning import Tuning, attention_of


class Forwards:
    """Runs the forwards of one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stopwatch = stopwatch_for(device)
        # The conditioning of the latest batch: mostly the next one is of the same requests.
        self._stacked_for: tuple[tuple[Development, ...], int] = ((), 0)
        self._stacked: Conditioning = {}
        self._tunings: dict[Family, Tuning] = {}
        self._graphed: dict[Family, GraphedDenoise] = {}

    def adopt(self, model: Family, tuning: Tuning) -> None:
        """Take in a model, and how its forwards are to use the device."""
        self._tunings[model] = tuning
        if tuning.cuda_graphs:
            self._graphed[model] = GraphedDenoise(model.denoise, CudaRecorder(self.device))

    def forget(self, model: Family) -> None:
        """Drop what was recorded of a model whose weights have moved."""
        if model in self._graphed:
            self._graphed[model].forget()

    def run(self, model: Family, developments: Sequence[Development], exact_rows: int | None) -> Tensor:
        """Run one forward of all requests' rows, and give their prediction (rows, ...).

        Where `exact_rows` is given, the forward has so many, whoever takes part: the first request's first row fills
        it up, and what comes of that is left out.
        """
        rows = [development for development in developments for _ in range(development.num_rows)]
        num_padding = exact_rows - len(rows) if exact_rows else 0
        padded = rows + rows[:1] * num_padding
        denoise = self._graphed.get(model, model.denoise)
        with self._stopwatch.timing(developments[0].batch_key, len(padded)), attention_of(self._tunings[model]):
            prediction = denoise(
                model_inputs(padded),  # (B, ...)
                # float32: some samplers stand between the integer timesteps, and it holds the integers exactly.
                torch.tensor([row.timestep_values[row.step] for row in padded], dtype=torch.float32).to(
                    self.device, non_blocking=True
                ),
                self._conditioning(model, tuple(developments), num_padding),
            )
        return prediction[: len(rows)]

    def costs(self) -> list[ForwardCost]:
        """Say, once of each, what the forwards took that have ended by now."""
        return self._stopwatch.costs()

    def _conditioning(self, model: Family, developments: tuple[Development, ...], num_padding: int) -> Conditioning:
        if self._stacked_for != (developments, num_padding):
            conditionings = [_conditioning_of(development) for development in developments]
            first_row = {key: rows[:1] for key, rows in conditionings[0].items()}
            self._stacked = model.stack([*conditionings, *[first_row] * num_padding])
            self._stacked_for = (developments, num_padding)
        return self._stacked


def _conditioning_of(development: Development) -> Conditioning:
    assert development.conditioning is not None
    return development.conditioning
