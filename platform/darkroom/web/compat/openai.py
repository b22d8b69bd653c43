"""OpenAI's images API, as the `openai` package, Open WebUI and LibreChat call it: generations, edits, models."""

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from io import BytesIO
from typing import Any

from flask import Blueprint, Response, json, request
from PIL import Image as Picture
from PIL import ImageOps

from darkroom import events, jobs
from darkroom.errors import DarkroomError
from darkroom.jobs import ImageRecord, JobRecord, Request
from darkroom.models import FINAL_STATES
from darkroom.previews import Preview
from darkroom.web import streams
from darkroom.web.answers import answer
from darkroom.web.compat.calls import (
    SERVER_ERROR,
    develop,
    image_url,
    in_words,
    model_called,
    picture,
    refusal,
    refuse_as,
    sampler_called,
    submission_of,
    submit,
    succeeded,
    take_choice,
)
from darkroom.web.guards import require_json
from darkroom.web.hub import Mailbox
from darkroom.web.identity import asks, current
from darkroom.web.problems import Problem, Refused, problem_of
from darkroom.web.services import Services, services
from darkroom.web.submission import NUMBER, WHOLE, Submission, read_body, read_json
from darkroom.web.uploads import MOST_UPLOAD_BYTES

NAMES = {
    "n": "num_images",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "output_format": "format",
    "output_compression": "quality",
    "image": "init_image",
}
# What asks for nothing that Darkroom could do otherwise.
IGNORED = ("user", "safety_identifier", "moderation", "style", "input_fidelity")
QUALITIES = ("auto", "standard", "hd", "low", "medium", "high", "xhigh", "max")
MOST_PARTIALS = 3
SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})", re.ASCII)
RETRY_COUNT = "x-stainless-retry-count"
# The client waits ten minutes at most before it sends a request once more.
RETRY_WINDOW = timedelta(minutes=15)
BOOLEANS = {"true": True, "false": False}
WORDS = frozenset({"prompt", "negative_prompt", "model", "user", "safety_identifier"})
FORM_BYTES = 256 * 1024
# OpenAI counts tokens, and its client insists on being told how many.
USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}

blueprint = Blueprint("openai", __name__)


@dataclass(frozen=True)
class Wanted:
    """What a request says of its answer."""

    is_url: bool
    is_stream: bool
    num_partials: int


@blueprint.get("/v1/models")
@asks("read")
def list_models() -> Response:
    """Every model on offer."""
    return answer({"object": "list", "data": [_model(entry.name) for entry in services().catalog.models]})


@blueprint.get("/v1/models/<path:model_id>")
@asks("read")
def show_model(model_id: str) -> Response:
    """One model; a name that stands for another is told as that other."""
    return answer(_model(model_called(model_id)))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "darkroom"}


@blueprint.post("/v1/images/generations")
@asks("submit")
def generate() -> Response:
    """Develop pictures from words."""
    require_json()
    return _answer(read_json(read_body(request)), "image_generation")


@blueprint.post("/v1/images/edits")
@asks("submit")
def edit() -> Response:
    """Develop a picture anew from words and a picture, where its mask is transparent, or everywhere."""
    request.max_content_length = 2 * MOST_UPLOAD_BYTES + FORM_BYTES
    body = {name: _value(name, text) for name, text in request.form.items()}
    return _answer(body | _pictures(), "image_edit")


def _answer(body: dict[str, Any], event: str) -> Response:
    again = _repetition_of(body)
    wanted = _take_wanted(body)
    size = _size(body.pop("size", None))
    if twice := sorted(size.keys() & body.keys()):
        raise refusal(twice[0], "says the same as size", "one of them")
    body |= size
    body["sampler"] = sampler_called(body.get("sampler"))
    if (name := body.get("model")) is not None:
        body["model"] = model_called(name)
    submission = submission_of(body, NAMES)
    if wanted.is_stream:
        return _stream(submission, again, wanted=wanted, event=event)
    job = succeeded(develop(submission, NAMES, again=again))
    return answer(_document(job, wanted))


