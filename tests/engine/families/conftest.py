"""Each family's tiny pipeline, built, saved and loaded once."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from tiny_pipelines import TINY_FAMILIES, TinyFamily

from darkroom_engine import Engine, Request
from darkroom_engine.quiet import quiet


@pytest.fixture(params=TINY_FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tiny(name: str) -> TinyFamily:
    return TINY_FAMILIES[name]


@pytest.fixture(scope="session")
def pipelines() -> Callable[[str], DiffusionPipeline]:
    """Builds a family's pipeline, once."""

    @cache
    def build(name: str) -> DiffusionPipeline:
        return TINY_FAMILIES[name].build()

    return build


@pytest.fixture(scope="session")
def folders(
    pipelines: Callable[[str], DiffusionPipeline], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Saves a family's pipeline, once, and says where."""

    @cache
    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp("families") / name
        with quiet():
            pipelines(name).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def engines(folders: Callable[[str], Path]) -> Iterator[Callable[[str], Engine]]:
    """Loads a family's folder into an engine of its own, once. Stepped by hand, it is empty again after each test."""

    @cache
    def load(name: str) -> Engine:
        engine = Engine("cpu", 32, num_threads=1)
        engine.load(name, source=str(folders(name)))
        loaded.append(engine)
        return engine

    loaded: list[Engine] = []
    yield load
    for engine in loaded:
        engine.stop()


@pytest.fixture
def pipeline(name: str, pipelines: Callable[[str], DiffusionPipeline]) -> DiffusionPipeline:
    return pipelines(name)


@pytest.fixture
def engine(name: str, engines: Callable[[str], Engine]) -> Engine:
    return engines(name)


@pytest.fixture
def ask(name: str, tiny: TinyFamily) -> Callable[..., Request]:
    """Builds requests for the family, its guidance on, with defaults for all that a test does not care about."""

    def build(**fields: Any) -> Request:
        defaults = {
            "model": name,
            "prompt": "a red house",
            "width": tiny.size,
            "height": tiny.size,
            "num_inference_steps": 3,
            "sampler": tiny.default_sampler,
            "seed": 1,
            **tiny.guided,
        }
        return Request(**(defaults | fields))

    return build


@pytest.fixture
def photograph(tiny: TinyFamily) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """A picture to begin with."""
    height, width = tiny.size, tiny.size
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
