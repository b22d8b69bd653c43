"""A small model with seeded weights, built once, and engines around it that are stepped by hand."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from darkroom_engine import Engine, Handle, Request
from darkroom_engine.families import seeded
from darkroom_engine.families.sd import StableDiffusion


class RecordingDiffusion(StableDiffusion):
    """Remembers the rows of every forward."""

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        super().__init__(pipeline, torch.device("cpu"))
        self.rows: list[int] = []

    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        self.rows.append(len(latents))
        return super().denoise(latents, timesteps, conditioning)


@pytest.fixture(scope="session")
def pipeline() -> StableDiffusionPipeline:
    return seeded.build(7)


@pytest.fixture(scope="session")
def model_folder(pipeline: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "seeded"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def model(pipeline: StableDiffusionPipeline) -> RecordingDiffusion:
    return RecordingDiffusion(pipeline)


@pytest.fixture
def make_engine(model: StableDiffusion) -> Iterator[Callable[..., Engine]]:
    """Builds engines that hold one model, "tiny", and stops them after the test."""
    engines: list[Engine] = []

    def make(*, max_rows: int = 8, model: StableDiffusion = model) -> Engine:
        engine = Engine("cpu", max_rows, num_threads=1)  # two threads on a busy machine mostly wait for each other
        engine.add("tiny", model, source="seeded:7")
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.stop()


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


@pytest.fixture
def request_for() -> Callable[..., Request]:
    """Builds requests for "tiny", with defaults for all that a test does not care about."""

    def build(**fields: object) -> Request:
        defaults = {
            "model": "tiny",
            "prompt": "a red house",
            "width": 64,
            "height": 64,
            "num_inference_steps": 4,
            "guidance_scale": 3.0,
            "sampler": "euler",
            "seed": 1,
        }
        return Request(**(defaults | fields))  # type: ignore[arg-type]

    return build


@pytest.fixture
def develop() -> Callable[..., list[Handle]]:
    """Steps an engine until nothing is in flight."""

    def run(engine: Engine, *requests: Request) -> list[Handle]:
        handles = [engine.submit(request) for request in requests]
        while engine.step():
            pass
        return handles

    return run


@pytest.fixture
def step_all() -> Callable[..., dict[int, Tensor]]:
    """Steps an engine until nothing is in flight, the requests joining one a step; gives each seed's last latents."""

    def run(engine: Engine, *requests: Request) -> dict[int, Tensor]:
        developments = set()
        for request in requests:
            engine.submit(request)
            engine.step()
            developments.update(engine._scheduler.developments)
        while engine.step():
            pass
        return {development.request.seed: development.latents for development in developments}

    return run
