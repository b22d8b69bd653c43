"""Models that do not all fit: the least recently used waits on the host, and comes back as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from darkroom_engine import Engine, Handle, Request
from darkroom_engine.residency import Residency, Weights

KILOBYTE = 1024


def modules(kilobytes: int = 1) -> list[nn.Module]:
    return [nn.Linear(KILOBYTE // 4, kilobytes, bias=False)]


@pytest.fixture
def moved() -> list[str]:
    return []


@pytest.fixture
def residency(moved: list[str]) -> Residency:
    """Room for three kilobytes, with models a, b and c of one each."""
    residency = Residency(3 * KILOBYTE, on_move=moved.append)
    for name in "abc":
        residency.add(name, modules())
    return residency


def test_weights_come_back_as_they_were() -> None:
    module = nn.Linear(4, 4)
    view = module.weight.detach()[1]
    before = module.weight.detach().clone()
    parked = Weights([module])
    parked.park()
    assert parked.are_parked
    assert module.weight.untyped_storage().nbytes() == 0
    parked.bring_back()
    assert module.weight.equal(before)
    assert view.equal(before[1])


@pytest.mark.parametrize("from_file", [False, True])
def test_tied_weights_stay_tied(from_file: bool, tmp_path: Path) -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    if from_file:  # as weights do that are loaded without being copied
        (tmp_path / "weights").write_bytes(bytes(4 * 4 * 4))
        first.weight.data = torch.from_file(str(tmp_path / "weights"), shared=False, size=16).view(4, 4)
    second.weight = first.weight
    tied = Weights([first, second])
    assert tied.num_bytes == 4 * 4 * 4
    tied.park()
    tied.bring_back()
    with torch.no_grad():
        first.weight.fill_(2.0)
    assert second.weight.eq(2.0).all()


def test_what_fits_stays(residency: Residency, moved: list[str]) -> None:
    for name in "abcabc":
        residency.use(name, busy=())
    assert moved == []


def test_the_least_recently_used_makes_room(residency: Residency, moved: list[str]) -> None:
    residency.use("a", busy=())
    residency.add("d", modules())
    assert moved == ["b"]
    residency.use("b", busy=())
    assert moved == ["b", "c", "b"]


def test_a_large_model_makes_several_small_ones_wait(residency: Residency, moved: list[str]) -> None:
    residency.add("large", modules(2))
    assert moved == ["a", "b"]


def test_a_busy_model_is_not_parked(residency: Residency, moved: list[str]) -> None:
    residency.add("d", modules())
    moved.clear()
    residency.use("a", busy={"b"})
    assert moved == ["c", "a"]
    residency.use("c", busy={"a", "b", "d"})  # no room can be made, and it is needed all the same
    assert moved == ["c", "a", "c"]
    residency.use("c", busy=())  # now it can
    assert moved == ["c", "a", "c", "b"]


def test_pictures_are_the_same_when_models_take_turns_on_the_device(
    pipeline: Any, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    requests = [request_for(model=f"seeded-{seed}", seed=seed) for seed in (7, 8, 7)]
    roomy, narrow = Engine("cpu", num_threads=1), Engine("cpu", num_threads=1, max_model_bytes=20_000_000)
    for engine in (roomy, narrow):
        for seed in (7, 8):
            engine.load(f"seeded-{seed}", source=f"seeded:{seed}")
    assert roomy.models["seeded-7"].num_bytes < 20_000_000 < 2 * roomy.models["seeded-7"].num_bytes
    pictures = [[handle.result(0).image for handle in develop(engine, *requests)] for engine in (roomy, narrow)]
    for ours, theirs in zip(*pictures, strict=True):
        assert np.array_equal(ours, theirs)
    develop(narrow, request_for(model="seeded-8"))
    parked = [weights.are_parked for weights in narrow._residency._models.values()]
    assert parked == [True, False]
    for engine in (roomy, narrow):
        engine.stop()
