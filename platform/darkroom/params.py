"""What a person may ask of a model, and the limits it is held to. Refuses; never clamps. Knows no database."""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.types import Strict

from darkroom.catalog import ModelEntry
from darkroom.errors import FieldError, InvalidParameters

MAX_SEED = 2**32 - 1
PIXELS_PER_MEGAPIXEL = 1_000_000

ImageFormat = Literal["png", "webp", "jpeg"]
Whole = Annotated[int, Strict()]


class GenerationParams(BaseModel):
    """One job's parameters, complete: every default filled in, the seed drawn. Stored with the job as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Annotated[str, Strict()]
    negative_prompt: Annotated[str, Strict()] = ""
    width: Whole
    height: Whole
    num_inference_steps: Whole
    guidance_scale: Annotated[float, Strict()]
    sampler: Annotated[str, Strict()]
    # The first picture's seed; picture n develops from seed + n, modulo 2**32.
    seed: Whole
    num_images: Whole = 1
    format: ImageFormat = "png"
    # Of the lossy formats.
    quality: Annotated[int, Strict(), Field(ge=1, le=100)] = 90

    def seed_of(self, n: int) -> int:
        """The seed of picture n."""
        return (self.seed + n) % (MAX_SEED + 1)


def resolve(entry: ModelEntry, body: Mapping[str, Any]) -> GenerationParams:
    """Fill in the model's defaults and hold the result to its limits. Raises InvalidParameters with every bad field."""
    filled = entry.defaults.model_dump() | {"seed": secrets.randbelow(MAX_SEED + 1)} | dict(body)
    try:
        params = GenerationParams.model_validate(filled)
    except ValidationError as error:
        refused = tuple(_type_errors(error, entry))
        raise InvalidParameters([*refused, *_limit_errors_of_the_rest(filled, refused, entry)]) from error
    if errors := list(_limit_errors(params, entry)):
        raise InvalidParameters(errors)
    return params


def cost(params: GenerationParams) -> float:
    """Denoised megapixel-steps over all pictures: the unit of fair share."""
    pixels = params.width * params.height * params.num_images
    return pixels * params.num_inference_steps / PIXELS_PER_MEGAPIXEL


def limits_in_words(entry: ModelEntry) -> dict[str, str]:
    """Each field's limit for this model, in words fit for an error message."""
    limits = entry.limits
    size = f"a multiple of {limits.size_multiple} from {limits.min_size} to {limits.max_size}"
    return {
        "prompt": f"1 to {limits.max_prompt_characters} characters of text",
        "negative_prompt": f"at most {limits.max_prompt_characters} characters of text",
        "width": f"{size}; width x height at most {limits.max_pixels}",
        "height": f"{size}; width x height at most {limits.max_pixels}",
        "num_inference_steps": f"a whole number from 1 to {limits.max_steps}",
        "guidance_scale": f"a number from 0 to {limits.max_guidance_scale:g}",
        "sampler": f"one of {', '.join(limits.samplers)}",
        "seed": f"a whole number from 0 to {MAX_SEED}",
        "num_images": f"a whole number from 1 to {limits.max_num_images}",
        "format": "one of png, webp, jpeg",
        "quality": "a whole number from 1 to 100",
    }


def _type_errors(error: ValidationError, entry: ModelEntry) -> Iterator[FieldError]:
    words = limits_in_words(entry)
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        field = str(fault["loc"][0]) if fault["loc"] else "body"
        if field not in words:
            yield FieldError(_printable(field), "is not a parameter", f"one of {', '.join(words)}")
        else:
            problem = "is missing" if fault["type"] == "missing" else fault["msg"]
            yield FieldError(field, problem, words[field])


def _limit_errors_of_the_rest(
    filled: Mapping[str, Any], refused: Iterable[FieldError], entry: ModelEntry
) -> Iterator[FieldError]:
    """Hold the fields that could be read to their limits, with harmless values in place of the others."""
    names = {error.field for error in refused}
    smallest = {"width": entry.limits.min_size, "height": entry.limits.min_size}
    harmless = entry.defaults.model_dump() | smallest | {"prompt": "-", "seed": 0}
    readable = {name: filled[name] for name in filled.keys() & GenerationParams.model_fields.keys() - names}
    errors = _limit_errors(GenerationParams.model_validate(harmless | readable), entry)
    return (error for error in errors if error.field not in names)


def _limit_errors(params: GenerationParams, entry: ModelEntry) -> Iterator[FieldError]:
    limits, words = entry.limits, limits_in_words(entry)
    checks: dict[str, Callable[[], str | None]] = {
        "prompt": lambda: _text_problem(params.prompt, limits.max_prompt_characters, minimum=1),
        "negative_prompt": lambda: _text_problem(params.negative_prompt, limits.max_prompt_characters, minimum=0),
        "width": lambda: _size_problem(params.width, entry),
        "height": lambda: _size_problem(params.height, entry),
        "num_inference_steps": lambda: _range_problem(params.num_inference_steps, 1, limits.max_steps),
        "guidance_scale": lambda: _range_problem(params.guidance_scale, 0, limits.max_guidance_scale),
        "sampler": lambda: None if params.sampler in limits.samplers else "is not a sampler of this model",
        "seed": lambda: _range_problem(params.seed, 0, MAX_SEED),
        "num_images": lambda: _range_problem(params.num_images, 1, limits.max_num_images),
    }
    problems = {field: problem for field, check in checks.items() if (problem := check())}
    if not {"width", "height"} & problems.keys() and params.width * params.height > limits.max_pixels:
        problems["width"] = f"{params.width} x {params.height} is {params.width * params.height} pixels"
    return (FieldError(field, problem, words[field]) for field, problem in problems.items())


def _text_problem(value: str, maximum: int, *, minimum: int) -> str | None:
    if len(value) > maximum:
        return f"has {len(value)} characters"
    if len(value.strip()) < minimum:
        return "is empty"
    if "\x00" in value:
        return "holds a NUL character"
    if not _is_encodable(value):
        return "holds half of a surrogate pair, which no text encoding can store"
    return None


def _size_problem(value: int, entry: ModelEntry) -> str | None:
    limits = entry.limits
    if problem := _range_problem(value, limits.min_size, limits.max_size):
        return problem
    return f"{value} is not a multiple of {limits.size_multiple}" if value % limits.size_multiple else None


def _range_problem(value: float, minimum: float, maximum: float) -> str | None:
    if minimum <= value <= maximum:  # never true of NaN; exact for integers of any length
        return None
    return "is out of range" if abs(value) > MAX_SEED else f"{value:g} is out of range"


def _is_encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(name: str) -> str:
    """A field name of the sender's own making, safe to send back."""
    return name[:64].encode("ascii", "backslashreplace").decode()
