"""The prompt cache: the same words are encoded once, in so many bytes and no more."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from darkroom_engine import Engine, Handle, Request
from darkroom_engine.prompt_cache import PromptCache

FOUR_FLOATS = 16


@pytest.fixture
def encodings() -> list[str]:
    """What was encoded, in order."""
    return []


@pytest.fixture
def embed(encodings: list[str]) -> Callable[[PromptCache, str], Mapping[str, Tensor]]:
    def encode(prompt: str) -> Mapping[str, Tensor]:
        encodings.append(prompt)
        return {"embeds": torch.full((4,), float(len(encodings)))}

    return lambda cache, prompt: cache.get(prompt, lambda: encode(prompt))


def test_the_least_recently_used_prompt_leaves_first(
    encodings: list[str], embed: Callable[[PromptCache, str], Mapping[str, Tensor]]
) -> None:
    cache = PromptCache(max_bytes=2 * FOUR_FLOATS)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        embed(cache, prompt)
    assert encodings == ["a", "b", "c", "b"]


@pytest.mark.parametrize(("max_bytes", "num_encodings"), [(FOUR_FLOATS - 1, 2), (FOUR_FLOATS, 1), (FOUR_FLOATS + 1, 1)])
def test_what_is_larger_than_the_cache_is_encoded_each_time(
    encodings: list[str],
    embed: Callable[[PromptCache, str], Mapping[str, Tensor]],
    max_bytes: int,
    num_encodings: int,
) -> None:
    cache = PromptCache(max_bytes=max_bytes)
    assert embed(cache, "a")["embeds"].shape == embed(cache, "a")["embeds"].shape
    assert len(encodings) == num_encodings


def counting(model: Any, encodings: list[str]) -> Any:
    """Give the model again, noting what it encodes, and in `together` how many prompts it encodes in one go."""

    class CountingDiffusion(type(model)):  # type: ignore[misc]
        def encode(self, prompt: str, *, is_negative: bool) -> Any:
            encodings.append(prompt)
            return super().encode(prompt, is_negative=is_negative)

        def encode_together(self, prompts: Sequence[str]) -> Any:
            encodings.extend(prompts)
            together.append(len(prompts))
            return super().encode_together(prompts)

    together: list[int] = []
    counted = CountingDiffusion(model._pipeline)
    counted.together = together
    return counted


def test_prompts_of_several_newcomers_are_encoded_together_and_exact_ones_alone(
    make_engine: Callable[..., Engine],
    model: Any,
    encodings: list[str],
    request_for: Callable[..., Request],
    develop: Callable[..., list[Handle]],
) -> None:
    counted = counting(model, encodings)
    requests = [request_for(prompt=prompt, guidance_scale=1.0) for prompt in ("a fox", "a dog", "a cat")]
    develop(make_engine(model=counted), *requests)
    assert counted.together == [3]
    exact = [replace(each, is_exact=True) for each in requests]
    develop(make_engine(model=counted), *exact)
    assert counted.together == [3]
    assert sorted(encodings) == sorted(2 * ["a fox", "a dog", "a cat"])


def test_prompts_that_cannot_be_encoded_together_are_encoded_alone(
    make_engine: Callable[..., Engine],
    model: Any,
    request_for: Callable[..., Request],
    develop: Callable[..., list[Handle]],
) -> None:
    class OneAtATime(type(model)):  # type: ignore[misc]
        def encode_together(self, prompts: Sequence[str]) -> Any:
            raise ValueError("one at a time, please")

    handles = develop(make_engine(model=OneAtATime(model._pipeline)), request_for(prompt="a"), request_for(prompt="b"))
    assert not np.array_equal(handles[0].result(0).image, handles[1].result(0).image)


def test_requests_with_the_same_words_are_encoded_once(
    make_engine: Callable[..., Engine],
    model: Any,
    encodings: list[str],
    request_for: Callable[..., Request],
    develop: Callable[..., list[Handle]],
) -> None:
    engine = make_engine(model=counting(model, encodings))
    first, again = develop(
        engine,
        request_for(prompt="a fox", negative_prompt="a dog"),
        request_for(prompt="a fox", negative_prompt="a dog"),
        request_for(prompt="a dog", negative_prompt="a fox", seed=2),
    )[:2]
    assert sorted(encodings) == ["a dog", "a dog", "a fox", "a fox"]  # as a prompt and as a negative prompt, apart
    assert np.array_equal(first.result(0).image, again.result(0).image)
