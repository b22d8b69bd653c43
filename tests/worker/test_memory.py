"""What the catalog promises, held against the memory of the worker's device."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from darkroom.config import Settings
from darkroom_engine import Engine, ModelLoadError
from darkroom_engine.memory import MemoryBound
from darkroom_worker.app import engine_plan
from darkroom_worker.engine_plan import warm_up


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine("cpu", 2, num_threads=1)
    yield engine
    engine.stop()


def test_a_worker_takes_no_model_whose_largest_pictures_it_could_not_hold(engine: Engine, tmp_path: Path) -> None:
    model = engine_plan(Settings(home=tmp_path)).models[0]
    engine.load(model.name, source=model.source)
    warm_up(engine, model, "cpu")
    few = model.promised_pixels - 1
    engine._runner.memory[model.name] = MemoryBound(few * 3.0, 1.0, 1.0)
    with pytest.raises(ModelLoadError, match=rf"promises pictures of {few + 1} pixels.*enough for {few};"):
        warm_up(engine, model, "cpu")
