"""Which models' weights are on the device, when there is not room for all: the least recently used wait on the host.

Weights leave and come back in place, so whatever refers to them (a LoRA, a view) stays right; only what remembers
addresses, as CUDA graphs do, has to be told. Knows modules; knows no request.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import Tensor, nn


class Weights:
    """The weights of one model: on its device, or parked on the host."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        by_address: dict[int, list[Tensor]] = {}  # by storage, so that tied weights move once and stay tied
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.numel():
                    by_address.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        self._storages = [_as_bytes(_own_storage(tensors)) for tensors in by_address.values()]
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


def _own_storage(tensors: Sequence[Tensor]) -> torch.UntypedStorage:
    """Give the storage that tensors share; one that lies in a file, which cannot shrink, is copied for them first."""
    storage = tensors[0].untyped_storage()
    if storage.resizable():
        return storage
    copy: torch.UntypedStorage = storage.clone()
    for tensor in tensors:
        place = (tensor.storage_offset(), tensor.shape, tensor.stride())
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(copy, *place)
    return copy


def _as_bytes(storage: torch.UntypedStorage) -> Tensor:
    """See a whole storage as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


class Residency:
    """The models on one device, in the order of their last use. For one thread.

    Without a limit they all stay. `on_move(name)` is called whenever the addresses of a model's weights have changed.
    """

    def __init__(self, max_bytes: int | None, *, on_move: Callable[[str], None]) -> None:
        self._max_bytes = max_bytes
        self._on_move = on_move
        self._models: dict[str, Weights] = {}  # the least recently used first

    def add(self, name: str, modules: Iterable[nn.Module]) -> None:
        """Take in a model whose weights are on the device."""
        if self._max_bytes is not None:
            self._models[name] = Weights(modules)
            self._make_room(self._max_bytes, busy={name})

    def is_parked(self, name: str) -> bool:
        """Whether a model's weights wait on the host."""
        return name in self._models and self._models[name].are_parked

    def use(self, name: str, *, busy: Collection[str]) -> None:
        """Have a model's weights on the device. Those of `busy` models are not parked, even where room is short."""
        if self._max_bytes is None:
            return
        weights = self._models[name] = self._models.pop(name)
        self._make_room(self._max_bytes, busy={name, *busy}, for_bytes=weights.num_bytes if weights.are_parked else 0)
        if weights.are_parked:
            weights.bring_back()
            self._on_move(name)

    def _make_room(self, max_bytes: int, *, busy: Collection[str], for_bytes: int = 0) -> None:
        resident = {name: weights for name, weights in self._models.items() if not weights.are_parked}
        num_bytes = for_bytes + sum(weights.num_bytes for weights in resident.values())
        for name, weights in resident.items():
            if num_bytes > max_bytes and name not in busy:
                weights.park()
                self._on_move(name)
                num_bytes -= weights.num_bytes
