"""What the catalog promises, held against the memory of the worker's device."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from darkroom.catalog import Catalog
from darkroom.config import Settings
from darkroom.errors import ConfigError
from darkroom_engine import Engine
from darkroom_engine.memory import MemoryBound
from darkroom_worker.app import _warm_up


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine("cpu", 2, num_threads=1)
    yield engine
    engine.stop()


def test_a_worker_takes_no_model_whose_largest_pictures_it_could_not_hold(engine: Engine, tmp_path: Path) -> None:
    entry = Catalog.load(Settings(home=tmp_path)).default
    engine.load(entry.name, source=entry.source)
    _warm_up(engine, entry, "cpu")
    few = entry.limits.max_pixels - 1
    engine._runner.memory[entry.name] = MemoryBound(few * 3.0, 1.0, 1.0)
    with pytest.raises(ConfigError, match=rf"promises pictures of {few + 1} pixels.*enough for {few};"):
        _warm_up(engine, entry, "cpu")