def _repetition_of(body: Mapping[str, Any]) -> Request:
    """What makes the client's own retry the same request, which sends no key: an equal one, made a while ago."""
    digest = sha256(json.dumps([request.path, body], sort_keys=True).encode()).hexdigest()
    again = Request(f"openai {digest}", digest)  # no Idempotency-Key has a space
    is_retry = request.headers.get(RETRY_COUNT, "0") != "0"
    return again if is_retry and _is_recent(again) else Request(again.key, again.sha256, is_new=True)


def _is_recent(again: Request) -> bool:
    owner = current().owner
    made_id = jobs.find_made(services().database, again, owner=owner)
    if made_id is None:
        return True  # of two retries at once, the second joins the first
    made = jobs.get(services().database, made_id, owner=owner)
    return made.created_at > datetime.now(UTC) - RETRY_WINDOW


def _take_wanted(body: dict[str, Any]) -> Wanted:
    for name in IGNORED:
        body.pop(name, None)
    take_choice(body, "quality", QUALITIES, default="auto")
    take_choice(body, "background", ("auto", "opaque"), default="auto")
    is_url = take_choice(body, "response_format", ("b64_json", "url"), default="b64_json") == "url"
    is_stream = body.pop("stream", None) or False
    if not isinstance(is_stream, bool):
        raise refusal("stream", "is not taken", "true or false")
    num_partials = body.pop("partial_images", None) or 0
    if type(num_partials) is not int or not 0 <= num_partials <= MOST_PARTIALS:
        raise refusal("partial_images", "is not taken", f"a whole number from 0 to {MOST_PARTIALS}")
    return Wanted(is_url, is_stream, num_partials)


def _size(value: Any) -> dict[str, int]:
    """Width and height, or neither: then the model's own."""
    if value is None or value == "auto":
        return {}
    found = SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise refusal("size", "is not taken", "auto, or width and height as in 512x512")
    return {"width": int(found[1]), "height": int(found[2])}


def _value(name: str, text: str) -> Any:
    """What a form's text would be as JSON; what is no number stays text, to be refused."""
    if name in WORDS:
        return text.replace("\r\n", "\n")
    if WHOLE.fullmatch(text):
        return int(text)
    return float(text) if NUMBER.fullmatch(text) else BOOLEANS.get(text, text)


def _pictures() -> dict[str, str]:
    """The picture and its mask, as our own fields take them."""
    files = [*request.files.getlist("image"), *request.files.getlist("image[]")]
    if len(files) != 1:
        raise refusal("image", f"has {len(files)} pictures", "one picture in a form")
    image: bytes = files[0].read()
    if "mask" in request.files:
        mask = _mask(request.files["mask"].read(), "mask")
        if mask is None:
            raise refusal("mask", "has no transparency", "a picture that is transparent where to develop anew")
    else:
        mask = _mask(image, "image")
    return {"image": _data_url(image)} | ({"mask": _data_url(mask)} if mask else {})


def _mask(body: bytes, field: str) -> bytes | None:
    """White where a picture is transparent, black elsewhere; None for a picture that has no transparency."""
    safe = services().pictures.read(body, field=field)
    with Picture.open(BytesIO(safe.body), formats=("PNG",)) as image:
        if not image.has_transparency_data:
            return None
        mask = BytesIO()
        ImageOps.invert(image.getchannel("A")).save(mask, "PNG", compress_level=1)
        return mask.getvalue()


def _data_url(body: bytes) -> str:
    return f"data:application/octet-stream;base64,{b64encode(body).decode()}"


def _document(job: JobRecord, wanted: Wanted) -> dict[str, Any]:
    return {
        "created": int(job.created_at.timestamp()),
        "data": [_image(job, image, is_url=wanted.is_url) for image in job.images],
        "background": "opaque",
        "output_format": job.params.format,
        "size": _size_of(job),
        "usage": USAGE,
    }


