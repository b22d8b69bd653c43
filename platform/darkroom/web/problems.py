"""What goes wrong, as HTTP: RFC 9457 problem documents for programs, small pages for people.

Knows every error the platform raises and its status. Knows no route.
"""

import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import Any

import structlog
from flask import Flask, Response, json, render_template, request
from werkzeug.exceptions import HTTPException

from darkroom.errors import (
    BatchNotFound,
    DarkroomError,
    DatabaseUnavailable,
    DeliveryNotFound,
    FieldError,
    ImageNotFound,
    IntakePaused,
    InvalidParameters,
    JobFinished,
    JobNotFound,
    JobStillLive,
    KeyNotFound,
    KeyRevoked,
    NoPlaceToWait,
    ObjectNotFound,
    PictureUnreadable,
    QuotaExceeded,
    RequestDiffers,
    StorageError,
    TooManyWebhooks,
    UnknownModel,
    UploadNotFound,
    WebhookNotFound,
    WorkerNotFound,
)

logger = structlog.get_logger(__name__)

MISDIRECTED = 421
RETRY_AFTER = {"Retry-After": "2"}
LONGEST_FIELD = 200  # a field's name comes from the client: it is echoed, but not at any length

MOST_TOLD = 3
# What lies below is called by programs, which read JSON.
FOR_PROGRAMS = ("/api/", "/v1/", "/sdapi/", "/hf/", "/replicate/")
PAUSE_RETRY_AFTER = "60"
QUOTAS = {
    "max_queued": "This key may have {limit} jobs waiting: {used} wait, and {asked} more were asked for.",
    "megapixel_steps_per_day": (
        "This key may submit {limit} megapixel-steps a day (UTC): {used} are used, and {asked} more were asked for."
    ),
}

CODES = {
    400: "bad_request",
    403: "forbidden",
    404: "unknown_path",
    405: "method_not_allowed",
    413: "body_too_large",
    414: "address_too_long",
    415: "unsupported_media_type",
    421: "unknown_host",
}


