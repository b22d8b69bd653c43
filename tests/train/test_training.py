"""The loop: to the bit the same after a stop, checkpoints that survive, a log that fits them."""

import json
import resource
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darkroom_train.errors import CheckpointError, Diverged, NotWritten
from darkroom_train.files import write_safely
from darkroom_train.group import Group
from darkroom_train.recipe import Training
from darkroom_train.training import (
    CHECKPOINT,
    LOG,
    Optimization,
    is_finished,
    learning_rate,
    load_checkpoint,
    train,
)
from darkroom_train.workshop import Workshop

ALONE = Group()


class Line:
    """Learns a line through noise, with an average of its weights, as the denoiser does."""

    def __init__(self, schedule: Training, *, stop_at: int | None = None, fail_at: int | None = None) -> None:
        self.module = nn.Linear(3, 2)
        with torch.no_grad():
            self.module.weight.fill_(0.1)
            self.module.bias.zero_()
        self._stop_at = stop_at
        self._fail_at = fail_at
        self._optimization = Optimization(self.module, schedule, ALONE, ema_decay=0.9)
        self.reports: list[int] = []

    def step(self, number: int, *, progress: float, learning_rate: float) -> Mapping[str, Tensor]:
        inputs = torch.randn((4, 3), generator=ALONE.generator(1, number))
        loss = (self.module(inputs) - inputs[:, :2]).square().mean()
        self._optimization.apply(loss, number, learning_rate=learning_rate)
        if number + 1 == self._stop_at:
            signal.raise_signal(signal.SIGTERM)
        return {"loss": loss.detach() * (torch.nan if number == self._fail_at else 1)}

    def report(self, number: int) -> Mapping[str, float]:
        self.reports.append(number)
        return {"held_out": 0.5}

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), **self._optimization.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self._optimization.load_state_dict(state)


def schedule(**changes: Any) -> Training:
    return Training(
        **{"steps": 10, "batch_size": 4, "learning_rate": 0.1, "log_steps": 1, "warmup_steps": 2, **changes}
    )


def run(line: Line, folder: Path, plan: Training, *, minutes: float | None = None) -> bool:
    return train(line, plan, folder, group=ALONE, minutes=minutes, checkpoint_minutes=60, show=lambda *_: None)


def steps_logged(folder: Path) -> list[int]:
    entries = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [entry["step"] for entry in entries if "loss" in entry]


def test_stopped_and_resumed_is_to_the_bit_the_same(tmp_path: Path) -> None:
    whole, first, second = Line(schedule()), Line(schedule(), stop_at=4), Line(schedule())
    assert run(whole, tmp_path / "whole", schedule())
    assert not run(first, tmp_path / "parts", schedule())
    assert not is_finished(tmp_path / "parts")
    assert run(second, tmp_path / "parts", schedule())
    assert torch.equal(whole.module.weight, second.module.weight)
    one, other = (load_checkpoint(tmp_path / name / CHECKPOINT)["trainee"] for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(one["averages"], other["averages"], strict=True))
    assert steps_logged(tmp_path / "parts") == list(range(1, 11))


def test_denoiser_stopped_and_resumed_is_to_the_bit_the_same(workshop: Workshop, tmp_path: Path) -> None:
    recipe = workshop.recipe.denoiser
    whole, first, second = (workshop.denoiser_training() for _ in range(3))
    rate = learning_rate(recipe, 0, 0.0)
    for number in range(4):
        whole.step(number, progress=0, learning_rate=rate)
    for number in range(2):
        first.step(number, progress=0, learning_rate=rate)
    write_safely(tmp_path / "state.pt", lambda path: torch.save({"trainee": first.state_dict()}, path))
    second.load_state_dict(load_checkpoint(tmp_path / "state.pt")["trainee"])
    for number in range(2, 4):
        second.step(number, progress=0, learning_rate=rate)
    expected, found = whole.averaged_unet().state_dict(), second.averaged_unet().state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_minutes_end_a_run_with_a_checkpoint(tmp_path: Path) -> None:
    assert not run(Line(schedule()), tmp_path, schedule(), minutes=0.0)
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == 1


def test_minutes_of_the_recipe_end_the_schedule(tmp_path: Path) -> None:
    assert run(Line(schedule()), tmp_path, schedule(steps=100_000_000, minutes=0.001))
    assert is_finished(tmp_path)


def test_log_beyond_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    run(Line(schedule(), stop_at=3), tmp_path, schedule())
    with (tmp_path / LOG).open("a") as log:
        log.write('{"step": 4, "seconds": 1, "loss": 9}\n{"step": 5, "sec')
    run(Line(schedule()), tmp_path, schedule())
    assert steps_logged(tmp_path) == list(range(1, 11))


def test_another_recipe_is_refused_by_its_keys(tmp_path: Path) -> None:
    run(Line(schedule(), stop_at=3), tmp_path, schedule())
    changed = schedule(batch_size=8)
    with pytest.raises(CheckpointError, match="differs in batch_size"):
        run(Line(changed), tmp_path, changed)


def test_more_steps_may_be_asked_of_a_checkpoint(tmp_path: Path) -> None:
    run(Line(schedule(), stop_at=3), tmp_path, schedule())
    longer = schedule(steps=12)
    assert run(Line(longer), tmp_path, longer)
    assert steps_logged(tmp_path)[-1] == 12


def test_broken_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: cannot be read"):
        run(Line(schedule()), tmp_path, schedule())


def test_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="not finite at step 3"):
        run(Line(schedule(), fail_at=2), tmp_path, schedule())


def test_report_comes_at_the_end(tmp_path: Path) -> None:
    line = Line(schedule())
    run(line, tmp_path, schedule())
    assert line.reports == [10]


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond a page: what the system answers then is what it answers on a full disk, but for words."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_leaves_the_previous_checkpoint_good(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / CHECKPOINT
    write_safely(path, lambda beside: torch.save({"weight": torch.ones(4)}, beside))
    request.getfixturevalue("full_disk")
    with pytest.raises(NotWritten, match=r"checkpoint\.pt cannot be written, and is as it was before"):
        write_safely(path, lambda beside: torch.save({"weight": torch.zeros(100_000)}, beside))
    assert torch.equal(load_checkpoint(path)["weight"], torch.ones(4))
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


def test_learning_rate_rises_and_falls_to_zero() -> None:
    plan = schedule(warmup_steps=4)
    assert learning_rate(plan, 0, 0.0) == pytest.approx(0.025)
    assert learning_rate(plan, 4, 0.0) == pytest.approx(0.1)
    assert learning_rate(plan, 9, 1.0) == pytest.approx(0.0, abs=1e-9)
