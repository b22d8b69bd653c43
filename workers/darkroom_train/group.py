"""Several processes that train one model, started by torchrun: each takes its part of every batch.

Gradients are averaged; on everything else the first process decides, so that the weights never differ.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from darkroom_train.errors import GroupError

# How long the others wait while the first process alone draws, encodes or measures.
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Group:
    """This process's place among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints, logs and models."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """Give this process's part of a batch. Raises GroupError when it cannot be divided."""
        if batch_size % self.size:
            raise GroupError(batch_size, self.size)
        return batch_size // self.size

    def generator(self, seed: int, number: int) -> torch.Generator:
        """Give the generator of one step: each step and each process has its own, so there is none to save."""
        return torch.Generator(self.device).manual_seed(seed * 1_000_000_007 + self.rank * 500_000_003 + number)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.size).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def agree(self, value: float) -> float:
        """Give the first process's value."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, src=0)
        return float(shared)

    def wait(self) -> None:
        """Go on when all have come so far."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_group(device: torch.device) -> Iterator[Group]:
    """Join the processes that torchrun started, or be alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group(device=device)
        return
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Group(dist.get_rank(), size, device)
    finally:
        dist.destroy_process_group()
