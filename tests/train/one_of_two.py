"""One of two processes that train a line together. Run by test_group.py, as torchrun would: RANK, WORLD_SIZE set."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darkroom_train.group import Group, join_group
from darkroom_train.recipe import Training
from darkroom_train.training import Optimization, train

SCHEDULE = Training(steps=4, batch_size=6, learning_rate=0.1, log_steps=1, warmup_steps=2)


class Line:
    """Keeps what it was trained on, so that the gradients can be checked."""

    def __init__(self, group: Group) -> None:
        self.module = nn.Linear(3, 1)
        nn.init.constant_(self.module.weight, 0.1)
        nn.init.zeros_(self.module.bias)
        self.inputs: list[Tensor] = []
        self._group = group
        self._optimization = Optimization(self.module, SCHEDULE, group)

    def step(self, number: int, *, progress: float, learning_rate: float) -> Mapping[str, Tensor]:
        shape = (self._group.share(SCHEDULE.batch_size), 3)
        self.inputs.append(torch.randn(shape, generator=self._group.generator(1, number)))
        loss = (self.module(self.inputs[-1]) - 1).square().mean()
        self._optimization.apply(loss, number, learning_rate=learning_rate)
        return {"loss": loss.detach()}

    def report(self, number: int) -> Mapping[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise AssertionError("nothing to go on from")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with join_group(torch.device("cpu")) as group:
        line = Line(group)
        is_finished = train(
            line, SCHEDULE, folder, group=group, minutes=None, checkpoint_minutes=60, show=lambda *_: None
        )
        told = group.agree(float(group.rank + 5))
    found = {"weight": line.module.weight.detach(), "inputs": line.inputs, "finished": is_finished, "told": told}
    torch.save(found, folder / f"found-{group.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
