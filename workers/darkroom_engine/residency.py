"""Which models' weights are on the device, when there is not room for all: the least recently used wait on the host.

Weights leave and come back in place, so whatever refers to them (a LoRA, a view) stays right; only what remembers
addresses, as CUDA graphs do, has to be told. Knows modules; knows no request.
"""

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor, nn


class Weights:
    """The weights of one model: on its device, or parked on the host."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        tensors = [tensor for module in modules for tensor in module.state_dict().values()]
        # By storage, so that tied weights move once and stay tied.
        by_address = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors if tensor.numel()}
        self._storages = [_as_bytes(tensor) for tensor in by_address.values()]
        self.num_bytes = sum(len(storage) for storage in self._storages)
        self._parked: list[Tensor] | None = None

    @property
    def are_parked(self) -> bool:
        """Whether they wait on the host."""
        return self._parked is not None

    def park(self) -> None:
        """Copy the weights to the host, and give their memory on the device back."""
        if self._parked is None:
            self._parked = [storage.to("cpu", copy=True) for storage in self._storages]
            for storage in self._storages:
                storage.untyped_storage().resize_(0)

    def bring_back(self) -> None:
        """Put the weights back where they were."""
        if self._parked is not None:
            for storage, parked in zip(self._storages, self._parked, strict=True):
                storage.untyped_storage().resize_(len(parked))
                storage.copy_(parked)
            self._parked = None


def _as_bytes(tensor: Tensor) -> Tensor:
    """See the whole storage of a tensor as bytes, whatever the tensor shows of it."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


class Residency:
    """The models on one device, in the order of their last use. For one thread.

    `on_move(name)` is called whenever the addresses of a model's weights have changed.
    """

    def __init__(self, max_bytes: int | None, *, on_move: Callable[[str], None]) -> None:
        self._max_bytes = max_bytes
        self._on_move = on_move
        self._models: dict[str, Weights] = {}  # the least recently used first

    def add(self, name: str, weights: Weights) -> None:
        """Take in a model whose weights are on the device."""
        self._models[name] = weights
        self._make_room(busy={name})

    def use(self, name: str, *, busy: Collection[str]) -> None:
        """Have a model's weights on the device. Those of `busy` models are not parked, even where room is short."""
        weights = self._models[name] = self._models.pop(name)
        self._make_room(busy={name, *busy}, for_bytes=weights.num_bytes if weights.are_parked else 0)
        if weights.are_parked:
            weights.bring_back()
            self._on_move(name)

    def _make_room(self, *, busy: Collection[str], for_bytes: int = 0) -> None:
        if self._max_bytes is None:
            return
        resident = {name: weights for name, weights in self._models.items() if not weights.are_parked}
        num_bytes = for_bytes + sum(weights.num_bytes for weights in resident.values())
        for name, weights in resident.items():
            if num_bytes > self._max_bytes and name not in busy:
                weights.park()
                self._on_move(name)
                num_bytes -= weights.num_bytes
