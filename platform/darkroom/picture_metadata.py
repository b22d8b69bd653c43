"""What a picture's file says of its making, written and read: the text of AUTOMATIC1111's web UI, and a JSON of ours.

The text is what other programs and sites read. It cannot hold every prompt: where it would be read differently, the
exact words stand at its end once more, quoted. Reading a file decodes no pixel. Knows no job and no model's limits.
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Annotated, Any

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from darkroom import __version__
from darkroom.errors import PictureUnreadable
from darkroom.params import GenerationParams, LoraUse
from darkroom.sampler_titles import name_of, title_of

PARAMETERS = "parameters"
DARKROOM = "darkroom"
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF")
# Neither our prompts nor anybody's come near it, and what is longer is not read.
LONGEST_TEXT = 64 * 1024
# How many fields the last line must have to be one of settings: as in the web UI.
FEWEST_SETTINGS = 3

NEGATIVE = "Negative prompt:"
EXACT = {"prompt": "Exact prompt", "negative_prompt": "Exact negative prompt"}
KEY = re.compile(r"[ \t]*([A-Za-z0-9_][\w \-/]{1,60}):[ \t]*", re.ASCII)
QUOTED = re.compile(r'"(?:\\.|[^\\"])*"')
SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})", re.ASCII)

EXIF_IFD = 0x8769
USER_COMMENT = 0x9286
UNICODE = b"UNICODE\0"
ASCII = b"ASCII\0\0\0"
# What Pillow raises for a file that is not what it says.
BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, IndexError)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

Count = Annotated[int, Field(ge=1, lt=2**31)]
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]


class PictureParameters(BaseModel):
    """How one picture was made, as far as is known. The fields have the names that a job's have."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: Text | None = None
    negative_prompt: Text | None = None
    width: Count | None = None
    height: Count | None = None
    num_inference_steps: Count | None = None
    guidance_scale: Annotated[float, Field(ge=0, lt=1e6, allow_inf_nan=False)] | None = None
    sampler: Annotated[str, Field(max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    model: Annotated[str, Field(max_length=256)] | None = None
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    loras: Annotated[tuple[LoraUse, ...], Field(max_length=64)] = ()

    @property
    def known(self) -> dict[str, Any]:
        """The fields that something is known of."""
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


def parameters_of(params: GenerationParams, *, model: str, seed: int) -> PictureParameters:
    """What there is to tell of one picture of a job: not where it came from, only how it is made."""
    told = params.model_dump(include=set(PictureParameters.model_fields))
    return PictureParameters.model_validate(told | {"model": model, "seed": seed})


def embedded(parameters: PictureParameters) -> dict[str, str]:
    """The texts that go into a file, by the names of their chunks."""
    ours = {"version": __version__, **parameters.known}
    return {PARAMETERS: write(parameters), DARKROOM: json.dumps(ours, ensure_ascii=False)}


def write(parameters: PictureParameters) -> str:
    """Write the text that AUTOMATIC1111's web UI, Civitai and their like read."""
    text = _write(parameters, exact={})
    read_back = parse(text)
    wanted = {name: getattr(parameters, name) or "" for name in EXACT}
    differing = {name: wanted[name] for name in EXACT if (getattr(read_back, name) or "") != wanted[name]}
    return _write(parameters, exact=differing) if differing else text


def _write(parameters: PictureParameters, *, exact: Mapping[str, str]) -> str:
    settings: list[tuple[str, Any]] = [
        ("Steps", parameters.num_inference_steps),
        ("Sampler", title_of(parameters.sampler) if parameters.sampler else None),
        ("CFG scale", None if parameters.guidance_scale is None else f"{parameters.guidance_scale:g}"),
        ("Seed", parameters.seed),
        ("Size", f"{parameters.width}x{parameters.height}" if parameters.width and parameters.height else None),
        ("Model", parameters.model),
        ("Denoising strength", None if parameters.strength is None else f"{parameters.strength:g}"),
        ("Loras", ", ".join(f"{lora.name}: {lora.weight:g}" for lora in parameters.loras) or None),
    ]
    settings += [(EXACT[name], json.dumps(words, ensure_ascii=False)) for name, words in exact.items()]
    settings.append(("Version", f"Darkroom {__version__}"))
    line = ", ".join(
        f"{name}: {value if name in EXACT.values() else _quoted(str(value))}"
        for name, value in settings
        if value is not None
    )
    negative = [f"{NEGATIVE} {parameters.negative_prompt}"] if parameters.negative_prompt else []
    return "\n".join([parameters.prompt or "", *negative, line])


def _quoted(value: str) -> str:
    is_plain = not any(mark in value for mark in ',:\n"') and value == value.strip()
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def parse(text: str) -> PictureParameters:
    """Read the text of any program that writes it as AUTOMATIC1111's web UI does, as far as it is understood."""
    *lines, last = text[:LONGEST_TEXT].strip().split("\n")
    settings = dict(_settings(last))
    if len(settings) < FEWEST_SETTINGS:
        lines, settings = [*lines, last], {}
    prompts = _prompts(lines)
    prompts |= {name: settings[key] for name, key in EXACT.items() if key in settings}
    found = {name: _taken(name, value) for name, value in _fields(settings)}
    return PictureParameters.model_validate(
        prompts | {name: value for name, value in found.items() if value is not None}
    )


def _prompts(lines: list[str]) -> dict[str, str]:
    prompts: dict[str, list[str]] = {"prompt": [], "negative_prompt": []}
    into = "prompt"
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            into = "negative_prompt"
            line = line.removeprefix(NEGATIVE).strip()
        prompts[into].append(line)
    return {name: "\n".join(found) for name, found in prompts.items() if found}


def _settings(line: str) -> Iterator[tuple[str, str]]:
    """The fields of the last line. Each character is looked at a bounded number of times, whatever it says."""
    at = 0
    while at < len(line):
        key = KEY.match(line, at)
        quoted = QUOTED.match(line, key.end()) if key else None
        start = quoted.end() if quoted else (key.end() if key else at)
        comma = line.find(",", start)
        end = len(line) if comma < 0 else comma
        if key:
            yield key[1], _unquoted(quoted[0]) if quoted else line[start:end].strip()
        at = end + 1


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def _fields(settings: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """What the settings say of our fields, in our words."""
    simple = {
        "Steps": "num_inference_steps",
        "CFG scale": "guidance_scale",
        "Seed": "seed",
        "Model": "model",
        "Denoising strength": "strength",
    }
    for key, name in simple.items():
        if key in settings:
            yield name, settings[key]
    if size := SIZE.fullmatch(settings.get("Size", "")):
        yield "width", size[1]
        yield "height", size[2]
    if sampler := name_of(settings.get("Sampler", ""), spacing=settings.get("Schedule type", "")):
        yield "sampler", sampler
    if loras := settings.get("Loras"):
        named = [lora.rpartition(": ") for lora in loras.split(", ")]
        yield "loras", [{"name": name, "weight": _number(weight)} for name, _, weight in named]


def _taken(name: str, value: Any) -> Any:
    """A value as its field holds it, or None when the field does not."""
    try:
        return getattr(PictureParameters.model_validate({name: value}), name)
    except ValidationError:
        return None


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def user_comment(text: str) -> bytes:
    """The text as EXIF keeps it, in the encoding of its own that the web UI writes."""
    return UNICODE + text.encode("utf-16-be")


def _read_user_comment(raw: bytes) -> str | None:
    if raw.startswith(ASCII):
        return raw.removeprefix(ASCII).decode("ascii", "replace").rstrip("\0 ")
    if not raw.startswith(UNICODE):
        return None
    body = raw.removeprefix(UNICODE)
    # Some writers use the other byte order. Text has more zeros in the high byte than in the low one.
    is_big = body[0::2].count(0) >= body[1::2].count(0)
    return body[: len(body) // 2 * 2].decode("utf-16-be" if is_big else "utf-16-le", "replace").rstrip("\0")


class FileText(BaseModel):
    """What a file says: the text as it stands there, and what was understood of it or of our own JSON."""

    model_config = ConfigDict(frozen=True)

    text: str | None = None
    parameters: PictureParameters = PictureParameters()


def read_file(body: bytes) -> FileText:
    """Read what a picture's file says of its making, decoding no pixel. Raises PictureUnreadable."""
    try:
        with Image.open(BytesIO(body), formats=FORMATS) as image:
            text, ours = _texts(image)
    except BOMBS as error:
        raise PictureUnreadable("it has too many pixels") from error
    except BROKEN as error:
        raise PictureUnreadable from error
    return FileText(text=text, parameters=_ours(ours) or (parse(text) if text else PictureParameters()))


def texts_in(image: Image.Image) -> dict[str, str]:
    """The texts that an open file carries, by the names of their chunks."""
    return {name: text for name, text in zip((PARAMETERS, DARKROOM), _texts(image), strict=True) if text}


def _texts(image: Image.Image) -> tuple[str | None, str | None]:
    chunks = {name: image.info.get(name) for name in (PARAMETERS, DARKROOM)}
    text, ours = (value if isinstance(value, str) and len(value) <= LONGEST_TEXT else None for value in chunks.values())
    if text is None and image.format != "PNG":
        comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
        raw = comment if isinstance(comment, bytes) and len(comment) <= 2 * LONGEST_TEXT else b""
        text = _read_user_comment(raw)
    return text, ours


def _ours(text: str | None) -> PictureParameters | None:
    try:
        return PictureParameters.model_validate_json(text) if text else None
    except ValidationError:
        return None
