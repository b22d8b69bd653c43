"""What a person may ask of a model, and the limits it is held to. Refuses; never clamps. Knows no database."""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.types import Strict

from darkroom.catalog import Feature, ModelEntry
from darkroom.errors import FieldError, InvalidParameters

MAX_SEED = 2**32 - 1
PIXELS_PER_MEGAPIXEL = 1_000_000

# Of an init image, how much of it is developed anew when nothing is said.
DEFAULT_STRENGTH = 0.75
MAX_LORAS = 4
MAX_LORA_WEIGHT = 2.0
LONGEST_KEY = 255

ImageFormat = Literal["png", "webp", "jpeg", "avif"]
Whole = Annotated[int, Strict()]


class LoraUse(BaseModel):
    """One of the model's adapters, and how strongly it acts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Strict()]
    weight: Annotated[float, Strict()] = 1.0


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
    # Keys in the storage: the picture to begin from, and which of it to develop anew (white) or keep (black).
    init_image: Annotated[str, Strict()] | None = None
    mask: Annotated[str, Strict()] | None = None
    # Of the init image: 1 forgets it, near 0 keeps it.
    strength: Annotated[float, Strict()] | None = None
    loras: tuple[LoraUse, ...] = ()
    # The same bytes whatever shares the batch, on devices of one fingerprint.
    exact: Annotated[bool, Strict()] = False
    # Also store how the picture came out of the noise.
    walk: Annotated[bool, Strict()] = False
    # Write into the picture's file how it was made, where the deployment does so at all.
    embed_metadata: Annotated[bool, Strict()] = True

    def seed_of(self, n: int) -> int:
        """The seed of picture n."""
        return (self.seed + n) % (MAX_SEED + 1)


def resolve(entry: ModelEntry, body: Mapping[str, Any]) -> GenerationParams:
    """Fill in the model's defaults and hold the result to its limits. Raises InvalidParameters with every bad field."""
    filled = entry.defaults.model_dump() | {"seed": secrets.randbelow(MAX_SEED + 1)} | dict(body)
    if isinstance(filled.get("init_image"), str) and filled.get("strength") is None:
        filled["strength"] = DEFAULT_STRENGTH
    try:
        params = GenerationParams.model_validate(filled)
    except ValidationError as error:
        refused = tuple({fault.field: fault for fault in _type_errors(error, entry)}.values())
        raise InvalidParameters([*refused, *_limit_errors_of_the_rest(filled, refused, entry)]) from error
    if errors := list(_limit_errors(params, entry)):
        raise InvalidParameters(errors)
    return params


def cost(params: GenerationParams) -> float:
    """Denoised megapixel-steps over all pictures: the unit of fair share."""
    pixels = params.width * params.height * params.num_images
    num_steps = params.num_inference_steps * (1.0 if params.strength is None else params.strength)
    return pixels * num_steps / PIXELS_PER_MEGAPIXEL


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
        "format": "one of png, webp, jpeg, avif",
        "quality": "a whole number from 1 to 100",
        "init_image": _if_has(entry, "img2img", "the picture to begin from"),
        "mask": _if_has(entry, "inpaint", "the picture of what to develop anew, with an init_image"),
        "strength": _if_has(entry, "img2img", "a number above 0, at most 1, with an init_image"),
        "loras": _if_has(entry, "loras", _loras_in_words(entry)),
        "exact": _if_has(entry, "exact", "true or false"),
        "walk": _if_has(entry, "walk", "true or false"),
        "embed_metadata": "true or false",
    }


def _if_has(entry: ModelEntry, feature: Feature, words: str) -> str:
    return words if feature in entry.features else "not offered by this model"


def _loras_in_words(entry: ModelEntry) -> str:
    if not entry.loras:
        return "this model has none"
    weights = f"weight from {-MAX_LORA_WEIGHT:g} to {MAX_LORA_WEIGHT:g}"
    return f"at most {MAX_LORAS} of {', '.join(entry.loras)}, each once, {weights}"


