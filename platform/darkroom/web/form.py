"""The form as a page shows it: each field's text, its refusal, and the sizes on offer. Stores nothing, asks nobody.

Whatever changes the form by a button (another model, its defaults, a picture's file) makes another value of it here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import get_args

from darkroom.catalog import Catalog, Feature, ModelEntry
from darkroom.errors import FieldError, UnknownModel
from darkroom.params import DEFAULT_STRENGTH, GenerationParams, ImageFormat
from darkroom.picture_metadata import PictureParameters
from darkroom.storage import reference_of
from darkroom.web.submission import LORA

FORMATS = get_args(ImageFormat)
OWN_SIZE = "own"
ICON = 22
SHAPES = (("Square", 1, 1), ("Portrait", 3, 4), ("Landscape", 4, 3), ("Tall", 9, 16), ("Wide", 16, 9))
ON = "on"
# Boxes to tick: one that is not ticked is not sent.
CHECKS = ("exact", "walk", "unmarked")
BEGINNING = ("init_image", "mask", "strength")
# What a person has said, as against what suits a model: it stays when the settings change.
OWN_WORDS = ("prompt", "negative_prompt", "seed", "num_images", *BEGINNING, "format", "quality", "exact", "unmarked")


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
    """What the form page renders. Texts are as typed, also where they were refused; `note` says how they came here."""

    entry: ModelEntry
    texts: Mapping[str, str]
    errors: Mapping[str, FieldError] = field(default_factory=dict)
    note: str = ""

    @property
    def presets(self) -> tuple[SizePreset, ...]:
        """The sizes to choose from."""
        return size_presets(self.entry)

    @property
    def size(self) -> str:
        """The preset to show as chosen."""
        size = self.texts.get("size") or f"{self.texts['width']}x{self.texts['height']}"
        return size if size in {preset.value for preset in self.presets} else OWN_SIZE

    @property
    def sampler(self) -> str:
        """The sampler to show as chosen; where it was refused, the model's own stands in its place."""
        typed = self.texts["sampler"]
        return typed if typed in self.entry.limits.samplers else self.entry.defaults.sampler

    @property
    def loras(self) -> tuple[str, ...]:
        """The adapters to show: the model's, and what is named besides and will be refused."""
        named = [name.removeprefix(LORA) for name, text in self.texts.items() if name.startswith(LORA) and text]
        return tuple(dict.fromkeys([*self.entry.loras, *named]))

    @property
    def asks_for_negative_prompt(self) -> bool:
        """Whether it makes sense to say what the picture should not show."""
        return not self.entry.ignores_negative_prompt

    def has(self, feature: Feature) -> bool:
        """Whether the model can do this."""
        return feature in self.entry.features


def entry_or_default(catalog: Catalog, name: str) -> ModelEntry:
    """The model to draw a form for. A name that is unknown is refused where the form is read."""
    try:
        return catalog.get(name)
    except UnknownModel:
        return catalog.default


def new_form(entry: ModelEntry, texts: Mapping[str, str], *, note: str = "") -> Form:
    """A form with the model's defaults, and whatever is already known."""
    return Form(entry, default_texts(entry) | {name: text for name, text in texts.items() if text}, note=note)


def reset_form(entry: ModelEntry, typed: Mapping[str, str]) -> Form:
    """A form with the model's own settings, and the person's own words."""
    return new_form(entry, {name: typed.get(name, "") for name in OWN_WORDS})


def form_from(entry: ModelEntry, params: GenerationParams) -> Form:
    """A form that would make the same pictures again."""
    own = {"loras", "exact", "walk", "embed_metadata", "init_image", "mask", "guidance_scale", "strength"}
    texts = {name: str(value) for name, value in params.model_dump(exclude=own).items()}
    texts |= {"guidance_scale": f"{params.guidance_scale:g}"}
    texts |= _ticked(exact=params.exact, walk=params.walk, unmarked=not params.embed_metadata)
    texts |= {LORA + use.name: f"{use.weight:g}" for use in params.loras}
    if params.strength is not None:
        texts["strength"] = f"{params.strength:g}"
    inputs = {name: getattr(params, name) for name in ("init_image", "mask")}
    texts |= {name: reference_of(key) or "" for name, key in inputs.items() if key}
    return Form(entry, default_texts(entry) | texts)


