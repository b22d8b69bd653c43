"""What every family does: it is loaded by its folder's pipeline class, and its pictures are those of diffusers."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import TinyFamily, picture_of
from torch import Tensor

from darkroom_engine import Engine, Handle, InvalidRequest, ModelLoadError, Request, Tuning
from darkroom_engine.families.folder import ModelFolder
from darkroom_engine.models import FAMILIES
from darkroom_engine.tuning import apply_tuning

# diffusers runs the two halves of guidance in one forward or in two, and pads or does not: the order of float32 sums
# changes, and a value may fall on the other side of a rounding.
GRAY_LEVELS = 1

# Row counts and padding change the order of float32 sums: about 1e-6 of the range, and errors grow over the steps.
TOLERANCE = 1e-4

# diffusers' own loop hands tensors to numpy the way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ("", "a red house", "a red house by the sea, seen from above, at night, under many stars")

Develop = Callable[..., list[Handle]]
Ask = Callable[..., Request]


def assert_same_picture(ours: "np.ndarray[Any, Any]", theirs: "np.ndarray[Any, Any]") -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 10  # a flat picture would hide every difference
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= GRAY_LEVELS


def far_apart(one: "np.ndarray[Any, Any]", other: "np.ndarray[Any, Any]") -> bool:
    """Whether two pictures differ so much that comparing them with those of diffusers tells them apart."""
    return bool(np.abs(one.astype(int) - other.astype(int)).max() > 10 * GRAY_LEVELS)


def test_the_folder_says_which_family_it_is(engine: Engine, name: str, tiny: TinyFamily) -> None:
    assert engine.models[name].family == tiny.family
    assert tiny.default_sampler in engine.models[name].samplers
    assert ("img2img" in engine.models[name].features) == (tiny.image_to_image is not None)


@pytest.mark.parametrize(
    "fields", [{}, {"negative_prompt": "blue", "seed": 2}, {"width": 64, "num_inference_steps": 2}]
)
def test_a_picture_alone_is_that_of_diffusers(
    engine: Engine, tiny: TinyFamily, pipeline: DiffusionPipeline, ask: Ask, develop: Develop, fields: dict[str, Any]
) -> None:
    request = ask(**fields)
    [handle] = develop(engine, request)
    assert_same_picture(handle.result(0).image, picture_of(pipeline, tiny, request))


def test_a_picture_without_guidance_is_that_of_diffusers(
    engine: Engine, tiny: TinyFamily, pipeline: DiffusionPipeline, ask: Ask, develop: Develop
) -> None:
    request = ask(**tiny.unguided)
    [handle] = develop(engine, request)
    assert_same_picture(handle.result(0).image, picture_of(pipeline, tiny, request))


def test_guidance_changes_the_picture_and_takes_the_rows_it_needs(
    engine: Engine, name: str, tiny: TinyFamily, ask: Ask, develop: Develop
) -> None:
    guided, stronger, unguided = ask(), replace(ask(), guidance_scale=8.0), ask(**tiny.unguided)
    model = engine._runner.models[name]
    assert [model.num_rows(request) for request in (guided, unguided)] == [tiny.num_rows_guided, 1]
    pictures = [handle.result(0).image for handle in develop(engine, guided, stronger, unguided)]
    assert all(far_apart(*pair) for pair in combinations(pictures, 2))


def test_words_change_the_picture(engine: Engine, tiny: TinyFamily, ask: Ask, develop: Develop) -> None:
    requests = [ask(), ask(prompt="two boats"), ask(negative_prompt="a long negative prompt")]
    picture, others, less = (handle.result(0).image for handle in develop(engine, *requests))
    assert far_apart(picture, others)
    assert far_apart(picture, less) == tiny.takes_negative_prompt


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_a_picture_from_a_picture_is_that_of_diffusers(
    engine: Engine,
    tiny: TinyFamily,
    pipeline: DiffusionPipeline,
    ask: Ask,
    develop: Develop,
    photograph: Any,
    strength: float,
) -> None:
    request = ask(image=photograph, strength=strength, num_inference_steps=5)
    if tiny.image_to_image is None:
        with pytest.raises(InvalidRequest, match="image"):
            engine.submit(request)
        return
    [handle] = develop(engine, request)
    assert_same_picture(handle.result(0).image, picture_of(pipeline, tiny, request))


def test_a_picture_is_the_same_alone_and_in_a_mixed_batch(
    engine: Engine, name: str, tiny: TinyFamily, ask: Ask, step_all: Callable[..., dict[int, Tensor]], photograph: Any
) -> None:
    samplers = engine.models[name].samplers
    mixed = [
        ask(seed=1, num_inference_steps=7),
        ask(seed=2, num_inference_steps=4, prompt="two boats on a lake, one of them sinking", guidance_scale=7.5),
        ask(seed=3, num_inference_steps=3, prompt="", **tiny.unguided),
        ask(seed=4, num_inference_steps=5, sampler=samplers[-1], negative_prompt="a long negative prompt"),
        ask(seed=5, num_inference_steps=2, sampler=samplers[0], guidance_scale=2.0),
    ]
    if tiny.image_to_image:
        mixed.append(ask(seed=6, num_inference_steps=6, image=photograph, strength=0.7))
    together = step_all(engine, *mixed)
    for request in mixed:
        alone = step_all(engine, request)[request.seed]
        difference = (together[request.seed] - alone).abs().max() / alone.abs().max()
        assert difference < TOLERANCE, request


def test_an_exact_picture_is_the_same_to_the_bit_whatever_its_neighbors(
    engine: Engine, tiny: TinyFamily, ask: Ask, step_all: Callable[..., dict[int, Tensor]]
) -> None:
    request = ask(is_exact=True, num_inference_steps=6)
    if tiny.family == "whole":
        with pytest.raises(InvalidRequest, match="is_exact"):
            engine.submit(request)
        return
    neighbors = [
        ask(is_exact=True, seed=2, prompt="two boats on a lake, one of them sinking"),
        ask(is_exact=True, seed=3, num_inference_steps=5, **tiny.unguided),
        ask(seed=4, negative_prompt="a long negative prompt"),
    ]
    alone, together = (step_all(engine, request, *others)[request.seed] for others in ([], neighbors))
    assert alone.equal(together)


def test_a_walk_ends_in_the_picture(engine: Engine, tiny: TinyFamily, ask: Ask, develop: Develop) -> None:
    if tiny.family == "whole":
        return  # it refuses walks: test_whole
    [handle] = develop(engine, ask(num_walk_frames=3, num_inference_steps=5))
    output = handle.result(0)
    assert output.walk is not None
    assert output.walk.shape == (3, tiny.size, tiny.size, 3)
    assert np.array_equal(output.walk[-1], output.image)
    assert far_apart(output.walk[0], output.image)


def test_in_bfloat16_too_a_picture_is_that_of_diffusers(
    name: str, tiny: TinyFamily, folders: Callable[[str], Path], ask: Ask, develop: Develop, photograph: Any
) -> None:
    engine = Engine("cpu", 32, num_threads=1)
    engine.load(name, source=str(folders(name)), dtype="bfloat16")
    pipeline = ModelFolder(name, folders(name)).load_pipeline(FAMILIES[tiny.family], torch.bfloat16)
    requests = [ask(), ask(**tiny.unguided, prompt="two boats on a lake")]
    if tiny.image_to_image:
        requests.append(ask(image=photograph, strength=0.6))
    for handle in develop(engine, *requests):
        theirs = picture_of(pipeline, tiny, handle.request)
        # 8 bits of precision in every sum, and the sums in another order.
        assert np.abs(handle.result(0).image.astype(int) - theirs.astype(int)).mean() < 3


def test_graphs_are_refused_where_prompts_or_pipelines_steer_the_forward(
    engine: Engine, name: str, tiny: TinyFamily
) -> None:
    model = engine._runner.models[name]
    assert model.is_recordable == (tiny.family not in ("qwen-image", "z-image", "whole"))
    if not model.is_recordable:
        with pytest.raises(ModelLoadError, match=f"cuda_graphs cannot be had with family '{tiny.family}'"):
            apply_tuning(name, model, Tuning(cuda_graphs=True))


def test_a_row_is_the_same_whatever_shares_its_forward(engine: Engine, name: str, tiny: TinyFamily, ask: Ask) -> None:
    if tiny.family == "whole":
        return  # its forwards are one pipeline's after the other
    runner, model = engine._runner, engine._runner.models[name]
    developments = [runner.prepare(ask(prompt=prompt, seed=seed)) for seed, prompt in enumerate(PROMPTS)]
    with torch.inference_mode():
        for development in developments:
            runner._start(model, development)
        latents = [d.latents.expand(d.num_rows, *d.latents.shape[1:]) for d in developments if d.latents is not None]
        timesteps = [torch.full((len(rows),), 100.0 * n + 7) for n, rows in enumerate(latents)]
        conditionings = [d.conditioning for d in developments if d.conditioning is not None]
        together = model.denoise(torch.cat(latents), torch.cat(timesteps), model.stack(conditionings))
        alone = [model.denoise(*inputs) for inputs in zip(latents, timesteps, conditionings, strict=True)]
    assert len(together) == sum(len(rows) for rows in latents) >= len(PROMPTS)
    assert (together - torch.cat(alone)).abs().max() < TOLERANCE * together.abs().max()


def test_prompts_of_any_length_share_a_forward(engine: Engine, ask: Ask) -> None:
    assert len({engine._runner.prepare(ask(prompt=prompt)).batch_key for prompt in PROMPTS}) == 1


@pytest.mark.parametrize("family", ["qwen-image", "z-image"])
def test_exact_prompts_share_a_forward_only_with_those_as_long(engines: Callable[[str], Engine], family: str) -> None:
    fields: dict[str, Any] = {"model": family, "width": 32, "height": 32, "num_inference_steps": 2, "seed": 1}
    fields |= {"guidance_scale": 4.0, "sampler": "euler", "is_exact": True}
    prompts = [*PROMPTS, PROMPTS[1][::-1]]
    prepared = [engines(family)._runner.prepare(Request(prompt=prompt, **fields)) for prompt in prompts]
    assert len({development.batch_key for development in prepared}) == len(PROMPTS)
