"""The native API: jobs, pictures, models, health, as JSON. A view reads HTTP, makes one call, writes HTTP."""

import re
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, json, request

from darkroom import jobs
from darkroom.errors import FieldError, InvalidParameters, JobNotFound
from darkroom.jobs import ImageRecord, JobClass, JobState
from darkroom.web.documents import job_document, job_path, models_document
from darkroom.web.guards import require_json
from darkroom.web.health import REQUIRED, readiness
from darkroom.web.identity import asks, current
from darkroom.web.problems import Problem, respond
from darkroom.web.services import job_uuid, services
from darkroom.web.submission import check, read_body, read_json

DEFAULT_PAGE = 50
LARGEST_PAGE = 100
EXTENSIONS = {"image/png": "png", "image/webp": "webp", "image/jpeg": "jpg"}

blueprint = Blueprint("api", __name__)
blueprint.before_request(require_json)


@blueprint.post("/api/v1/jobs")
@asks("submit")
def submit_job() -> Response:
    """Queue a job: 202, and where to find it."""
    body = read_json(read_body(request))
    job = services().submit(check(body, services().catalog, services().settings, job_class=JobClass.BULK))
    return answer(
        job_document(job, position=services().place_of(job)), status=202, headers={"Location": job_path(job.id)}
    )


@blueprint.get("/api/v1/jobs")
@asks("read")
def list_jobs() -> Response:
    """The newest jobs first, a page at a time. Position and progress are left to each job's own address."""
    query = read_query(request.args)
    found = jobs.list_jobs(
        services().database,
        owner=current().owner,
        state=query["state"],
        model=query["model"],
        before=query["cursor"],
        limit=query["limit"] + 1,  # one more tells whether there is a next page
    )
    page = found[: query["limit"]]
    next_cursor = str(page[-1].id) if len(found) > len(page) else None
    return answer({"jobs": [job_document(job) for job in page], "next_cursor": next_cursor})


@blueprint.get("/api/v1/jobs/<job_id>")
@asks("read")
def show_job(job_id: str) -> Response:
    """A job as it is now."""
    sight = services().follow(job_id)
    return answer(job_document(sight.job, position=sight.position, progress=sight.progress))


@blueprint.post("/api/v1/jobs/<job_id>/cancel")
@asks("submit")
def cancel_job(job_id: str) -> Response:
    """Call a job off. Canceling a canceled job is no error; one that ended otherwise is a conflict."""
    return answer(job_document(services().cancel(job_id)))


@blueprint.post("/api/v1/jobs/<job_id>/retry")
@asks("submit")
def retry_job(job_id: str) -> Response:
    """Queue an ended job once more, as a new job that names the old one: 202. One that has not ended is a conflict."""
    job = services().retry(job_id)
    return answer(
        job_document(job, position=services().place_of(job)), status=202, headers={"Location": job_path(job.id)}
    )


@blueprint.get("/api/v1/jobs/<job_id>/images/<n>")
@asks("read")
def show_image(job_id: str, n: str) -> Response:
    """The bytes of a picture, through this server. A picture never changes, so a browser may keep it."""
    image = services().image(job_id, n)
    variant = read_variant(request.args)
    headers = image_headers(job_id, image, variant, as_download=request.args.get("download") == "1")
    if request.if_none_match.contains(headers["ETag"].strip('"')):
        return Response(status=304, headers=headers)
    stored = services().storage.open(image.thumb_key if variant == "thumb" else image.key)
    response = Response(stored.chunks, content_type=stored.content_type, headers=headers)
    response.content_length = stored.num_bytes
    return response


@blueprint.get("/api/v1/models")
@asks("read")
def list_models() -> Response:
    """Every model on offer, with its limits and license."""
    return answer(models_document(services().catalog))


@blueprint.get("/healthz")
@asks("public")
def healthz() -> Response:
    """Whether this process answers at all."""
    return answer({"status": "ok"})


@blueprint.get("/readyz")
@asks("public")
def readyz() -> Response:
    """Whether this process can take jobs: 503 names what it lacks; what it can do without only makes it degraded."""
    report = readiness(services())
    failing = [name for name, check in report.items() if not check["ok"]]
    if REQUIRED.intersection(failing):
        detail = f"Not ready: {', '.join(failing)}."
        return respond(Problem(503, "not_ready", detail, (), {"Retry-After": "2"}, {"checks": report}))
    return answer({"status": "degraded" if failing else "ready", "failing": failing, "checks": report})


def answer(document: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(json.dumps(document), status, headers, content_type="application/json")


def read_query(args: Mapping[str, str]) -> dict[str, Any]:
    """Read the filters of a list. Raises InvalidParameters naming every one that is not understood."""
    query: dict[str, Any] = {"state": None, "model": None, "cursor": None, "limit": DEFAULT_PAGE}
    errors = []
    for name, text in args.items():
        try:
            query[name] = READERS[name](text)
        except KeyError:
            errors.append(FieldError(name, "is not a filter", f"one of {', '.join(READERS)}"))
        except (ValueError, JobNotFound):
            errors.append(FieldError(name, "is not taken", QUERY_LIMITS[name]))
    if errors:
        raise InvalidParameters(errors)
    return query


def _limit(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= LARGEST_PAGE:
        raise ValueError(text)
    return int(text)


def _model(text: str) -> str:
    if "\x00" in text:
        raise ValueError(text)
    return text


READERS: dict[str, Any] = {"state": JobState, "model": _model, "cursor": job_uuid, "limit": _limit}
QUERY_LIMITS = {
    "state": f"one of {', '.join(JobState)}",
    "model": "the name of a model",
    "cursor": "the next_cursor of an earlier page",
    "limit": f"a whole number from 1 to {LARGEST_PAGE}",
}


def read_variant(args: Mapping[str, str]) -> str:
    """Which file of a picture is meant. Raises InvalidParameters."""
    variant = args.get("variant", "original")
    if variant not in {"original", "thumb"}:
        raise InvalidParameters([FieldError("variant", "is not a variant", "one of original, thumb")])
    return variant


def image_headers(job_id: str, image: ImageRecord, variant: str, *, as_download: bool) -> dict[str, str]:
    """What a browser may do with a picture: show it, keep it, and nothing else."""
    etag = image.sha256 if variant == "original" else f"{image.sha256}-{variant}"
    extension = EXTENSIONS.get(image.content_type, "bin") if variant == "original" else "webp"
    name = f"darkroom-{job_id.lower()}-{image.n}.{extension}"
    return {
        "ETag": f'"{etag}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": f'{"attachment" if as_download else "inline"}; filename="{name}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
