"""What somebody asks for, read from a JSON body or an HTML form and held to the model's limits. Stores nothing.

A body is refused whole: every bad field is named, and no value is bent until it fits.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from json import JSONDecodeError, dumps, loads
from typing import Any, TypeVar

from flask import Request as HttpRequest
from werkzeug.exceptions import RequestEntityTooLarge

from darkroom.catalog import Catalog, ModelEntry
from darkroom.errors import FieldError, InvalidParameters, UnknownModel
from darkroom.jobs import JobClass, Request
from darkroom.params import GenerationParams, resolve
from darkroom.web.problems import Refused, unknown_model
from darkroom.webhooks.destinations import Destinations
from darkroom.webhooks.subscriptions import Subscription, read_subscription

# Beyond this many digits a number is infinite, as it is to every JSON reader that keeps doubles.
MOST_DIGITS = 400
MOST_METADATA_BYTES = 4096
DEEPEST_METADATA = 8
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
INPUTS = ("init_image", "mask")
# Stands where the key of an input will be, while the rest of a request is held to its limits.
STAND_IN = "-"

WHOLE = re.compile(r"[+-]?[0-9]{1,30}")
NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?")
WHOLE_FIELDS = ("width", "height", "num_inference_steps", "seed", "num_images", "quality")
# A form's field for the weight of an adapter: this, and the adapter's name. Empty where it is not to act.
LORA = "lora."

T = TypeVar("T")
V = TypeVar("V")


@dataclass(frozen=True)
class Submission:
    """A request that the model takes. What its inputs refer to has not been looked for yet."""

    entry: ModelEntry
    params: GenerationParams
    job_class: JobClass
    deadline_seconds: float
    retention_seconds: float | None = None
    metadata: Mapping[str, Any] | None = None
    webhook: Subscription | None = None
    # Field -> an upload's id, an image's id, or a data: URL.
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """What a request is held to, beside its model's limits."""

    catalog: Catalog
    longest_deadline_seconds: float
    longest_retention_seconds: float
    destinations: Destinations
    job_classes: tuple[JobClass, ...] = tuple(JobClass)


class _Twice(Exception):
    """A JSON object has one key twice."""


def read_body(request: HttpRequest) -> bytes:
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
        body["guidance_scale"] = _number(text)
    body |= {name: True for name in ("exact", "walk") if form.get(name)}
    if form.get("unmarked"):
        body["embed_metadata"] = False
    if weights := {name: text.strip() for name, text in form.items() if name.startswith(LORA) and text.strip()}:
        body["loras"] = [{"name": name.removeprefix(LORA), "weight": _number(text)} for name, text in weights.items()]
    return body | _beginning(form)


def _beginning(form: Mapping[str, str]) -> dict[str, Any]:
    """What a form says of the picture to begin from. Where there is none, the strength beside it means nothing."""
    if not form.get("init_image"):
        return {}
    named = {name: form[name] for name in INPUTS if form.get(name)}
    text = form.get("strength", "").strip()
    return named | ({"strength": _number(text)} if text else {})


def _number(text: str) -> float | str:
    return float(text) if NUMBER.fullmatch(text) else text


def _text(form: Mapping[str, str], name: str) -> str:
    return form.get(name, "").replace("\r\n", "\n")  # a browser's line ends, whatever the person's system


def check(body: Mapping[str, Any], rules: Rules, *, job_class: JobClass) -> Submission:
    """Hold a body to its model's limits; job_class is what it gets unless it says. Raises InvalidParameters."""
    rest = dict(body)
    errors: list[FieldError] = []

    def take(name: str, read: Callable[[Any], T], default: Any) -> T | None:
        return _collect(errors, read, rest.pop(name, default))

    # What a route gives by itself is open to everybody: a person's form is interactive, whatever the key may ask for.
    job_classes = sorted({*rules.job_classes, job_class})
    named_class = take("priority", lambda value: _job_class(value, job_classes), job_class.name.lower())
    longest = rules.longest_deadline_seconds
    deadline_seconds = take("deadline_seconds", lambda value: _seconds("deadline_seconds", value, longest), longest)
    retention_seconds = take("retention_seconds", lambda value: _retention(value, rules), None)
    metadata = take("metadata", _metadata, None)
    webhook = take("webhook", lambda value: _webhook(value, rules.destinations), None)
    inputs = {name: rest[name] for name in INPUTS if isinstance(rest.get(name), str) and rest[name]}
    entry = take("model", lambda name: _model(name, rules.catalog), rules.catalog.default.name)
    # Limits belong to a model: without one, nothing can be said of the other fields.
    stand_ins = dict.fromkeys(inputs, STAND_IN)
    params = _collect(errors, lambda fields: resolve(entry, fields), rest | stand_ins) if entry else None
    if errors or entry is None or params is None or named_class is None or deadline_seconds is None:
        raise InvalidParameters(errors)
    return Submission(
        entry, params, named_class, deadline_seconds, retention_seconds, metadata or None, webhook, inputs
    )


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


def _job_class(value: Any, allowed: Sequence[JobClass]) -> JobClass:
    names = [each.name.lower() for each in allowed]
    if value not in names:
        is_known = value in [each.name.lower() for each in JobClass]
        problem = "is not open to this key" if is_known else "is not a priority"
        raise InvalidParameters([FieldError("priority", problem, f"one of {', '.join(names)}")])
    return JobClass[value.upper()]


def _seconds(name: str, value: Any, most: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= most:
        limit = f"a number of seconds above 0, at most {most:.10g}"
        problem = "is out of range" if is_number else "is not a number"
        raise InvalidParameters([FieldError(name, problem, limit)])
    return float(value)


def _retention(value: Any, rules: Rules) -> float | None:
    return None if value is None else _seconds("retention_seconds", value, rules.longest_retention_seconds)


def _webhook(value: Any, destinations: Destinations) -> Subscription | None:
    return None if value is None else read_subscription(value, destinations, field="webhook")


def _metadata(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if problem := _metadata_problem(value):
        limit = f"an object of at most {MOST_METADATA_BYTES} bytes as JSON, nested at most {DEEPEST_METADATA} deep"
        raise InvalidParameters([FieldError("metadata", problem, limit)])
    return dict(value)


def _metadata_problem(value: Any) -> str | None:
    if not isinstance(value, dict):
        return "is not an object"
    if _depth(value) > DEEPEST_METADATA:
        return "is nested too deeply"
    try:
        num_bytes = len(dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which no text encoding can store"
    except ValueError:
        return "holds a number that is too large"
    return f"has {num_bytes} bytes" if num_bytes > MOST_METADATA_BYTES else None


def _depth(value: Any) -> int:
    """How deep a JSON value is nested, counted up to one more than is taken."""
    level, depth = [value], 0
    while level and depth <= DEEPEST_METADATA:
        insides = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [item for inside in insides for item in inside]
        depth += bool(insides)
    return depth


def read_idempotency(text: str | None, body: Mapping[str, Any]) -> Request | None:
    """What an Idempotency-Key and a body make of a request; None without a key. Raises InvalidParameters."""
    if text is None:
        return None
    if not IDEMPOTENCY_KEY.fullmatch(text):
        limit = "1 to 255 visible ASCII characters"
        raise InvalidParameters([FieldError("Idempotency-Key", "is not taken", limit)])
    asked = dumps(body, sort_keys=True, separators=(",", ":"))
    return Request(text, sha256(asked.encode()).hexdigest())
