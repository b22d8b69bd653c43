"""The loop that every trained stage runs in: the clock, the log, checkpoints, reports. Knows no network and no loss.

A step is a function of the weights and its own number, so that a run goes on from a checkpoint as if never stopped.
"""

import json
import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grad_norm_

from darkroom_train.errors import CheckpointError, Diverged
from darkroom_train.files import write_safely
from darkroom_train.group import Group
from darkroom_train.recipe import Training, as_stored, differences

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
MAX_GRADIENT_NORM = 1.0


class Trainee(Protocol):
    """A stage as the loop sees it."""

    def step(self, number: int, *, progress: float, learning_rate: float) -> Mapping[str, Tensor]:
        """Take one optimizer step. Gives losses, left on the device. `progress` runs from 0 to 1 over the schedule."""

    def report(self, number: int) -> Mapping[str, float]:
        """Measure on held-out pictures, and write samples where there are any."""

    def state_dict(self) -> dict[str, Any]:
        """Give all that the next step depends on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""


class Show(Protocol):
    """Shows how far a stage is."""

    def __call__(self, step: int, num_steps: int, values: Mapping[str, float], /) -> None: ...


@dataclass
class Clock:
    """Wall time: of the stage over all its runs, and of this run, which may have an end."""

    spent_before: float = 0.0
    until: float | None = None
    _started_at: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Seconds that the stage has taken so far."""
        return self.spent_before + time.monotonic() - self._started_at

    @property
    def is_over(self) -> bool:
        """Whether this run has to end."""
        return self.until is not None and time.monotonic() >= self.until


