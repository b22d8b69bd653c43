"""What may be asked of a model: each wrong field by name, with the problem and the limit; nothing is clamped."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.catalog import GenerationDefaults, GenerationLimits, ModelEntry
from darkroom.errors import InvalidParameters
from darkroom.params import DEFAULT_STRENGTH, MAX_SEED, GenerationParams, LoraUse, cost, limits_in_words, resolve

ENTRY = ModelEntry(
    name="small",
    title="Small",
    family="sd",
    source="seeded:7",
    defaults=GenerationDefaults(width=128, height=128, num_inference_steps=20, guidance_scale=3.0, sampler="euler"),
    limits=GenerationLimits(
        min_size=64,
        max_size=512,
        size_multiple=8,
        max_pixels=512 * 256,
        max_steps=100,
        max_guidance_scale=20,
        max_num_images=4,
        max_prompt_characters=100,
        samplers=("euler", "ddim"),
    ),
    loras={"ink": "ink.safetensors", "oil": "oil.safetensors", "wax": "wax", "ash": "ash", "tin": "tin"},
)
PLAIN = ENTRY.model_copy(update={"features": frozenset()})
HUGE = 10**400

WRONG: list[tuple[str, Any, str]] = [
    ("prompt", "", "is empty"),
    ("prompt", "  \n ", "is empty"),
    ("prompt", "x" * 101, "101 characters"),
    ("prompt", "x" * 10_000, "10000 characters"),
    ("prompt", "a\x00b", "NUL"),
    ("prompt", "a\ud800b", "surrogate"),
    ("prompt", 7, "string"),
    ("prompt", None, "string"),
    ("prompt", ["a"], "string"),
    ("negative_prompt", "x" * 101, "101 characters"),
    ("negative_prompt", "\x00", "NUL"),
    ("negative_prompt", "\udfff", "surrogate"),
    ("width", 56, "56 is out of range"),
    ("width", 520, "520 is out of range"),
    ("width", 100, "not a multiple of 8"),
    ("width", -64, "out of range"),
    ("width", 0, "out of range"),
    ("width", HUGE, "out of range"),
    ("width", 128.5, "integer"),
    ("width", "128", "integer"),
    ("width", True, "integer"),
    ("width", None, "integer"),
    ("height", -8, "out of range"),
    ("height", 129, "not a multiple of 8"),
    ("num_inference_steps", 0, "out of range"),
    ("num_inference_steps", 101, "101 is out of range"),
    ("num_inference_steps", -HUGE, "out of range"),
    ("guidance_scale", -0.1, "out of range"),
    ("guidance_scale", 20.5, "20.5 is out of range"),
    ("guidance_scale", float("nan"), "out of range"),
    ("guidance_scale", float("inf"), "out of range"),
    ("guidance_scale", float("-inf"), "out of range"),
    ("guidance_scale", "3", "number"),
    ("guidance_scale", True, "number"),
    ("sampler", "heun", "not a sampler"),
    ("sampler", "EULER", "not a sampler"),
    ("sampler", None, "string"),
    ("seed", -1, "out of range"),
    ("seed", MAX_SEED + 1, "out of range"),
    ("seed", HUGE, "out of range"),
    ("seed", 1.5, "integer"),
    ("num_images", 0, "out of range"),
    ("num_images", 5, "5 is out of range"),
    ("format", "gif", "png"),
    ("format", None, "png"),
    ("quality", 0, "1"),
    ("quality", 101, "100"),
    ("quality", HUGE, "100"),
    ("init_image", "", "is empty"),
    ("init_image", "x" * 256, "256 characters"),
    ("init_image", 7, "string"),
    ("mask", "uploads/a.png", "without an init_image"),
    ("strength", 0.5, "without an init_image"),
    ("strength", "0.5", "number"),
    ("loras", "ink", "tuple"),
    ("loras", [{"name": "gone"}], "gone is not among"),
    ("loras", [{"name": "ink"}, {"name": "ink"}], "twice"),
    ("loras", [{"name": "ink", "weight": 2.1}], "2.1 is out of range"),
    ("loras", [{"name": "ink", "weight": -2.1}], "-2.1 is out of range"),
    ("loras", [{"name": name} for name in ("ink", "oil", "wax", "ash", "tin")], "are 5"),
    ("loras", [{}], "required"),
    ("loras", [{"name": "ink", "scale": 1}], "Extra"),
    ("exact", "yes", "boolean"),
    ("exact", 1, "boolean"),
    ("walk", None, "boolean"),
]


def lora(name: str) -> LoraUse:
    return LoraUse(name=name)


def refusal(**body: Any) -> tuple[Any, ...]:
    with pytest.raises(InvalidParameters) as refused:
        resolve(ENTRY, {"prompt": "a house"} | body)
    return refused.value.errors


@pytest.mark.parametrize(("field", "value", "problem"), WRONG, ids=lambda value: ascii(value)[:24])
def test_wrong_value_is_named_with_its_problem_and_its_limit(field: str, value: Any, problem: str) -> None:
    (error,) = refusal(**{field: value})
    assert error.field == field
    assert problem in error.problem
    assert error.limit == limits_in_words(ENTRY)[field]


def test_guidance_too_large_for_any_float_is_refused() -> None:
    (error,) = refusal(guidance_scale=HUGE)
    assert error.field == "guidance_scale"


def test_prompt_must_be_there() -> None:
    with pytest.raises(InvalidParameters) as refused:
        resolve(ENTRY, {})
    (error,) = refused.value.errors
    assert (error.field, error.problem) == ("prompt", "is missing")


@pytest.mark.parametrize("name", ["steps", "Prompt", "", "a" * 1000, "\ud800", "loc"])
def test_unknown_field_is_named_fit_to_print(name: str) -> None:
    (error,) = refusal(**{name: 1})
    assert error.problem == "is not a parameter"
    assert len(error.field) <= 64 * 6
    assert error.field.isascii()
    assert "prompt" in error.limit


def test_every_wrong_field_is_named_at_once() -> None:
    errors = refusal(width=1, height="x", seed=-1, colour=2, sampler="no")
    assert {error.field for error in errors} == {"width", "height", "seed", "colour", "sampler"}


def test_area_has_a_limit_of_its_own() -> None:
    assert resolve(ENTRY, {"prompt": "a", "width": 512, "height": 256})
    (error,) = refusal(width=512, height=264)
    assert error.field == "width"
    assert "135168 pixels" in error.problem
    assert "131072" in error.limit


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", "x" * 100),
        ("prompt", "Zürich 🏔 𝔘"),
        ("negative_prompt", ""),
        ("width", 64),
        ("width", 512),
        ("num_inference_steps", 1),
        ("num_inference_steps", 100),
        ("guidance_scale", 0),
        ("guidance_scale", 20),
        ("seed", 0),
        ("seed", MAX_SEED),
        ("num_images", 4),
        ("quality", 1),
        ("quality", 100),
        ("format", "webp"),
        ("format", "avif"),
        ("exact", True),
        ("walk", True),
        ("loras", (LoraUse(name="ink", weight=-2.0), LoraUse(name="oil", weight=2.0), *map(lora, ("wax", "ash")))),
    ],
)
def test_value_at_its_limit_is_taken_as_it_is(field: str, value: Any) -> None:
    assert getattr(resolve(ENTRY, {"prompt": "a"} | {field: value}), field) == value


def test_defaults_are_the_models_own() -> None:
    params = resolve(ENTRY, {"prompt": "a"})
    assert (params.width, params.height, params.num_inference_steps) == (128, 128, 20)
    assert (params.guidance_scale, params.sampler, params.num_images, params.format) == (3.0, "euler", 1, "png")


def test_seed_is_drawn_when_none_is_given() -> None:
    seeds = {resolve(ENTRY, {"prompt": "a"}).seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed <= MAX_SEED for seed in seeds)


def test_pictures_of_a_job_have_seeds_of_their_own_around_the_last() -> None:
    params = resolve(ENTRY, {"prompt": "a", "seed": MAX_SEED, "num_images": 3})
    assert [params.seed_of(n) for n in range(3)] == [MAX_SEED, 0, 1]


def test_cost_is_megapixel_steps_over_all_pictures() -> None:
    params = resolve(ENTRY, {"prompt": "a", "width": 200, "height": 200, "num_inference_steps": 50, "num_images": 2})
    assert cost(params) == pytest.approx(4.0)


@pytest.mark.parametrize("strength", [0.001, 1.0])
def test_strength_at_its_limits_is_taken_with_an_init_image(strength: float) -> None:
    params = resolve(ENTRY, {"prompt": "a", "init_image": "uploads/a/b.png", "strength": strength})
    assert params.strength == strength


@pytest.mark.parametrize("strength", [0, -0.1, 1.001, float("nan")])
def test_strength_beyond_its_limits_is_refused(strength: float) -> None:
    (error,) = refusal(init_image="uploads/a/b.png", strength=strength)
    assert (error.field, "out of range" in error.problem) == ("strength", True)


def test_init_image_without_strength_gets_the_usual_one() -> None:
    assert resolve(ENTRY, {"prompt": "a", "init_image": "uploads/a/b.png"}).strength == DEFAULT_STRENGTH
    assert resolve(ENTRY, {"prompt": "a"}).strength is None


def test_cost_counts_only_the_steps_that_an_init_image_leaves() -> None:
    body = {"prompt": "a", "width": 200, "height": 200, "num_inference_steps": 50}
    assert cost(resolve(ENTRY, body | {"init_image": "uploads/a/b.png", "strength": 0.5})) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("init_image", "uploads/a/b.png"),
        ("mask", "uploads/a/b.png"),
        ("strength", 0.5),
        ("loras", [{"name": "ink"}]),
        ("exact", True),
        ("walk", True),
    ],
)
def test_feature_that_the_model_lacks_is_refused_by_the_name_of_its_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidParameters) as refused:
        resolve(PLAIN, {"prompt": "a", field: value})
    error = refused.value.errors[0]
    assert (error.field, error.problem) == (field, "is not a feature of this model")
    assert error.limit == "not offered by this model"


def test_feature_that_is_not_asked_for_needs_no_model_that_has_it() -> None:
    assert resolve(PLAIN, {"prompt": "a", "walk": False, "exact": False, "loras": [], "init_image": None})


def test_every_parameter_has_its_limit_in_words() -> None:
    assert set(limits_in_words(ENTRY)) == set(GenerationParams.model_fields)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
JSON = SCALARS | st.lists(SCALARS, max_size=3)


@given(st.dictionaries(st.sampled_from(list(GenerationParams.model_fields)) | st.text(max_size=8), JSON, max_size=6))
def test_any_body_is_refused_by_field_or_fits_the_limits(body: dict[str, Any]) -> None:
    try:
        params = resolve(ENTRY, body)
    except InvalidParameters:
        return
    assert GenerationParams.model_validate_json(params.model_dump_json()) == params
    assert params.width * params.height <= ENTRY.limits.max_pixels
