"""Requests that are refused at submit, each with its field and its limit."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from darkroom_engine import Engine, InvalidRequest, Request, UnknownModel

IMAGE = np.zeros((64, 64, 3), np.uint8)
MASK = np.zeros((64, 64), np.uint8)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("prompt", None, "is a NoneType, and must be a str"),
        ("prompt", "\ud800", "must be valid Unicode"),
        ("negative_prompt", 5, "is a int, and must be a str"),
        ("width", 65, "is 65, and must be a multiple of 8"),
        ("width", 0, "is 0, and must be an integer of at least 1"),
        ("height", -8, "is -8, and must be an integer of at least 1"),
        ("height", 64.0, "is a float, and must be an integer of at least 1"),
        ("num_inference_steps", 0, "is 0, and must be an integer from 1 to 1000"),
        ("num_inference_steps", 1001, "is 1001, and must be an integer from 1 to 1000"),
        ("num_inference_steps", True, "is a bool, and must be an integer from 1 to 1000"),
        ("guidance_scale", math.nan, "is nan, and must be a finite number of at least 0"),
        ("guidance_scale", math.inf, "is inf, and must be a finite number of at least 0"),
        ("guidance_scale", -1.0, "is -1.0, and must be a finite number of at least 0"),
        ("guidance_scale", "3", "is '3', and must be a finite number of at least 0"),
        ("sampler", "magic", "is 'magic', and must be one of ddim, "),
        ("seed", -1, "is -1, and must be an integer from 0 to 18446744073709551615"),
        ("seed", 2**64, "must be an integer from 0 to 18446744073709551615"),
        ("priority", 2, "is 2, and must be an integer from 0 to 1"),
        ("strength", 0.5, "is 0.5, and there is no image that it could be for"),
        ("mask", MASK, "is given, and there is no image that it could be for"),
        ("image", IMAGE[:32], "is uint8 (32, 64, 3), and must be uint8 (64, 64, 3)"),
        ("image", IMAGE / 255, "is float64 (64, 64, 3), and must be uint8 (64, 64, 3)"),
        ("image", b"PNG", "is a bytes, and must be uint8 (64, 64, 3)"),
        ("deadline", math.nan, "is nan, and must be a finite number"),
    ],
)
def test_a_wrong_field_is_refused_with_its_limit(
    engine: Engine, request_for: Callable[..., Request], field: str, value: object, problem: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        engine.submit(request_for(**{field: value}))
    assert refusal.value.field == field
    assert problem in refusal.value.problem


@pytest.mark.parametrize(
    ("strength", "problem"),
    [
        (0, "is 0, and must be above 0 and at most 1"),
        (1.5, "is 1.5, and must be above 0 and at most 1"),
        (math.nan, "is nan, and must be a finite number"),
        (0.2, "is 0.2, and leaves not one of 4 steps"),
    ],
)
def test_a_wrong_strength_is_refused(
    engine: Engine, request_for: Callable[..., Request], strength: float, problem: str
) -> None:
    with pytest.raises(InvalidRequest, match=problem) as refusal:
        engine.submit(request_for(image=IMAGE, strength=strength))
    assert refusal.value.field == "strength"


def test_a_mask_of_another_size_is_refused(engine: Engine, request_for: Callable[..., Request]) -> None:
    with pytest.raises(InvalidRequest, match=r"mask is uint8 \(32, 64\), and must be uint8 \(64, 64\)"):
        engine.submit(request_for(image=IMAGE, mask=MASK[:32]))


def test_an_unknown_model_is_refused_with_the_known_ones(engine: Engine, request_for: Callable[..., Request]) -> None:
    with pytest.raises(UnknownModel, match="model 'huge' is not loaded; loaded are: tiny"):
        engine.submit(request_for(model="huge"))


def test_a_refused_request_is_not_in_flight(engine: Engine, request_for: Callable[..., Request]) -> None:
    with pytest.raises(InvalidRequest):
        engine.submit(request_for(width=65))
    assert not engine.step()


def test_the_greatest_step_count_and_seed_are_taken(engine: Engine, request_for: Callable[..., Request]) -> None:
    for sampler in engine.models["tiny"].samplers:
        engine.submit(request_for(sampler=sampler, num_inference_steps=1000, seed=2**64 - 1))
