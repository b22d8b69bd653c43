"""The form as a page shows it: each field's text, its refusal, and the sizes on offer. Stores nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import get_args

from darkroom.catalog import ModelEntry
from darkroom.errors import FieldError
from darkroom.params import GenerationParams, ImageFormat

FORMATS = get_args(ImageFormat)
OWN_SIZE = "own"
ICON = 22
SHAPES = (("Square", 1, 1), ("Portrait", 3, 4), ("Landscape", 4, 3), ("Tall", 9, 16), ("Wide", 16, 9))


@dataclass(frozen=True)
class SizePreset:
    """A size that the model takes, about as many pixels as its default."""

    title: str
    width: int
    height: int

    @property
    def value(self) -> str:
        """What the form sends when it is chosen."""
        return f"{self.width}x{self.height}"

    @property
    def shape(self) -> tuple[float, float]:
        """Width and height of its outline in an icon, the longer side of ICON units."""
        longer = max(self.width, self.height)
        return self.width / longer * ICON, self.height / longer * ICON


@dataclass(frozen=True)
class Form:
    """What the form page renders. Texts are as typed, also where they were refused."""

    entry: ModelEntry
    texts: Mapping[str, str]
    errors: Mapping[str, FieldError] = field(default_factory=dict)

    @property
    def presets(self) -> tuple[SizePreset, ...]:
        """The sizes to choose from."""
        return size_presets(self.entry)

    @property
    def size(self) -> str:
        """The preset to show as chosen."""
        size = self.texts.get("size") or f"{self.texts['width']}x{self.texts['height']}"
        return size if size in {preset.value for preset in self.presets} else OWN_SIZE


def new_form(entry: ModelEntry, texts: Mapping[str, str]) -> Form:
    """A form with the model's defaults, and whatever is already known."""
    return Form(entry, default_texts(entry) | {name: text for name, text in texts.items() if text})


def form_from(entry: ModelEntry, params: GenerationParams) -> Form:
    """A form that would make the same pictures again."""
    texts = {name: str(value) for name, value in params.model_dump().items() if value is not None}
    return Form(entry, texts | {"guidance_scale": f"{params.guidance_scale:g}"})


def refused_form(entry: ModelEntry, texts: Mapping[str, str], errors: Iterable[FieldError]) -> Form:
    """The form as it was sent, with what is wrong beside each field."""
    return Form(entry, default_texts(entry) | dict(texts), {error.field: error for error in errors})


def default_texts(entry: ModelEntry) -> dict[str, str]:
    """The model's defaults as text. An empty seed means that one is drawn."""
    defaults = {name: str(value) for name, value in entry.defaults.model_dump().items()}
    guidance_scale = f"{entry.defaults.guidance_scale:g}"
    return defaults | {
        "guidance_scale": guidance_scale,
        "prompt": "",
        "negative_prompt": "",
        "seed": "",
        "num_images": "1",
        "format": FORMATS[0],
    }


def size_presets(entry: ModelEntry) -> tuple[SizePreset, ...]:
    """The usual shapes at the model's own number of pixels, each within its limits."""
    pixels = entry.defaults.width * entry.defaults.height
    presets = {
        preset.value: preset
        for preset in (_preset(entry, title, sqrt(pixels * w / h), sqrt(pixels * h / w)) for title, w, h in SHAPES)
    }
    return tuple(preset for preset in presets.values() if _is_within(entry, preset))


def _preset(entry: ModelEntry, title: str, width: float, height: float) -> SizePreset:
    multiple = entry.limits.size_multiple
    return SizePreset(title, round(width / multiple) * multiple, round(height / multiple) * multiple)


def _is_within(entry: ModelEntry, preset: SizePreset) -> bool:
    limits = entry.limits
    sides = (preset.width, preset.height)
    return min(sides) >= limits.min_size and max(sides) <= limits.max_size and sides[0] * sides[1] <= limits.max_pixels