def learning_rate(schedule: Training, number: int, progress: float) -> float:
    """Rise linearly over the warm-up, then fall to zero as a half cosine over the whole schedule."""
    warmup = min(1.0, (number + 1) / max(1, schedule.warmup_steps))
    return schedule.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def attention_of_small_pictures(device: torch.device) -> AbstractContextManager[None]:
    """Choose how attention over a few hundred positions is computed while a small model is trained.

    On a CPU, PyTorch's fused kernel goes backward slowly: plain matrices took a fifth off a whole step of the reduced
    recipe (0.84 against 1.05 s of one core, AVX-512). They hold all scores at once, so this is not for large pictures.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class Optimization:
    """AdamW over a module, gradients clipped, with the autocast and the average of weights that the recipe asks for."""

    def __init__(self, module: nn.Module, schedule: Training, group: Group, *, ema_decay: float = 0.0) -> None:
        self._parameters: list[Tensor] = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._ema_decay = ema_decay
        self.averages = [parameter.detach().clone() for parameter in self._parameters] if ema_decay else []
        self._group = group
        self._precision = schedule.precision
        matrices = [parameter for parameter in self._parameters if parameter.ndim > 1]
        vectors = [parameter for parameter in self._parameters if parameter.ndim < 2]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=schedule.learning_rate,
            betas=(0.9, 0.99),
            fused=True,
        )

    def autocast(self) -> torch.autocast:
        """Compute a forward in the recipe's precision."""
        return torch.autocast(self._group.device.type, dtype=torch.bfloat16, enabled=self._precision == "bfloat16")

    def apply(self, loss: Tensor, number: int, *, learning_rate: float) -> None:
        """Go one step down the gradient of a loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        loss.backward()
        self._group.average([parameter.grad for parameter in self._parameters if parameter.grad is not None])
        clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._ema_decay:
            # A young average follows closely, or it would remember the initial weights.
            decay = min(self._ema_decay, (1 + number) / (10 + number))
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, self._parameters, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights in place of the trained ones while a block runs."""
        kept = [parameter.detach().clone() for parameter in self._parameters]
        self._fill(self.averages or kept)
        try:
            yield
        finally:
            self._fill(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict(), "averages": self.averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        for average, stored in zip(self.averages, state["averages"], strict=True):
            average.copy_(stored)

    def _fill(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, values)


def train(
    trainee: Trainee,
    schedule: Training,
    folder: Path,
    *,
    group: Group,
    minutes: float | None,
    checkpoint_minutes: float,
    show: Show,
) -> bool:
    """Run a stage from its checkpoint to its end, or until `minutes` are over or the process is told to stop.

    Gives whether the end was reached. Leaves a checkpoint and the log in `folder`. Raises CheckpointError or Diverged.
    Of a group, the first process looks at the clock, measures and writes.
    """
    number, clock = _resume(trainee, schedule, folder)
    clock.until = None if minutes is None else time.monotonic() + 60 * minutes
    keeper = _Keeper(trainee, schedule, folder, clock, checkpoint_minutes=checkpoint_minutes)
    if group.is_first:
        keeper.begin(number)
    with _told_to_stop() as is_told:
        while (progress := group.agree(_progress(schedule, number, clock))) < 1:
            rate = learning_rate(schedule, number, progress)
            losses = trainee.step(number, progress=progress, learning_rate=rate)
            number += 1
            if group.is_first:
                if number % schedule.log_steps == 0 or number == schedule.steps:
                    values = _read(losses, number)
                    keeper.log(number, {**values, "learning_rate": rate})
                    show(number, schedule.steps, values)
                keeper.keep(number)
            if group.agree(clock.is_over or is_told()):
                if group.is_first:
                    keeper.save(number)
                return False
    if group.is_first:
        keeper.finish(number)
    return True


def is_finished(folder: Path) -> bool:
    """Whether the stage of this folder has reached its end."""
    path = folder / CHECKPOINT
    return path.exists() and bool(load_checkpoint(path)["is_finished"])


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Raises CheckpointError."""
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever unpickling a broken file happens to meet
        raise CheckpointError(path, f"cannot be read: {error}") from error
    return checkpoint


def _progress(schedule: Training, number: int, clock: Clock) -> float:
    by_steps = number / schedule.steps
    return max(by_steps, clock.spent / (60 * schedule.minutes)) if schedule.minutes else by_steps


def _read(losses: Mapping[str, Tensor], number: int) -> dict[str, float]:
    values = {name: float(loss) for name, loss in losses.items()}
    if not all(math.isfinite(value) for value in values.values()):
        raise Diverged(number)
    return values


def _resume(trainee: Trainee, schedule: Training, folder: Path) -> tuple[int, Clock]:
    path = folder / CHECKPOINT
    if not path.exists():
        return 0, Clock()
    checkpoint = load_checkpoint(path)
    changed = differences(schedule, checkpoint["recipe"])
    if changed:
        raise CheckpointError(path, f"was made by a recipe that differs in {', '.join(changed)}; begin in a new folder")
    trainee.load_state_dict(checkpoint["trainee"])
    return checkpoint["step"], Clock(spent_before=checkpoint["spent"])


class _Keeper:
    """Writes the log and the checkpoints, and asks for reports when it is time.

    The log has a line of JSON for each entry. What an earlier run wrote beyond its last checkpoint is dropped.
    """

    def __init__(
        self, trainee: Trainee, schedule: Training, folder: Path, clock: Clock, *, checkpoint_minutes: float
    ) -> None:
        self._trainee = trainee
        self._schedule = schedule
        self._folder = folder
        self._clock = clock
        self._checkpoint_seconds = 60 * checkpoint_minutes
        self._saved_at = self._reported_at = clock.spent

    def begin(self, step: int) -> None:
        path = self._folder / LOG
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        path.write_text("".join(line + "\n" for line in kept))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        seconds = round(self._clock.spent, 2)
        entry = {"step": step, "seconds": seconds, **{key: round(value, 7) for key, value in values.items()}}
        with (self._folder / LOG).open("a") as log:
            log.write(json.dumps(entry) + "\n")

    def keep(self, step: int) -> None:
        """Report and save when it is time."""
        every = 60 * self._schedule.report_minutes
        if every and self._clock.spent - self._reported_at >= every:
            self.log(step, self._trainee.report(step))
            self._reported_at = self._clock.spent
        if self._clock.spent - self._saved_at >= self._checkpoint_seconds:
            self.save(step)
            self._saved_at = self._clock.spent

    def finish(self, step: int) -> None:
        self.log(step, self._trainee.report(step))
        self.save(step, is_finished=True)

    def save(self, step: int, *, is_finished: bool = False) -> None:
        checkpoint = {
            "step": step,
            "spent": self._clock.spent,
            "is_finished": is_finished,
            "recipe": as_stored(self._schedule),
            "trainee": self._trainee.state_dict(),
        }
        write_safely(self._folder / CHECKPOINT, lambda beside: torch.save(checkpoint, beside))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a crash


@contextmanager
def _told_to_stop() -> Iterator[Any]:
    """Note SIGINT and SIGTERM, so that the step at hand ends and a checkpoint is written. A second one is obeyed."""
    told: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        told.append(number)
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # only the main thread may
        before.clear()
    try:
        yield lambda: bool(told)
    finally:
        for told_by, handler in before.items():
            signal.signal(told_by, handler)
