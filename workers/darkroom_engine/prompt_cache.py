"""Keeps the embeddings of the prompts that were encoded last: the same words are encoded once. Knows no batch."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from darkroom_engine.families.base import Conditioning

# The embeddings stay on the device. A prompt of CLIP's is 0.2 to 0.6 MB in float32, one of T5's up to 8 MB.
MAX_BYTES = 64 * 1024 * 1024


class PromptCache:
    """Embeddings by what they depend on, the least recently used leaving first. For one thread."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[Hashable, Conditioning] = OrderedDict()

    def get(self, key: Hashable, encode: Callable[[], Conditioning]) -> Conditioning:
        """Give the embeddings of a key, encoding where they are not there."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        embeddings = encode()
        self.put(key, embeddings)
        return embeddings

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def put(self, key: Hashable, embeddings: Conditioning) -> None:
        """Keep the embeddings of a key that is not there."""
        self._kept[key] = embeddings
        self._num_bytes += _size(embeddings)
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= _size(self._kept.popitem(last=False)[1])


def _size(embeddings: Conditioning) -> int:
    return sum(tensor.nbytes for tensor in embeddings.values())