def _type_errors(error: ValidationError, entry: ModelEntry) -> Iterator[FieldError]:
    words = limits_in_words(entry)
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        field = str(fault["loc"][0]) if fault["loc"] else "body"
        if field not in words:
            yield FieldError(_printable(field), "is not a parameter", f"one of {', '.join(words)}")
        else:
            is_missing = fault["type"] == "missing" and len(fault["loc"]) == 1
            problem = "is missing" if is_missing else fault["msg"]
            yield FieldError(field, problem, words[field])


def _limit_errors_of_the_rest(
    filled: Mapping[str, Any], refused: Iterable[FieldError], entry: ModelEntry
) -> Iterator[FieldError]:
    """Hold the fields that could be read to their limits, with harmless values in place of the others."""
    names = {error.field for error in refused}
    smallest = {"width": entry.limits.min_size, "height": entry.limits.min_size}
    source = {"init_image": "-"} if "init_image" in names else {}  # what goes with one is right beside a wrong one
    harmless = entry.defaults.model_dump() | smallest | {"prompt": "-", "seed": 0} | source
    readable = {name: filled[name] for name in filled.keys() & GenerationParams.model_fields.keys() - names}
    errors = _limit_errors(GenerationParams.model_validate(harmless | readable), entry)
    return (error for error in errors if error.field not in names)


def _limit_errors(params: GenerationParams, entry: ModelEntry) -> Iterator[FieldError]:
    limits = entry.limits
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
        "init_image": lambda: _source_problem(params.init_image, "img2img", entry),
        "mask": lambda: _source_problem(params.mask, "inpaint", entry) or _alone_problem(params, "mask"),
        "strength": lambda: _strength_problem(params, entry),
        "loras": lambda: _loras_problem(params.loras, entry),
        "exact": lambda: _feature_problem(params.exact, "exact", entry),
        "walk": lambda: _feature_problem(params.walk, "walk", entry),
    }
    problems = {field: problem for field, check in checks.items() if (problem := check())}
    if not {"width", "height"} & problems.keys() and params.width * params.height > limits.max_pixels:
        problems["width"] = f"{params.width} x {params.height} is {params.width * params.height} pixels"
    words = limits_in_words(entry) if problems else {}
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


def _feature_problem(is_asked: bool, feature: Feature, entry: ModelEntry) -> str | None:
    return "is not a feature of this model" if is_asked and feature not in entry.features else None


def _source_problem(key: str | None, feature: Feature, entry: ModelEntry) -> str | None:
    if problem := _feature_problem(key is not None, feature, entry):
        return problem
    return _text_problem(key, LONGEST_KEY, minimum=1) if key is not None else None


def _alone_problem(params: GenerationParams, field: str) -> str | None:
    is_alone = getattr(params, field) is not None and params.init_image is None
    return "is of no use without an init_image" if is_alone else None


def _strength_problem(params: GenerationParams, entry: ModelEntry) -> str | None:
    if params.strength is None:
        return None
    if problem := _feature_problem(True, "img2img", entry) or _alone_problem(params, "strength"):
        return problem
    return None if 0 < params.strength <= 1 else f"{params.strength:g} is out of range"


def _loras_problem(loras: tuple[LoraUse, ...], entry: ModelEntry) -> str | None:
    names = [lora.name for lora in loras]
    if problem := _feature_problem(bool(loras), "loras", entry):
        return problem
    if len(loras) > MAX_LORAS:
        return f"are {len(loras)}"
    if unknown := [name for name in names if name not in entry.loras]:
        return f"{_printable(unknown[0])} is not among this model's"
    if len(set(names)) < len(names):
        return "name one twice"
    problems = (_range_problem(lora.weight, -MAX_LORA_WEIGHT, MAX_LORA_WEIGHT) for lora in loras)
    return next((f"weight {problem}" for problem in problems if problem), None)


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
