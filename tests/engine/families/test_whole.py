"""The family whole: pipelines without a family of their own, stepped by their own loops between others' turns."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import TINY_FAMILIES, picture_of

from darkroom_engine import (
    DeadlineExceeded,
    Engine,
    EngineStopped,
    Handle,
    InvalidRequest,
    Request,
    RequestCanceled,
    RequestFailed,
)
from darkroom_engine.errors import InvalidSnapshot, UnfitPipeline
from darkroom_engine.families.whole import WholePipeline

Develop = Callable[..., list[Handle]]


@pytest.fixture
def pipeline(pipelines: Callable[[str], DiffusionPipeline]) -> DiffusionPipeline:
    return pipelines("aura-flow")


@pytest.fixture
def engine(folders: Callable[[str], Path]) -> Iterator[Engine]:
    engine = Engine("cpu", num_threads=1)
    engine.load("aura", source=str(folders("aura-flow")))
    yield engine
    engine.stop()
    assert not threads_of_pipelines()


def threads_of_pipelines() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "darkroom-pipeline"]


def ask(**fields: Any) -> Request:
    defaults: dict[str, Any] = {
        "model": "aura",
        "prompt": "a red house",
        "width": 32,
        "height": 32,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "sampler": "default",
        "seed": 1,
    }
    return Request(**(defaults | fields))


def reference(pipeline: DiffusionPipeline, request: Request) -> Any:
    return picture_of(pipeline, TINY_FAMILIES["aura-flow"], request)


def test_a_pipeline_without_a_family_is_whole_and_has_one_sampler(engine: Engine) -> None:
    loaded = engine.models["aura"]
    assert (loaded.family, loaded.samplers, loaded.features) == ("whole", ("default",), frozenset())
    assert loaded.num_bytes > 10_000
    assert loaded.latent_multiple == 2


@pytest.mark.parametrize("fields", [{}, {"negative_prompt": "blue"}, {"guidance_scale": 1.0}, {"width": 64, "seed": 9}])
def test_its_picture_is_that_of_the_pipeline(
    engine: Engine, pipeline: DiffusionPipeline, develop: Develop, fields: dict[str, Any]
) -> None:
    request = ask(**fields)
    [handle] = develop(engine, request)
    picture = handle.result(0).image
    assert picture.std() > 10
    assert np.array_equal(picture, reference(pipeline, request))
    assert not threads_of_pipelines()


def test_its_steps_are_the_engines_steps(engine: Engine) -> None:
    handle = engine.submit(ask())
    steps = []
    while not handle.done:
        engine.step()
        steps.append((handle.progress.step, handle.progress.num_steps))
    assert [step for step, _ in steps[:4]] == [1, 2, 3, 4]
    assert {num_steps for _, num_steps in steps} == {4}


def test_requests_in_flight_together_keep_out_of_each_others_way(
    engine: Engine, pipeline: DiffusionPipeline, develop: Develop
) -> None:
    requests = [ask(seed=1), ask(seed=2, num_inference_steps=7, guidance_scale=1.0), ask(seed=3, prompt="two boats")]
    for handle in develop(engine, *requests):
        assert np.array_equal(handle.result(0).image, reference(pipeline, handle.request))


def test_other_models_have_their_turns_between_its_steps(engine: Engine, develop: Develop) -> None:
    engine.load("seeded", source="seeded:7")
    long = engine.submit(ask(num_inference_steps=100))
    for _ in range(3):
        engine.step()
    short = ask(model="seeded", sampler="euler", width=64, height=64, num_inference_steps=2)
    other = engine.submit(short)
    while not other.done:
        engine.step()
    assert not long.done
    long.cancel()
    develop(engine)


def test_canceling_ends_the_pipeline_where_it_stands(engine: Engine) -> None:
    handle = engine.submit(ask(num_inference_steps=50))
    engine.step()
    engine.step()
    handle.cancel()
    engine.step()
    with pytest.raises(RequestCanceled):
        handle.result(0)
    assert not threads_of_pipelines()


def test_a_deadline_ends_the_pipeline_where_it_stands(engine: Engine) -> None:
    handle = engine.submit(ask(num_inference_steps=50, deadline=time.monotonic() + 0.2))
    while not handle.done:
        engine.step()
    with pytest.raises(DeadlineExceeded):
        handle.result(0)
    assert not threads_of_pipelines()


def test_stopping_the_engine_ends_the_pipeline(engine: Engine) -> None:
    handle = engine.submit(ask(num_inference_steps=50))
    engine.step()
    assert threads_of_pipelines()
    engine.stop()
    with pytest.raises(EngineStopped):
        handle.result(0)
    assert not threads_of_pipelines()


def test_a_failing_pipeline_fails_its_request_alone(
    engine: Engine, pipeline: DiffusionPipeline, develop: Develop
) -> None:
    wrong = ask(width=34, seed=7)  # which the pipeline takes for 32 or refuses
    good = ask()
    failed, succeeded = develop(engine, wrong, good)
    with pytest.raises(RequestFailed):
        failed.result(0)
    assert np.array_equal(succeeded.result(0).image, reference(pipeline, good))


def test_what_only_a_family_of_its_own_can_give_is_refused(engine: Engine) -> None:
    photograph = np.zeros((32, 32, 3), np.uint8)
    for field, fields in {
        "is_exact": {"is_exact": True},
        "num_walk_frames": {"num_walk_frames": 4},
        "image": {"image": photograph},
        "loras": {"loras": (("style", 1.0),)},
        "sampler": {"sampler": "euler"},
    }.items():
        with pytest.raises(InvalidRequest) as refusal:
            engine.submit(ask(**fields))
        assert refusal.value.field == field


def test_it_cannot_be_written_down(engine: Engine) -> None:
    handle = engine.submit(ask())
    engine.step()
    with pytest.raises(InvalidSnapshot):
        engine.snapshot(handle)


def test_a_warm_up_has_nothing_to_measure(engine: Engine) -> None:
    assert engine.warm_up("aura", [(32, 32)]) == engine.models["aura"]
    assert not threads_of_pipelines()


class Unbroken(diffusers.AuraFlowPipeline):  # type: ignore[misc]
    """Calls nobody between its steps."""

    def __call__(self, prompt: str, width: int, height: int, num_inference_steps: int, generator: Any) -> Any:
        return super().__call__(
            prompt, width=width, height=height, num_inference_steps=num_inference_steps, generator=generator
        )


def test_a_pipeline_that_calls_nobody_between_its_steps_runs_in_one_go_and_says_so(
    pipeline: DiffusionPipeline, develop: Develop, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine("cpu", num_threads=1)
    model = WholePipeline(Unbroken(**pipeline.components), torch.device("cpu"))
    engine.add("aura", model, source="memory")
    assert "Unbroken calls nobody between its steps: each request runs in one go" in caplog.text
    request = ask(guidance_scale=3.5)
    [handle] = develop(engine, request)
    assert np.array_equal(handle.result(0).image, reference(pipeline, request))


class Wordless(Unbroken):
    """Gives no picture."""

    def __call__(self, prompt: str, width: int, height: int, num_inference_steps: int, generator: Any) -> Any:
        return (prompt,)


def test_a_pipeline_without_a_picture_fails_its_request(pipeline: DiffusionPipeline, develop: Develop) -> None:
    engine = Engine("cpu", num_threads=1)
    engine.add("aura", WholePipeline(Wordless(**pipeline.components), torch.device("cpu")), source="memory")
    [handle] = develop(engine, ask())
    with pytest.raises(RequestFailed, match="the pipeline gave a tuple without a picture"):
        handle.result(0)


class Blind(Unbroken):
    """Needs what no request has."""

    def __call__(
        self, prompt: str, image: Any, width: int, height: int, num_inference_steps: int, generator: Any
    ) -> Any:
        raise NotImplementedError


class Filmmaker(Unbroken):
    """Makes videos."""

    def __call__(
        self, prompt: str, width: int, height: int, num_inference_steps: int, generator: Any, num_frames: int = 1
    ) -> Any:
        raise NotImplementedError


class Numerical(Unbroken):
    """Takes no words."""

    def __call__(self, width: int, height: int, num_inference_steps: int, generator: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("pipeline_class", "problem"),
    [
        (Blind, "Blind needs image, which no request has"),
        (Filmmaker, "Filmmaker makes videos"),
        (Numerical, "Numerical takes no prompt"),
    ],
)
def test_a_pipeline_that_makes_no_picture_from_words_is_refused(
    pipeline: DiffusionPipeline, pipeline_class: type[Unbroken], problem: str
) -> None:
    with pytest.raises(UnfitPipeline, match=problem):
        WholePipeline(pipeline_class(**pipeline.components), torch.device("cpu"))
