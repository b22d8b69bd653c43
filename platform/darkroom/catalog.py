"""Which models are on offer, with their defaults and limits. Reads TOML and folders; loads no weights.

The limits published here are the ones a request is held to, whichever workers happen to live.
"""

import json
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, model_validator

from darkroom.config import Settings
from darkroom.errors import CatalogError, UnknownModel
from darkroom.sampler_titles import COMMON

BUILT_IN = files("darkroom").joinpath("catalog.toml")

# The pipeline class named by a folder's model_index.json -> the family that develops it.
FAMILY_OF_PIPELINE: Mapping[str, str] = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionImg2ImgPipeline": "sd",
    "StableDiffusionInpaintPipeline": "sd",
    "LatentConsistencyModelPipeline": "sd",
    "LatentConsistencyModelImg2ImgPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusionXLInpaintPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "StableDiffusion3Img2ImgPipeline": "sd3",
    "FluxPipeline": "flux",
    "FluxImg2ImgPipeline": "flux",
    "PixArtAlphaPipeline": "pixart",
    "PixArtSigmaPipeline": "pixart",
    "SanaPipeline": "sana",
    "QwenImagePipeline": "qwen-image",
    "QwenImageImg2ImgPipeline": "qwen-image",
    "ZImagePipeline": "z-image",
    "ZImageImg2ImgPipeline": "z-image",
}
# Of every other pipeline: it runs by its own loop, one request at a time.
WHOLE = "whole"

# What a request may ask for beyond a picture from words.
Feature = Literal["exact", "img2img", "inpaint", "loras", "preview", "walk"]
_EVERYTHING: frozenset[Feature] = frozenset(get_args(Feature))
_OF_WORDS: frozenset[Feature] = frozenset({"exact", "preview", "walk"})
_OF_WORDS_AND_PICTURES: frozenset[Feature] = _OF_WORDS | {"img2img"}
# A family that is not named here makes pictures from words and nothing else.
FEATURES_OF_FAMILY: Mapping[str, frozenset[Feature]] = {
    "sd": _EVERYTHING,
    "sdxl": _EVERYTHING,
    "sd3": _OF_WORDS_AND_PICTURES,
    "flux": _OF_WORDS_AND_PICTURES | {"loras"},
    "pixart": _OF_WORDS,
    "sana": _OF_WORDS,
    "qwen-image": _OF_WORDS_AND_PICTURES,
    "z-image": _OF_WORDS_AND_PICTURES,
}

# Whose denoiser takes the guidance as an input, so that nothing heeds what the picture should not show.
HEEDLESS_FAMILIES = frozenset({"flux"})

# What a model's entry need not say, because its family does: diffusers' own defaults, and what the denoiser can take.
_LARGE = {"width": 1024, "height": 1024}
DEFAULTS_OF_FAMILY: Mapping[str, Mapping[str, Any]] = {
    "sdxl": {**_LARGE, "num_inference_steps": 30, "guidance_scale": 5.0},
    "sd3": {**_LARGE, "num_inference_steps": 28, "guidance_scale": 7.0, "sampler": "euler"},
    "flux": {**_LARGE, "num_inference_steps": 28, "guidance_scale": 3.5, "sampler": "euler"},
    "pixart": {**_LARGE, "guidance_scale": 4.5},
    "sana": {**_LARGE, "guidance_scale": 4.5},
    "qwen-image": {**_LARGE, "num_inference_steps": 50, "guidance_scale": 4.0, "sampler": "euler"},
    "z-image": {**_LARGE, "num_inference_steps": 50, "guidance_scale": 5.0, "sampler": "euler"},
    WHOLE: {**_LARGE, "num_inference_steps": 28, "guidance_scale": 5.0, "sampler": "default"},
}
_FLOW_SAMPLERS = ("deis", "dpmpp_2m", "dpmpp_2m_sde", "euler", "heun", "lcm", "unipc")
LIMITS_OF_FAMILY: Mapping[str, Mapping[str, Any]] = {
    "sd3": {"size_multiple": 16, "samplers": _FLOW_SAMPLERS},
    "flux": {"size_multiple": 16, "samplers": _FLOW_SAMPLERS},
    "pixart": {"size_multiple": 16},
    "sana": {"size_multiple": 32, "samplers": _FLOW_SAMPLERS},
    "qwen-image": {"size_multiple": 16, "samplers": _FLOW_SAMPLERS},
    "z-image": {"size_multiple": 16, "samplers": _FLOW_SAMPLERS},
    # Of its own multiple nothing is known here; this one suits all that diffusers has.
    WHOLE: {"size_multiple": 32, "samplers": ("default",)},
}


