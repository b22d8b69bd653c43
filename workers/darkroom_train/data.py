"""The data stage: fills the stores of training and of held-out pictures. Drawn scenes or a folder; no tensor.

Drawn pictures come from (seed, index) alone, so any number of processes may draw, and drawing goes on where it ended.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from darkroom_train.captions import caption
from darkroom_train.drawing import draw
from darkroom_train.errors import FolderError
from darkroom_train.folder import FolderReading, read_folder
from darkroom_train.recipe import Recipe
from darkroom_train.scenes import Scene, get_domain, sample_scene
from darkroom_train.store import SHARD_PICTURES, shard_path, write_shard

Report = Callable[[int, int], None]

# Seeds of what training never sees, far from the recipes' own.
HELD_OUT_SEED = 1_000_000_007
EVALUATION_SEED = 2_000_000_011
RECOGNIZER_SEED = 3_000_000_019
RECOGNIZER_SIDE = 64  # pixels that the recognizer looks at, whatever the picture's size


@dataclass(frozen=True)
class Drawing:
    """What to draw: scenes by (seed, index) at a size, with so many captions each."""

    domain: str
    seed: int
    size: int
    captions_per_picture: int


def fill_stores(recipe: Recipe, folder: Path, *, processes: int, skip_bad: bool, report: Report) -> list[str]:
    """Write train/ and held-out/ below `folder`. Gives what was skipped. Raises FolderError or PictureError."""
    if recipe.data.source == "folder":
        return _fill_from_folder(recipe, folder, skip_bad=skip_bad)
    data = recipe.data
    drawing = Drawing(data.domain, recipe.seed, data.size, data.captions_per_picture)
    held_out = Drawing(data.domain, recipe.seed + HELD_OUT_SEED, data.size, data.captions_per_picture)
    draw_store(folder / "held-out", held_out, data.num_held_out, processes=processes, report=report)
    draw_store(folder / "train", drawing, data.num_pictures, processes=processes, report=report)
    return []


def draw_store(folder: Path, drawing: Drawing, num_pictures: int, *, processes: int, report: Report) -> None:
    """Draw the shards that are not there yet, so many that they hold at least `num_pictures`."""
    starts = range(0, num_pictures, SHARD_PICTURES)
    missing = [first for number, first in enumerate(starts) if not shard_path(folder, number).exists()]
    draw_one = partial(draw_shard, folder, drawing)
    report(len(starts) - len(missing), len(starts))
    if processes == 1:
        for done, first in enumerate(missing, start=len(starts) - len(missing) + 1):
            draw_one(first)
            report(done, len(starts))
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(draw_one, missing), start=len(starts) - len(missing) + 1):
            report(done, len(starts))


def draw_shard(folder: Path, drawing: Drawing, first: int) -> None:
    """Draw one shard, from picture `first` on."""
    domain = get_domain(drawing.domain)
    indices = range(first, first + SHARD_PICTURES)
    scenes = [sample_scene(domain, drawing.seed, index) for index in indices]
    captions = [
        [caption(scene, caption_seed(drawing.seed, index, number)) for number in range(drawing.captions_per_picture)]
        for index, scene in zip(indices, scenes, strict=True)
    ]
    path = shard_path(folder, first // SHARD_PICTURES)
    write_shard(path, [draw(scene, drawing.size) for scene in scenes], captions)


def caption_seed(seed: int, index: int, number: int) -> int:
    """Give each caption of each picture a seed of its own."""
    return (seed * 1_000_003 + index) * 64 + number


def _fill_from_folder(recipe: Recipe, folder: Path, *, skip_bad: bool) -> list[str]:
    source = Path(recipe.data.folder).expanduser()
    if not source.is_dir():
        raise FolderError(source, "is no folder")
    reading = read_folder(source, recipe.data.size, skip_bad=skip_bad)
    num_held_out = min(recipe.data.num_held_out, max(1, len(reading.pictures) // 20))
    _write_part(folder / "held-out", reading, range(num_held_out))
    _write_part(folder / "train", reading, range(num_held_out, len(reading.pictures)))
    return reading.skipped


def _write_part(folder: Path, reading: FolderReading, indices: Sequence[int]) -> None:
    for number, first in enumerate(range(0, len(indices), SHARD_PICTURES)):
        chosen = indices[first : first + SHARD_PICTURES]
        pictures = [reading.pictures[index] for index in chosen]
        write_shard(shard_path(folder, number), pictures, [[reading.captions[index]] for index in chosen])


@dataclass(frozen=True)
class LabeledPictures:
    """Drawn pictures (N, 3, size, size), with the scenes they show."""

    pictures: npt.NDArray[np.uint8]
    scenes: list[Scene]


def draw_labeled(recipe: Recipe, num_pictures: int, *, first: int, processes: int) -> LabeledPictures:
    """Draw pictures for the recognizer, in memory and as small as it looks at them, no combination withheld."""
    domain = replace(get_domain(recipe.data.domain), withheld=())
    indices = range(first, first + num_pictures)
    scenes = [sample_scene(domain, recipe.seed + RECOGNIZER_SEED, index) for index in indices]
    draw_one = partial(_draw_small, size=recipe.data.size)
    if processes == 1:
        pictures = list(map(draw_one, scenes))
    else:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            pictures = list(pool.map(draw_one, scenes, chunksize=64))
    return LabeledPictures(np.stack(pictures), scenes)


def _draw_small(scene: Scene, *, size: int) -> npt.NDArray[np.uint8]:
    """Draw at full size and average down, as a generated picture is before it is judged."""
    image = Image.fromarray(draw(scene, size).transpose(1, 2, 0))
    small = image.resize((RECOGNIZER_SIDE, RECOGNIZER_SIDE), Image.Resampling.BOX)
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))
