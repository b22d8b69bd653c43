"""What somebody asks for, read from a JSON body or an HTML form and held to the model's limits. Stores nothing.

A body is refused whole: every bad field is named, and no value is bent until it fits.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from json import JSONDecodeError, loads
from typing import Any, TypeVar

from flask import Request
from werkzeug.exceptions import RequestEntityTooLarge

from darkroom.catalog import Catalog, ModelEntry
from darkroom.config import Settings
from darkroom.errors import FieldError, InvalidParameters, UnknownModel
from darkroom.jobs import JobClass
from darkroom.params import GenerationParams, resolve
from darkroom.web.problems import Refused, unknown_model

# Beyond this many digits a number is infinite, as it is to every JSON reader that keeps doubles.
MOST_DIGITS = 400

WHOLE = re.compile(r"[+-]?[0-9]{1,30}")
NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?")
WHOLE_FIELDS = ("width", "height", "num_inference_steps", "seed", "num_images", "quality")

T = TypeVar("T")
V = TypeVar("V")


@dataclass(frozen=True)
class Submission:
    """A request that the model takes."""

    entry: ModelEntry
    params: GenerationParams
    job_class: JobClass
    deadline_seconds: float


class _Twice(Exception):
    """A JSON object has one key twice."""


def read_body(request: Request) -> bytes:
    """Read the whole body. Raises RequestEntityTooLarge."""
    raw = request.get_data(cache=False)
    # Without a declared length werkzeug stops at the limit and says nothing: half a body would pass for a whole one.
    if request.content_length is None and len(raw) >= (request.max_content_length or math.inf):
        raise RequestEntityTooLarge
    return raw


def read_json(raw: bytes) -> dict[str, Any]:
    """Read a request body. Raises Refused (400) when it is not JSON, InvalidParameters when it is not an object."""
    try:
        body = loads(raw.decode(), parse_int=_whole, parse_constant=_refuse_constant, object_pairs_hook=_once)
    except _Twice as error:
        raise InvalidParameters([FieldError(str(error), "appears twice", "each field at most once")]) from error
    except JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Refused(400, "malformed_json", f"The body is not JSON: {error.msg} at {where}.") from error
    except UnicodeDecodeError as error:
        raise Refused(
            400, "malformed_json", f"The body is not UTF-8: byte {error.start} begins no character."
        ) from error
    except RecursionError as error:
        raise Refused(400, "malformed_json", "The body is nested too deeply.") from error
    if not isinstance(body, dict):
        raise InvalidParameters([FieldError("body", "is not an object", "a JSON object of fields")])
    return body


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= MOST_DIGITS else math.copysign(math.inf, -1 if digits[0] == "-" else 1)


def _refuse_constant(name: str) -> Any:
    raise Refused(400, "malformed_json", f"The body is not JSON: {name} is not a JSON number.")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise _Twice(name)
        table[name] = value
    return table


def read_form(form: Mapping[str, str]) -> dict[str, Any]:
    """Turn a form's text into the body that a program would have sent. What is no number stays text, to be refused."""
    body: dict[str, Any] = {name: _text(form, name) for name in ("prompt", "negative_prompt")}
    for name in ("model", "sampler", "format"):
        if form.get(name):
            body[name] = form[name]
    width, _, height = form.get("size", "").partition("x")
    texts = dict(form) | ({"width": width, "height": height} if height else {})
    for name in WHOLE_FIELDS:
        if text := texts.get(name, "").strip():
            body[name] = int(text) if WHOLE.fullmatch(text) else text
    if text := texts.get("guidance_scale", "").strip():
        body["guidance_scale"] = float(text) if NUMBER.fullmatch(text) else text
    return body


def _text(form: Mapping[str, str], name: str) -> str:
    return form.get(name, "").replace("\r\n", "\n")  # a browser's line ends, whatever the person's system


def check(body: Mapping[str, Any], catalog: Catalog, settings: Settings, *, job_class: JobClass) -> Submission:
    """Hold a body to its model's limits; job_class is what it gets unless it says. Raises InvalidParameters."""
    rest = dict(body)
    errors: list[FieldError] = []
    named_class = _collect(errors, _job_class, rest.pop("priority", job_class.name.lower()))
    longest = settings.job_ttl_seconds
    deadline_seconds = _collect(errors, lambda value: _deadline(value, longest), rest.pop("deadline_seconds", longest))
    entry = _collect(errors, lambda name: _model(name, catalog), rest.pop("model", catalog.default.name))
    # Limits belong to a model: without one, nothing can be said of the other fields.
    params = _collect(errors, lambda fields: resolve(entry, fields), rest) if entry else None
    if entry is None or params is None or named_class is None or deadline_seconds is None:
        raise InvalidParameters(errors)
    return Submission(entry, params, named_class, deadline_seconds)


def _collect(errors: list[FieldError], read: Callable[[V], T], value: V) -> T | None:
    try:
        return read(value)
    except InvalidParameters as error:
        errors.extend(error.errors)
        return None


def _model(value: Any, catalog: Catalog) -> ModelEntry:
    try:
        return catalog.get(value if isinstance(value, str) else "")
    except UnknownModel as error:
        raise InvalidParameters([unknown_model(error)]) from error


def _job_class(value: Any) -> JobClass:
    names = [each.name.lower() for each in JobClass]
    if value not in names:
        raise InvalidParameters([FieldError("priority", "is not a priority", f"one of {', '.join(names)}")])
    return JobClass[value.upper()]


def _deadline(value: Any, most: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= most:
        limit = f"a number of seconds above 0, at most {most:g}"
        problem = "is out of range" if is_number else "is not a number"
        raise InvalidParameters([FieldError("deadline_seconds", problem, limit)])
    return float(value)