# In a model's folder: what its entry would say beyond what the pipeline says, such as the size it was trained at.
OWN_WORDS = "darkroom.toml"

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GenerationDefaults(_Frozen):
    """What a request gets when it does not say."""

    width: int = 512
    height: int = 512
    num_inference_steps: int = 20
    guidance_scale: float = 7.5
    sampler: str = "dpmpp_2m"


class GenerationLimits(_Frozen):
    """What a request may ask for. Sizes in pixels."""

    min_size: int = Field(64, ge=8)
    max_size: int = Field(1024, ge=8)
    size_multiple: int = Field(8, ge=1)
    max_pixels: int = Field(1024 * 1024, ge=64)
    max_steps: int = Field(150, ge=1)
    max_guidance_scale: float = Field(30.0, ge=0)
    max_num_images: int = Field(8, ge=1)
    max_prompt_characters: int = Field(2000, ge=1)
    samplers: tuple[str, ...] = COMMON


class Tuning(_Frozen):
    """How a worker's device is used for a model: switches of the engine, all off unless said."""

    attention: Literal["cudnn", "efficient", "flash", "math"] | None = None
    channels_last: bool = False
    cuda_graphs: bool = False
    vae_dtype: Literal["float32", "float16", "bfloat16"] | None = None


class ModelEntry(_Frozen):
    """One model: what it is called, where its weights are, under which license, and what it takes."""

    name: str = Field(pattern=NAME)
    title: str
    description: str = ""
    family: str
    # A folder, a hub id, "shipped:<name>", or "seeded:<n>" for random weights built by code.
    source: str
    revision: str | None = None
    license: str = "unknown"
    license_url: str | None = None
    dtype: str | None = None
    tuning: Tuning = Tuning()
    defaults: GenerationDefaults = GenerationDefaults()
    limits: GenerationLimits = GenerationLimits()
    # The family's own, unless the operator names fewer.
    features: frozenset[Feature] = frozenset()
    # Name -> a file, a folder or a hub id.
    loras: Mapping[Annotated[str, Field(pattern=NAME)], str] = {}
    example_prompts: tuple[str, ...] = ()
    # Whether a negative prompt changes nothing: a form then does not ask for one.
    ignores_negative_prompt: bool = False

    @model_validator(mode="before")
    @classmethod
    def _take_from_the_family_what_is_not_said(cls, table: Any) -> Any:
        if not isinstance(table, Mapping) or not isinstance(table.get("family"), str):
            return table
        family = table["family"]
        defaults = _completed(table.get("defaults", {}), DEFAULTS_OF_FAMILY.get(family, {}))
        limits = _completed(table.get("limits", {}), LIMITS_OF_FAMILY.get(family, {}))
        features = FEATURES_OF_FAMILY.get(family, frozenset())
        family_says = {"features": features, "ignores_negative_prompt": family in HEEDLESS_FAMILIES}
        return {**family_says, **table, "defaults": defaults, "limits": limits}

    @field_serializer("features")
    def _in_order(self, features: frozenset[Feature]) -> list[Feature]:
        return sorted(features)

    @model_validator(mode="after")
    def _keep_defaults_within_limits(self) -> Self:
        defaults, limits = self.defaults, self.limits
        sizes = (defaults.width, defaults.height)
        if any(not limits.min_size <= size <= limits.max_size or size % limits.size_multiple for size in sizes):
            raise ValueError(f"default size {defaults.width}x{defaults.height} is outside the model's own limits")
        if defaults.width * defaults.height > limits.max_pixels:
            raise ValueError(
                f"default size {defaults.width}x{defaults.height} has more than {limits.max_pixels} pixels"
            )
        if defaults.sampler not in limits.samplers:
            raise ValueError(f"default sampler {defaults.sampler!r} is not among its samplers")
        if not 1 <= defaults.num_inference_steps <= limits.max_steps:
            raise ValueError(f"default steps {defaults.num_inference_steps} are not from 1 to {limits.max_steps}")
        if not 0 <= defaults.guidance_scale <= limits.max_guidance_scale:
            raise ValueError(
                f"default guidance {defaults.guidance_scale:g} is not from 0 to {limits.max_guidance_scale:g}"
            )
        return self