def beginning_form(entry: ModelEntry, params: GenerationParams, picture: str) -> Form:
    """A form that begins from a picture of a job, with that job's words and settings, and another seed."""
    fresh = {"seed": "", "mask": "", "init_image": picture, "strength": f"{DEFAULT_STRENGTH:g}"}
    return Form(entry, {**form_from(entry, params).texts, **fresh})


def typed_form(
    entry: ModelEntry, typed: Mapping[str, str], errors: Iterable[FieldError] = (), *, note: str = ""
) -> Form:
    """The form as it was sent, with what is wrong beside each field."""
    unticked = {name: "" for name in CHECKS}
    texts = default_texts(entry) | unticked | dict(typed)
    return Form(entry, texts, {error.field: error for error in errors}, note)


def filled_texts(typed: Mapping[str, str], found: PictureParameters) -> dict[str, str]:
    """What was typed, and in its place what a picture's file says.

    A file that tells the words of a picture and no negative ones had none.
    """
    told = {name: _as_text(value) for name, value in found.known.items() if name not in {"loras", "model"}}
    words = {"negative_prompt": ""} if found.prompt is not None else {}
    size = {"size": ""} if found.width and found.height else {}
    loras = {name: "" for name in typed if name.startswith(LORA)} if found.prompt is not None else {}
    return {**typed, **words, **size, **loras, **told, **{LORA + use.name: f"{use.weight:g}" for use in found.loras}}


def _as_text(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def default_texts(entry: ModelEntry) -> dict[str, str]:
    """The model's defaults as text. An empty seed means that one is drawn."""
    defaults = {name: str(value) for name, value in entry.defaults.model_dump().items()}
    said_nowhere = dict.fromkeys(("prompt", "negative_prompt", "seed", "init_image", "mask"), "")
    own = {
        "guidance_scale": f"{entry.defaults.guidance_scale:g}",
        "strength": f"{DEFAULT_STRENGTH:g}",
        "num_images": "1",
        "format": FORMATS[0],
        "quality": str(GenerationParams.model_fields["quality"].default),
    }
    loras = {LORA + name: "" for name in entry.loras}
    return {**defaults, **said_nowhere, **own, **loras, **_ticked(exact=False, walk="walk" in entry.features)}


def _ticked(**is_ticked: bool) -> dict[str, str]:
    return dict.fromkeys(CHECKS, "") | {name: ON for name, is_on in is_ticked.items() if is_on}


def size_presets(entry: ModelEntry) -> tuple[SizePreset, ...]:
    """The usual shapes at the model's own number of pixels, or as near to it as its limits let them be."""
    presets = {preset.value: preset for preset in (_preset(entry, *shape) for shape in SHAPES)}
    return tuple(preset for preset in presets.values() if _is_within(entry, preset))


def _preset(entry: ModelEntry, title: str, across: int, down: int) -> SizePreset:
    multiple, pixels = entry.limits.size_multiple, entry.defaults.width * entry.defaults.height
    most = entry.limits.max_size / max(across, down)
    scale = min(sqrt(pixels / (across * down)), most)
    return SizePreset(title, round(across * scale / multiple) * multiple, round(down * scale / multiple) * multiple)


def _is_within(entry: ModelEntry, preset: SizePreset) -> bool:
    limits = entry.limits
    sides = (preset.width, preset.height)
    return min(sides) >= limits.min_size and max(sides) <= limits.max_size and sides[0] * sides[1] <= limits.max_pixels
