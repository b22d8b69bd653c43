"""Pictures and captions on disk, in shards that are whole or not there. Knows neither scenes nor tensors.

A shard is one safetensors file of pictures compressed one by one, with their captions in its header.
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file

from darkroom_train.errors import StageMissing
from darkroom_train.files import write_safely

Picture = npt.NDArray[np.uint8]

SHARD_PICTURES = 256


def shard_path(folder: Path, number: int) -> Path:
    """Say where a shard lies."""
    return folder / f"pictures-{number:05}.safetensors"


def write_shard(path: Path, pictures: Sequence[Picture], captions: Sequence[Sequence[str]]) -> None:
    """Write pictures (3, size, size) of one size, each with its captions."""
    packed = [zlib.compress(picture.tobytes(), 1) for picture in pictures]
    tensors = {
        "packed": np.frombuffer(b"".join(packed), dtype=np.uint8),
        "ends": np.cumsum([len(piece) for piece in packed]),
        "size": np.array([pictures[0].shape[-1]]),
    }
    header = {"captions": json.dumps([list(several) for several in captions], ensure_ascii=False)}
    write_safely(path, lambda beside: save_file(tensors, beside, metadata=header))


def count_pictures(folder: Path) -> int:
    """Count the pictures of a folder by the shards' headers, without reading them."""
    count = 0
    for path in folder.glob("pictures-*.safetensors"):
        with safe_open(path, framework="np") as shard:
            count += shard.get_slice("ends").get_shape()[0]
    return count


class PictureStore:
    """The shards of a folder, read whole. Raises StageMissing when there is none."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("pictures-*.safetensors"))
        if not paths:
            raise StageMissing(folder, "data")
        self.captions: list[list[str]] = []
        self._packed: list[memoryview] = []
        for path in paths:
            self._read(path)

    def __len__(self) -> int:
        return len(self._packed)

    def picture(self, index: int) -> Picture:
        """Unpack one picture, uint8 (3, size, size)."""
        pixels = np.frombuffer(zlib.decompress(self._packed[index]), dtype=np.uint8)
        return pixels.reshape(3, self.size, self.size)

    def pictures(self, first: int, last: int, *, threads: int = 1) -> Picture:
        """Unpack the pictures from `first` up to `last`, uint8 (B, 3, size, size)."""
        unpacked = np.empty((last - first, 3, self.size, self.size), dtype=np.uint8)

        def unpack(index: int) -> None:
            unpacked[index - first] = self.picture(index)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(unpack, range(first, last)))
        return unpacked

    def batches(self, num_pictures: int, batch_size: int, *, threads: int = 1) -> Iterator[Picture]:
        """Unpack the first pictures batch by batch."""
        for first in range(0, num_pictures, batch_size):
            yield self.pictures(first, min(first + batch_size, num_pictures), threads=threads)

    def _read(self, path: Path) -> None:
        with safe_open(path, framework="np") as shard:
            packed = memoryview(shard.get_tensor("packed"))
            ends = shard.get_tensor("ends")
            self.size = int(shard.get_tensor("size")[0])
            self.captions += json.loads(shard.metadata()["captions"])
        for first, last in zip([0, *ends[:-1]], ends, strict=True):
            self._packed.append(packed[int(first) : int(last)])