def _image(job: JobRecord, image: ImageRecord, *, is_url: bool) -> dict[str, Any]:
    """One picture; its seed is more than OpenAI tells."""
    what = {"url": image_url(job, image)} if is_url else {"b64_json": _base64(picture(services(), image))}
    return {**what, "seed": image.seed}


def _size_of(job: JobRecord) -> str:
    return f"{job.params.width}x{job.params.height}"


def _base64(body: bytes) -> str:
    return b64encode(body).decode()


def _stream(submission: Submission, again: Request, *, wanted: Wanted, event: str) -> Response:
    give_back = services().waiting.take_place()
    with ExitStack() as in_vain:
        in_vain.callback(give_back)
        job = submit(submission, NAMES, again=again)
        in_vain.pop_all()
    frames = _Teller(services(), event).tell(job, num_partials=wanted.num_partials)
    response = Response(frames, content_type="text/event-stream", headers=streams.HEADERS)
    response.call_on_close(give_back)  # however the answer ends
    return response


class _Teller:
    """Writes streams. Lives longer than the request's context, and holds no connection while it waits."""

    def __init__(self, parts: Services, event: str) -> None:
        self._parts = parts
        self._event = event

    def tell(self, job: JobRecord, *, num_partials: int) -> Iterator[bytes]:
        yield streams.HEARTBEAT  # the head goes out with it
        try:
            num_watched = 1 if num_partials else 0
            with self._parts.waiting.hub.follow(job.id, num_images=num_watched) as mailbox:
                yield from self._until_ended(job, mailbox, num_partials=num_partials)
            ended = succeeded(jobs.get(self._parts.database, job.id))
            for image in ended.images:
                body = picture(self._parts, image)
                yield self._frame("completed", ended, body, output_format=job.params.format, usage=USAGE)
        except DarkroomError as error:
            failure = {"type": "error", **_error(problem_of(error))}
            yield f"event: error\ndata: {json.dumps(failure)}\n\n".encode()

    def _until_ended(self, job: JobRecord, mailbox: Mailbox, *, num_partials: int) -> Iterator[bytes]:
        """Tell of the first picture's previews at even distances, if they come, until the job has ended."""
        news = tuple(events.read(self._parts.database, job.id))
        num_told = 0
        while not any(event.type in FINAL_STATES for event in news):
            mail = mailbox.take(seconds=self._parts.settings.stream_heartbeat_seconds)
            news = mail.events
            due = (num_told + 1) * job.params.num_inference_steps / (num_partials + 1)
            for preview in mail.previews if num_told < num_partials else ():
                if preview.n == 0 and preview.step >= due:
                    yield self._partial(job, preview, num_told)
                    num_told += 1
            if mail.is_last and not news:
                raise Refused(503, "stopping", f"This server is stopping. The picture goes on as job {job.id}.")
            if not news and not mail.previews:
                yield streams.HEARTBEAT

    def _partial(self, job: JobRecord, preview: Preview, index: int) -> bytes:
        return self._frame("partial_image", job, preview.body, output_format="webp", partial_image_index=index)

    def _frame(self, word: str, job: JobRecord, body: bytes, **more: Any) -> bytes:
        name = f"{self._event}.{word}"
        document = {
            "type": name,
            "b64_json": _base64(body),
            "created_at": int(job.created_at.timestamp()),
            "size": _size_of(job),
            "quality": "auto",
            "background": "opaque",
            **more,
        }
        return f"event: {name}\ndata: {json.dumps(document)}\n\n".encode()


def _error(problem: Problem) -> dict[str, Any]:
    kind = "server_error" if problem.status >= SERVER_ERROR else "invalid_request_error"
    param = problem.errors[0].field if problem.errors else None
    return {"error": {"message": in_words(problem), "type": kind, "param": param, "code": problem.code}}


def _refuse(problem: Problem) -> tuple[Mapping[str, Any], int]:
    return _error(problem), 400 if problem.status == 422 else problem.status


refuse_as(blueprint, _refuse)
