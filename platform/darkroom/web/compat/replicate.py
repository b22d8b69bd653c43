"""Replicate's predictions, as its client calls them at an address of its own: create, wait, look, list, cancel."""

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, request

from darkroom.errors import JobFinished
from darkroom.jobs import JobRecord, JobState
from darkroom.models import FINAL_STATES
from darkroom.web.answers import answer
from darkroom.web.compat.calls import (
    BODY_WITH_PICTURES_BYTES,
    absolute,
    image_url,
    in_words,
    model_called,
    picture,
    refusal,
    refuse_as,
    sampler_called,
    scheme,
    submission_of,
    submit,
)
from darkroom.web.documents import page_path, timestamp
from darkroom.web.guards import require_json
from darkroom.web.identity import asks
from darkroom.web.problems import Problem
from darkroom.web.queries import DEFAULT_PAGE, Filter, read_query
from darkroom.web.services import job_uuid, services
from darkroom.web.submission import read_body, read_json

PREDICTIONS = "/replicate/v1/predictions"
NAMES = {
    "num_outputs": "num_images",
    "scheduler": "sampler",
    "image": "init_image",
    "prompt_strength": "strength",
    "output_format": "format",
    "output_quality": "quality",
}
# Whether a model's output is streamed as it is made: a picture is not.
IGNORED = "stream"
STATUSES = {
    JobState.QUEUED: "starting",
    JobState.RUNNING: "processing",
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELED: "canceled",
    JobState.EXPIRED: "canceled",  # the client knows no other word for it, and would ask for ever
}
CANCEL_AFTER = "Cancel-After"
DURATION = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6})s?)?", re.ASCII)
BAR_WIDTH = 10
QUERY = {"cursor": Filter(job_uuid, "the cursor of an earlier page")}

blueprint = Blueprint("replicate", __name__)
blueprint.before_request(require_json)


@blueprint.post(PREDICTIONS)
@asks("submit")
def create_prediction() -> Response:
    """Queue a prediction by the model that its `version` names; with `Prefer: wait` answer when it has ended."""
    body = _read_body()
    version = body.pop("version", None)
    if not isinstance(version, str):
        raise refusal("version", "is not text" if version else "is missing", "the name of a model")
    return _create(body, *_names(version))


@blueprint.post("/replicate/v1/models/<model_owner>/<model_name>/predictions")
@asks("submit")
def create_model_prediction(model_owner: str, model_name: str) -> Response:
    """The same, of the model that the address names, whoever its owner is said to be."""
    return _create(_read_body(), *_names(f"{model_owner}/{model_name}"))


@blueprint.get(PREDICTIONS)
@asks("read")
def list_predictions() -> Response:
    """The newest predictions first, a page at a time. Outputs are addresses here, never files."""
    found, after = services().list_jobs(**read_query(request.args, QUERY), limit=DEFAULT_PAGE)
    results = [_document(job, output=_addresses(job)) for job in found]
    return answer({"previous": None, "next": after and absolute(f"{PREDICTIONS}?cursor={after}"), "results": results})


@blueprint.get(f"{PREDICTIONS}/<job_id>")
@asks("read")
def show_prediction(job_id: str) -> Response:
    """A prediction as it is now."""
    sight = services().follow(job_id)
    return answer(_document(sight.job, output=_output(sight.job), progress=sight.progress))


@blueprint.post(f"{PREDICTIONS}/<job_id>/cancel")
@asks("submit")
def cancel_prediction(job_id: str) -> Response:
    """Call a prediction off. One that has ended is told as it is."""
    try:
        job = services().cancel(job_id)
    except JobFinished:
        job = services().follow(job_id).job
    return answer(_document(job, output=_output(job)))


def _read_body() -> dict[str, Any]:
    request.max_content_length = BODY_WITH_PICTURES_BYTES
    return read_json(read_body(request))


def _names(name: str) -> tuple[str, str]:
    """What a model may be known as here: the whole name, or without whose it is on Replicate."""
    return name, name.rpartition("/")[2]