class Catalog:
    """The models on offer, by name."""

    def __init__(self, models: Mapping[str, ModelEntry], *, default: str) -> None:
        self._models = dict(models)
        self._default = default

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """Read the built-in catalog, then the operator's file, then the folders of models; later ones win.

        Raises CatalogError naming the file and the entry.
        """
        sources = [(str(BUILT_IN), _read_toml(BUILT_IN.read_text(), str(BUILT_IN)), Path())]
        if settings.catalog:
            sources.append((str(settings.catalog), _read_file(settings.catalog), settings.catalog.parent))
        if settings.models_dir:
            sources.append((str(settings.models_dir), _read_folder(settings.models_dir), settings.models_dir))

        models: dict[str, ModelEntry] = {}
        default = ""
        for where, table, base in sources:
            for name, entry in _tables(table, where).items():
                models[name] = _entry(name, entry, where, base)
            default = str(table.get("default", default))
        if default not in models:
            raise CatalogError(f"{sources[-1][0]}: the default model {default!r} is not in the catalog")
        return cls(models, default=default)

    @property
    def models(self) -> tuple[ModelEntry, ...]:
        """Every model, the default first."""
        return tuple(sorted(self._models.values(), key=lambda entry: (entry.name != self._default, entry.name)))

    @property
    def default(self) -> ModelEntry:
        """The model of a request that names none."""
        return self._models[self._default]

    def get(self, name: str) -> ModelEntry:
        """Find a model. Raises UnknownModel."""
        if name not in self._models:
            raise UnknownModel(name, known=(entry.name for entry in self.models))
        return self._models[name]


def _tables(table: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    models = table.get("models", {})
    if not isinstance(models, Mapping):
        raise CatalogError(f"{where}: models must be tables, one [models.<name>] each")
    return models


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return _read_toml(path.read_text(), str(path))
    except OSError as error:
        raise CatalogError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CatalogError(f"{path}: is not UTF-8 text") from error


def _read_toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{where}: {error}") from error


def _read_folder(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CatalogError(f"{folder}: no such folder of models")
    return {"models": {path.parent.name: _describe(path) for path in sorted(folder.glob("*/model_index.json"))}}


def _describe(index: Path) -> dict[str, Any]:
    try:
        pipeline = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CatalogError(f"{index}: names no pipeline: {error}") from error
    if not isinstance(pipeline, str) or not pipeline.endswith("Pipeline"):
        raise CatalogError(f"{index}: names no pipeline of diffusers, but {pipeline!r}")
    own = index.with_name(OWN_WORDS)
    said = _read_file(own) if own.is_file() else {}
    return {**said, "family": FAMILY_OF_PIPELINE.get(pipeline, WHOLE), "source": str(index.parent)}


def _completed(said: Any, family: Mapping[str, Any]) -> Any:
    """What is said, and for the rest what the family says. Anything but a table is left to be refused."""
    return {**family, **said} if isinstance(said, Mapping) else said


def _entry(name: str, table: Any, where: str, base: Path) -> ModelEntry:
    try:
        entry = ModelEntry.model_validate({"title": name, **table, "name": name})
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        field = ".".join(str(part) for part in first["loc"])
        raise CatalogError(f"{where}: models.{name}{'.' + field if field else ''}: {first['msg']}") from error
    loras = {lora: _beside(base, source) for lora, source in entry.loras.items()}
    return entry.model_copy(update={"source": _beside(base, entry.source), "loras": loras})


def _beside(base: Path, source: str) -> str:
    """A source that is there when read from the catalog's own folder; any other as it stands."""
    path = base / source
    return str(path) if source and path.exists() else source
