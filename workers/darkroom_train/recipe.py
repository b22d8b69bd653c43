"""Recipes: one TOML file that says everything a model is made by. Knows the keys and their limits, not their use."""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from darkroom_train.errors import RecipeError

RECIPES = Path(__file__).parent / "recipes"


def _between(low: float, high: float, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


def _one_of(*choices: str, default: str) -> Any:
    return field(default=default, metadata={"choices": choices})


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """[data]: what is trained on. `folder` is for source "folder", `domain` for source "drawn"."""

    source: str = _one_of("drawn", "folder", default="drawn")
    domain: str = _one_of("tiny", "floor", "full", default="floor")
    folder: str = ""
    size: int = _between(32, 1024)
    num_pictures: int = _between(16, 10_000_000)
    num_held_out: int = _between(8, 100_000, 512)
    captions_per_picture: int = _between(1, 64, 4)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """[tokenizer]"""

    vocabulary: int = _between(516, 49_408, 1024)
    max_length: int = _between(8, 77, 32)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every trained stage has. With `minutes`, the learning rate falls by the clock where that runs faster."""

    steps: int = _between(1, 100_000_000)
    minutes: float = _between(0.0, 1e6, 0.0)
    batch_size: int = _between(1, 65_536)
    learning_rate: float = _between(1e-7, 1.0)
    warmup_steps: int = _between(0, 1_000_000, 50)
    weight_decay: float = _between(0.0, 1.0, 0.01)
    precision: str = _one_of("float32", "bfloat16", default="float32")
    compile: bool = False
    log_steps: int = _between(1, 100_000, 20)
    report_minutes: float = _between(0.0, 1e6, 5.0)


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe(Training):
    """[autoencoder]: trained on crops, and for the last `whole_part` of its way on whole pictures."""

    width: int = _between(8, 256, 32)
    encoder_blocks: tuple[int, ...] = (1, 1, 1, 1)
    decoder_blocks: tuple[int, ...] = (2, 1, 1, 1)
    num_pictures: int = _between(16, 10_000_000, 20_000)
    crop: int = _between(16, 512, 48)
    whole_batch_size: int = _between(1, 65_536, 8)
    whole_part: float = _between(0.0, 1.0, 0.25)
    latent_noise: float = _between(0.0, 1.0, 0.03)


@dataclass(frozen=True, kw_only=True)
class TextEncoderRecipe(Training):
    """[text-encoder]"""

    width: int = _between(16, 1024, 160)
    layers: int = _between(1, 24, 3)
    heads: int = _between(1, 32, 4)
    image_width: int = _between(8, 512, 64)


@dataclass(frozen=True, kw_only=True)
class DenoiserRecipe(Training):
    """[denoiser]: `attention` says level by level, the finest first, where the text comes in."""

    channels: tuple[int, ...] = (64, 128, 192)
    attention: tuple[bool, ...] = (False, True, True)
    layers: int = _between(1, 4, 1)
    heads: int = _between(1, 32, 4)
    norm_groups: int = _between(1, 64, 16)
    prediction: str = _one_of("v_prediction", "epsilon", "flow", default="v_prediction")
    caption_dropout: float = _between(0.0, 1.0, 0.1)
    ema_decay: float = _between(0.0, 0.999999, 0.999)
    uniform_part: float = _between(0.0, 1.0, 0.2)
    logit_mean: float = _between(-5.0, 5.0, -0.4)


@dataclass(frozen=True, kw_only=True)
class DistillRecipe(Training):
    """[distill]: `distilled_steps` are the places of the path between which the teacher steps.

    With a `lora_rank`, what is learned is a LoRA adapter of that rank; with 0, all weights.
    """

    distilled_steps: int = _between(2, 1000, 50)
    guidance_scale: float = _between(1.0, 30.0, 3.0)
    ema_decay: float = _between(0.0, 0.999999, 0.95)
    lora_rank: int = _between(0, 1024, 0)


@dataclass(frozen=True, kw_only=True)
class RecognizerRecipe(Training):
    """[recognizer]: the judge of the evaluation, trained on drawn pictures of its own seed."""

    width: int = _between(8, 256, 32)
    num_pictures: int = _between(16, 10_000_000, 20_000)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """[evaluate]"""

    num_prompts: int = _between(1, 100_000, 200)
    num_withheld: int = _between(0, 100_000, 100)
    num_inference_steps: int = _between(1, 1000, 20)
    num_distilled_steps: int = _between(1, 1000, 6)
    sampler: str = "dpmpp_2m"
    guidance_scale: float = _between(1.0, 30.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a model is made by."""

    name: str
    title: str = ""
    seed: int = _between(0, 2**31 - 1, 1)
    data: Pictures
    tokenizer: Tokens
    autoencoder: AutoencoderRecipe
    text_encoder: TextEncoderRecipe
    denoiser: DenoiserRecipe
    distill: DistillRecipe
    recognizer: RecognizerRecipe
    evaluate: Evaluation


SECTIONS = {"text_encoder": "text-encoder"}

Section = TypeVar("Section")


def find_recipe(name: str) -> Path:
    """Give the path of a recipe: a file, or one of those that come along. Raises RecipeError."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = RECIPES / f"{name}.toml"
    if not shipped.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise RecipeError(path, None, f"there is no such file, and no recipe of that name comes along: {known}")
    return shipped


def read_recipe(path: Path) -> Recipe:
    """Read a recipe and check every key and value. Raises RecipeError with the line."""
    text = path.read_text()
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(path, None, f"is not TOML: {error}") from error
    reader = _Reader(path, text)
    recipe = reader.recipe(tables)
    _check_together(reader, recipe)
    return recipe


def differences(section: Training, stored: dict[str, Any]) -> list[str]:
    """Name the keys in which a section differs from the one a checkpoint was made by, the mere running aside."""
    passing = ("steps", "minutes", "log_steps", "report_minutes", "compile")
    current = as_stored(section)
    # A checkpoint from before a key was there was made as the key's default says.
    stored = _plain({item.name: item.default for item in fields(section)}) | stored
    return [key for key in current if key not in passing and current[key] != stored[key]]


def as_stored(section: Training) -> dict[str, Any]:
    """Give a section as plain values."""
    return _plain(asdict(section))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def digest(path: Path) -> str:
    """Give the SHA-256 of a recipe's file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Reader:
    """Turns tables into sections, and knows on which line a key stands."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()

    def recipe(self, tables: dict[str, Any]) -> Recipe:
        kinds = get_type_hints(Recipe)
        sections = {
            name: SECTIONS.get(name, name) for name, kind in kinds.items() if hasattr(kind, "__dataclass_fields__")
        }
        values: dict[str, Any] = {}
        for name, title in sections.items():
            table = tables.pop(title, {})
            if not isinstance(table, dict):
                raise self.refusal(title, "", "must be a table")
            values[name] = self._section(kinds[name], table, title)
        top = {item.name: item for item in fields(Recipe) if item.name not in sections}
        for key, value in tables.items():
            if key not in top:
                raise self.refusal(key, "", f"{key!r} is unknown; known are: {', '.join([*top, *sections.values()])}")
            values[key] = self._value(top[key], kinds[key], value, "")
        if "name" not in values:
            raise RecipeError(self._path, None, "lacks name")
        return Recipe(**values)

    def refusal(self, key: str, section: str, problem: str) -> RecipeError:
        return RecipeError(self._path, self._line(key, section), problem)

    def _section(self, kind: type[Section], table: dict[str, Any], title: str) -> Section:
        known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
        hints = get_type_hints(kind)
        for key in table:
            if key not in known:
                raise self.refusal(key, title, f"{key!r} is unknown in [{title}]; known are: {', '.join(known)}")
        missing = [name for name, item in known.items() if item.default is MISSING and name not in table]
        if missing:
            raise self.refusal("", title, f"[{title}] lacks {', '.join(missing)}")
        return kind(**{key: self._value(known[key], hints[key], value, title) for key, value in table.items()})

    def _value(self, item: "Field[Any]", hint: Any, value: Any, title: str) -> Any:
        key = item.name
        if get_origin(hint) is tuple and isinstance(value, list):
            (kind, _) = get_args(hint)
            if not value or not all(type(part) is kind for part in value):
                raise self.refusal(key, title, f"{key} must be a list of {kind.__name__}")
            return tuple(value)
        if hint is float and type(value) is int:
            value = float(value)
        assert not isinstance(hint, UnionType)
        if type(value) is not hint:
            raise self.refusal(key, title, f"{key} is {value!r}, and must be {getattr(hint, '__name__', 'a list')}")
        low, high = item.metadata.get("low"), item.metadata.get("high")
        if low is not None and not low <= value <= high:
            raise self.refusal(key, title, f"{key} is {value}, and must be from {low} to {high}")
        choices = item.metadata.get("choices")
        if choices is not None and value not in choices:
            raise self.refusal(key, title, f"{key} is {value!r}, and must be one of {', '.join(choices)}")
        return value

    def _line(self, key: str, section: str) -> int | None:
        """Find the line of a key, or of the table when no key is given."""
        current = ""
        for number, line in enumerate(self._lines, start=1):
            stripped = line.strip()
            if stripped.startswith("["):
                current = stripped.strip("[] ")
                if current == (section or key) and (not key or not section):
                    return number
            elif current == section and stripped.partition("=")[0].strip().strip('"') == key and key:
                return number
        return None


def _check_together(reader: _Reader, recipe: Recipe) -> None:
    """Refuse values that are possible alone and impossible together."""
    denoiser, data = recipe.denoiser, recipe.data
    multiple = 8 * 2 ** (len(denoiser.channels) - 1)
    if data.size % multiple:
        raise reader.refusal("size", "data", f"size is {data.size}, and must be a multiple of {multiple}")
    if len(denoiser.attention) != len(denoiser.channels):
        raise reader.refusal("attention", "denoiser", "attention and channels must be of one length")
    if any(channels % denoiser.norm_groups or channels % denoiser.heads for channels in denoiser.channels):
        raise reader.refusal("channels", "denoiser", "channels must be multiples of norm_groups and of heads")
    text = recipe.text_encoder
    if text.width % text.heads:
        raise reader.refusal("width", "text-encoder", "width must be a multiple of heads")
    crop = recipe.autoencoder.crop
    if crop % 8 or crop > data.size:
        raise reader.refusal("crop", "autoencoder", f"crop is {crop}, and must be a multiple of 8, at most size")
    for key in ("encoder_blocks", "decoder_blocks"):
        if len(getattr(recipe.autoencoder, key)) != 4:
            raise reader.refusal(key, "autoencoder", f"{key} must have four numbers")
    if data.source == "folder" and not data.folder:
        raise reader.refusal("source", "data", 'source "folder" needs folder')