@dataclass(frozen=True)
class Problem:
    """One refusal or failure, ready to be told."""

    status: int
    code: str
    detail: str
    errors: tuple[FieldError, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    members: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The status in HTTP's own words."""
        return HTTPStatus(self.status).phrase

    @property
    def words(self) -> str:
        """The same for a person who stays on the page where it was asked."""
        told = [f"{error.field[:LONGEST_FIELD]} {error.problem}: {error.limit}." for error in self.errors[:MOST_TOLD]]
        return " ".join(told) or self.detail

    def document(self) -> dict[str, Any]:
        """The RFC 9457 members. `code` is stable; `detail` is prose and may change."""
        errors = [asdict(error) | {"field": error.field[:LONGEST_FIELD]} for error in self.errors]
        return {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            **({"errors": errors} if errors else {}),
            **self.members,
        }


class Refused(DarkroomError):
    """The web room itself turns a request away."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        self.problem = Problem(status, code, detail, headers=headers or {})
        super().__init__(detail)


def install(app: Flask) -> None:
    """Answer every error of the application as a problem."""
    app.register_error_handler(Exception, answer)


def answer(error: Exception) -> Response:
    """Turn any exception into the answer that its reader understands."""
    return respond(problem_of(error))


def respond(problem: Problem) -> Response:
    """Tell a program in problem+json, a person in a page."""
    if is_for_programs(request.path):
        body, content_type = json.dumps(problem.document()), "application/problem+json"
    elif problem.status == MISDIRECTED:
        body, content_type = problem.detail, "text/plain; charset=utf-8"  # a page has links, which need a host to be on
    else:
        body, content_type = render_template("error.html", problem=problem), "text/html; charset=utf-8"
    response = Response(body, status=problem.status, content_type=content_type)
    response.headers.update(problem.headers)
    if "HX-Request" in request.headers:  # an event for the page that asked: darkroom.js shows its words
        response.headers["HX-Trigger"] = json.dumps({"refused": {"words": problem.words}})
    return response


def is_for_programs(path: str) -> bool:
    """Whether whoever asks for this path reads JSON."""
    return path.startswith(FOR_PROGRAMS) or path in {"/api", "/healthz", "/readyz"}


def problem_of(error: Exception) -> Problem:
    """Give an exception its status, its code and its words."""
    match error:
        case Refused():
            return error.problem
        case InvalidParameters():
            return Problem(422, "invalid_parameters", _count(error.errors), error.errors)
        case UnknownModel():
            return Problem(422, "invalid_parameters", str(error), (unknown_model(error),))
        case JobNotFound():
            return Problem(404, "unknown_job", "No job has this id.")
        case BatchNotFound():
            return Problem(404, "unknown_batch", "No batch has this id.")
        case UploadNotFound():
            return Problem(404, "unknown_upload", "No upload has this id, or it has expired.")
        case RequestDiffers():
            return Problem(409, "request_differs", "This Idempotency-Key came before, with another request.")
        case ImageNotFound():
            return Problem(404, "unknown_image", "This job has no such picture.")
        case WebhookNotFound():
            return Problem(404, "unknown_webhook", "No webhook has this id.")
        case DeliveryNotFound():
            return Problem(404, "unknown_delivery", "No delivery has this id.")
        case TooManyWebhooks():
            return Problem(409, "too_many_webhooks", f"At most {error.most} webhooks: remove one first.")
        case JobStillLive():
            return Problem(409, "job_live", f"This job has not ended: it is {error.state}.")
        case JobFinished():
            return Problem(409, "job_finished", f"This job has already ended: it is {error.state}.")
        case NoPlaceToWait():
            detail = "As many wait here already as can. Come back, or ask without waiting."
            return Problem(503, "too_many_waiting", detail, (), RETRY_AFTER)
        case QuotaExceeded():
            return _of_quota(error)
        case IntakePaused():
            detail = f"No jobs are taken just now: {error.reason}"
            return Problem(503, "intake_paused", detail, headers={"Retry-After": PAUSE_RETRY_AFTER})
        case KeyRevoked():
            return Problem(401, "key_unknown", "This key was revoked.")
        case KeyNotFound():
            return Problem(404, "unknown_key", "No key has this id.")
        case WorkerNotFound():
            return Problem(404, "unknown_worker", "No worker has this id.")
        case HTTPException():
            return _of_http(error)
        case _:
            return _of_failure(error)


def unknown_model(error: UnknownModel) -> FieldError:
    """Say which models there are, beside the field that named none of them."""
    return FieldError("model", "no such model", f"one of {', '.join(error.known) or 'none: the catalog is empty'}")


def _count(errors: Iterable[FieldError]) -> str:
    names = list(dict.fromkeys(error.field[:LONGEST_FIELD] for error in errors))
    shown = ", ".join(names[:8]) + (" and more" if len(names) > 8 else "")
    return f"Not taken: {shown}. Each field's problem and limit is listed in errors."


def _of_quota(error: QuotaExceeded) -> Problem:
    words = QUOTAS[error.quota].format(limit=f"{error.limit:g}", used=f"{error.used:g}", asked=f"{error.asked:g}")
    numbers = {"quota": error.quota, "limit": error.limit, "used": error.used, "asked": error.asked}
    headers = {"Retry-After": str(math.ceil(error.seconds_left))}
    return Problem(429, "quota_exceeded", words, headers=headers, members=numbers)


def _of_http(error: HTTPException) -> Problem:
    status = error.code or 500
    headers = {name: value for name, value in error.get_headers() if name.lower() in {"allow", "retry-after"}}
    return Problem(status, CODES.get(status, _slug(status)), _words(error, status), headers=headers)


def _slug(status: int) -> str:
    return HTTPStatus(status).phrase.lower().replace(" ", "_").replace("-", "_").replace("'", "")


def _words(error: HTTPException, status: int) -> str:
    match status:
        case 404:
            return "There is nothing at this address."
        case 413:
            return f"The request is too large: at most {request.max_content_length} bytes are read."
        case _:
            return error.description or HTTPStatus(status).description


def _of_failure(error: Exception) -> Problem:
    incident = secrets.token_hex(4)
    match error:
        case DatabaseUnavailable():
            problem = Problem(503, "database_unavailable", "The database does not answer. Try again.", (), RETRY_AFTER)
        case ObjectNotFound():
            problem = Problem(502, "picture_missing", "The picture's file is missing from the storage.")
        case PictureUnreadable():
            problem = Problem(502, "picture_broken", "The picture's file cannot be read.")
        case StorageError():
            problem = Problem(503, "storage_unavailable", "The storage does not answer. Try again.", (), RETRY_AFTER)
        case _:
            logger.error("request_failed", path=request.path, incident=incident, exc_info=error)
            return Problem(500, "internal_error", f"Something broke here; the log has it under {incident}.")
    logger.warning("request_failed", path=request.path, code=problem.code, reason=str(error))
    return problem