def _create(body: dict[str, Any], *names: str) -> Response:
    asked = body.pop("input", None)
    body.pop(IGNORED, None)
    if not isinstance(asked, dict):
        raise refusal("input", "is missing" if asked is None else "is not an object", "a JSON object of fields")
    if body:
        limit = "input, version and stream; webhooks are registered under /api/v1/webhooks"
        raise refusal(min(body), "is not taken", limit)
    fields = {**asked, "model": model_called(*names), **_deadline()}
    fields["scheduler"] = sampler_called(asked.get("scheduler"))
    if asked.get("output_format") == "jpg":
        fields["output_format"] = "jpeg"
    submission = submission_of(fields, NAMES | ({CANCEL_AFTER: "deadline_seconds"}))
    job, headers = services().waiting.submit_and_wait(lambda: submit(submission, NAMES))
    status = STATUSES[job.state] if job.state in FINAL_STATES else "starting"  # "processing" would end run() empty
    return answer(_document(job, output=_output(job), status=status), status=201, headers=headers)


def _deadline() -> dict[str, int]:
    """After how many seconds it is called off, as the header says it: 90, 90s, 5m, 1h30m."""
    text = request.headers.get(CANCEL_AFTER)
    if text is None:
        return {}
    found = DURATION.fullmatch(text.strip())
    if not text.strip() or found is None:
        raise refusal(CANCEL_AFTER, "is not taken", "a duration as in 90s, 5m or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return {CANCEL_AFTER: hours * 3600 + minutes * 60 + seconds}


def _document(
    job: JobRecord, *, output: list[str] | None, status: str | None = None, progress: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "id": str(job.id),
        "model": job.model,
        "version": job.model,
        "status": status or STATUSES[job.state],
        "input": _input(job),
        "output": output,
        "logs": _logs(job, progress),
        "error": _error(job),
        "metrics": _metrics(job),
        "created_at": timestamp(job.created_at),
        "started_at": timestamp(job.started_at),
        "completed_at": timestamp(job.finished_at),
        "urls": _urls(job.id),
    }


def _urls(job_id: UUID) -> dict[str, str]:
    path = f"{PREDICTIONS}/{job_id}"
    return {"get": absolute(path), "cancel": absolute(f"{path}/cancel"), "web": absolute(page_path(job_id))}


def _input(job: JobRecord) -> dict[str, Any]:
    """What was asked for, every default filled in; not the pictures it began from."""
    theirs = {ours: name for name, ours in NAMES.items()}
    told = job.params.model_dump(mode="json", exclude={"init_image", "mask"}, exclude_none=True)
    return {theirs.get(name, name): value for name, value in told.items()}


def _output(job: JobRecord) -> list[str] | None:
    """The pictures: over TLS as addresses, else as data: URLs, because the client makes files of nothing else."""
    if scheme() == "https" or not job.images:
        return _addresses(job)
    files = [(image.content_type, picture(services(), image)) for image in job.images]
    return [f"data:{content_type};base64,{b64encode(body).decode()}" for content_type, body in files]


def _addresses(job: JobRecord) -> list[str] | None:
    return [image_url(job, image) for image in job.images] or None


def _logs(job: JobRecord, progress: Mapping[str, Any] | None) -> str:
    """The seed, and how far it is, in the shape from which the client reads it."""
    lines = [f"Using seed: {job.params.seed}"]
    if progress and progress["num_steps"] > 0:
        share = progress["step"] / progress["num_steps"]
        bar = "#" * round(BAR_WIDTH * share)
        lines.append(f"{round(100 * share)}%|{bar:{BAR_WIDTH}}| {progress['step']}/{progress['num_steps']}")
    return "\n".join(lines)


def _error(job: JobRecord) -> str | None:
    if job.state is JobState.EXPIRED:
        return "Its time was up before it was done."
    return (job.error_message or job.error_code) if job.state is JobState.FAILED else None


def _metrics(job: JobRecord) -> dict[str, float]:
    if job.started_at is None or job.finished_at is None:
        return {}
    return {"predict_time": (job.finished_at - job.started_at).total_seconds()}


def _problem(problem: Problem) -> tuple[Mapping[str, Any], int]:
    return problem.document() | {"detail": in_words(problem)}, problem.status


refuse_as(blueprint, _problem)
