"""Hugging Face's text-to-image task, as InferenceClient calls it at an address of its own: words in, a picture out."""

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, request

from darkroom.storage import CONTENT_TYPES
from darkroom.web.compat.calls import (
    develop,
    in_words,
    model_called,
    picture,
    refusal,
    refuse_as,
    sampler_called,
    submission_of,
    succeeded,
)
from darkroom.web.guards import require_json
from darkroom.web.identity import asks
from darkroom.web.problems import Problem
from darkroom.web.services import services
from darkroom.web.submission import read_body, read_json

NAMES = {"inputs": "prompt", "scheduler": "sampler"}
# Of the first hosted API: whether to wait for a model to load, and whether an earlier picture would do.
IGNORED = "options"
ANSWERED_ALREADY = {"model": "the name in the address", "num_images": "one picture for each call"}

blueprint = Blueprint("hugging_face", __name__)
blueprint.before_request(require_json)


@blueprint.post("/hf/models/<path:model_id>")
@asks("submit")
def text_to_image(model_id: str) -> Response:
    """Develop one picture and answer with its file."""
    body = read_json(read_body(request))
    body.pop(IGNORED, None)
    parameters = body.pop("parameters", None) or {}
    if not isinstance(parameters, dict):
        raise refusal("parameters", "is not an object", "a JSON object of fields")
    if twice := sorted(body.keys() & parameters.keys()):
        raise refusal(twice[0], "appears twice", "each field at most once")
    fields = {"format": _format(), **body, **parameters}
    if taken := sorted(fields.keys() & ANSWERED_ALREADY.keys()):
        raise refusal(taken[0], "is not taken", ANSWERED_ALREADY[taken[0]])
    fields |= {"model": model_called(model_id), "scheduler": sampler_called(fields.get("scheduler"))}
    job = succeeded(develop(submission_of(fields, NAMES), NAMES))
    [image] = job.images
    return Response(picture(services(), image), content_type=image.content_type, headers={"X-Seed": str(image.seed)})


def _format() -> str:
    """The format that the client would rather have; PNG when it does not mind."""
    wanted = request.accept_mimetypes.best_match(list(CONTENT_TYPES.values()), default=CONTENT_TYPES["png"])
    return next(name for name, content_type in CONTENT_TYPES.items() if content_type == wanted)


def _document(problem: Problem) -> tuple[Mapping[str, Any], int]:
    return {"error": in_words(problem), "error_type": problem.code}, problem.status


refuse_as(blueprint, _document)
