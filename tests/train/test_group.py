"""Two processes train one model: other pictures, the same weights, and one log."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from darkroom_train.errors import GroupError
from darkroom_train.group import Group
from darkroom_train.recipe import Training
from darkroom_train.training import LOG, Optimization, learning_rate

SCRIPT = Path(__file__).with_name("one_of_two.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes left."""
    path = tmp_path_factory.mktemp("two")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    search = os.pathsep.join(path for path in sys.path if path)
    shared = {
        **os.environ,
        "PYTHONPATH": search,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    processes = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(path)], env={**shared, "RANK": str(rank)}) for rank in (0, 1)
    ]
    try:
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return path


@pytest.fixture
def found(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_both_end_with_the_same_weights(found: list[dict[str, Any]]) -> None:
    assert torch.equal(found[0]["weight"], found[1]["weight"])
    assert found[0]["finished"]
    assert found[1]["finished"]


def test_each_sees_its_own_part_of_the_batch(found: list[dict[str, Any]]) -> None:
    assert found[0]["inputs"][0].shape == (3, 3)
    assert not torch.equal(found[0]["inputs"][0], found[1]["inputs"][0])


def test_weights_are_those_of_one_process_with_the_whole_batch(found: list[dict[str, Any]]) -> None:
    schedule = Training(steps=4, batch_size=6, learning_rate=0.1, log_steps=1, warmup_steps=2)
    line = nn.Linear(3, 1)
    nn.init.constant_(line.weight, 0.1)
    nn.init.zeros_(line.bias)
    optimization = Optimization(line, schedule, Group())
    for number, parts in enumerate(zip(found[0]["inputs"], found[1]["inputs"], strict=True)):
        loss = (line(torch.cat(parts)) - 1).square().mean()
        optimization.apply(loss, number, learning_rate=learning_rate(schedule, number, number / 4))
    # 1e-6: the sums are taken in another order.
    assert torch.allclose(line.weight, found[0]["weight"], atol=1e-6)


def test_one_log_is_written(folder: Path) -> None:
    assert len((folder / LOG).read_text().splitlines()) == 5


def test_the_first_decides(found: list[dict[str, Any]]) -> None:
    assert [each["told"] for each in found] == [5.0, 5.0]


def test_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(GroupError, match="a batch of 5 cannot be divided among 2 processes"):
        Group(size=2).share(5)
