"""Jobs over HTTP: submit, look, list, cancel, retry, erase. A view reads HTTP, makes one call, writes HTTP."""

from collections.abc import Mapping
from typing import Any

from flask import Response, request

from darkroom.jobs import JobClass, JobRecord, JobState
from darkroom.models import FINAL_STATES
from darkroom.web import schemas
from darkroom.web.answers import answer, unchanged
from darkroom.web.documents import job_document, job_path
from darkroom.web.guards import require_json
from darkroom.web.identity import asks
from darkroom.web.openapi import WITH_A_BODY, ApiBlueprint, problems, takes
from darkroom.web.queries import Filter, page_size, read_query, words
from darkroom.web.services import Sight, batch_uuid, job_uuid, services
from darkroom.web.submission import check, read_body, read_idempotency, read_json

IDEMPOTENCY_KEY = "Idempotency-Key"
MADE = {**problems(404, 409, *WITH_A_BODY), 202: schemas.JobDocument}

blueprint = ApiBlueprint("api_jobs", __name__)
blueprint.before_request(require_json)


@blueprint.post("/api/v1/jobs", responses={**MADE, 200: schemas.JobDocument})
@asks("submit")
@takes(header=schemas.SubmitHeaders, body=schemas.JobRequest)
def submit_job() -> Response:
    """Queue a job: 202, and where to find it. With `Prefer: wait` 200 if it ends in that time."""
    body = read_json(read_body(request))
    again = read_idempotency(request.headers.get(IDEMPOTENCY_KEY), body)
    submission = check(body, services().rules(), job_class=JobClass.BULK)
    job, headers = services().waiting.submit_and_wait(lambda: services().submit(submission, request=again))
    return accepted(job, headers)


@blueprint.get("/api/v1/jobs", responses={200: schemas.JobPage})
@asks("read")
@takes(query=schemas.ListQuery)
def list_jobs() -> Response:
    """The newest jobs first, a page at a time. Position and progress are left to each job's own address."""
    query = read_query(request.args, FILTERS)
    found, next_cursor = services().list_jobs(**query)
    return answer({"jobs": [job_document(job) for job in found], "next_cursor": next_cursor and str(next_cursor)})


@blueprint.get("/api/v1/jobs/<job_id>", responses={200: schemas.JobDocument, 304: None, **problems(404)})
@asks("read")
def show_job(job_id: str) -> Response:
    """A job as it is now. Who sends the ETag back as If-None-Match is told only what has changed."""
    if request.if_none_match and (nothing_new := unchanged(services().version_of(job_id))):
        return nothing_new
    sight = services().follow(job_id)
    return answer(document_of(sight), headers={"ETag": f'"{sight.version}"'})


@blueprint.post(
    "/api/v1/jobs/<job_id>/cancel", responses={200: schemas.JobDocument, **problems(404, 409, *WITH_A_BODY)}
)
@asks("submit")
def cancel_job(job_id: str) -> Response:
    """Call a job off. Canceling a canceled job is no error; one that ended otherwise is a conflict."""
    return answer(job_document(services().cancel(job_id)))


@blueprint.post("/api/v1/jobs/<job_id>/retry", responses=MADE)
@asks("submit")
def retry_job(job_id: str) -> Response:
    """Queue an ended job once more, as a new job that names the old one: 202. One that has not ended is a conflict."""
    return accepted(services().retry(job_id))


@blueprint.delete("/api/v1/jobs/<job_id>", responses={204: None, **problems(404, *WITH_A_BODY)})
@asks("submit")
def erase_job(job_id: str) -> Response:
    """Take a job away for good, its pictures and its prompt with it: 204. One that has not ended is canceled first."""
    services().erase(job_id)
    return Response(status=204)


def accepted(job: JobRecord, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a job that was just taken, or has ended already while its sender waited."""
    status = 200 if headers and job.state in FINAL_STATES else 202
    sight = services().look_at(job)
    return answer(document_of(sight), status=status, headers={"Location": job_path(job.id), **(headers or {})})


def document_of(sight: Sight) -> dict[str, Any]:
    """A job with everything around it."""
    return job_document(sight.job, position=sight.position, progress=sight.progress, eta=sight.eta)


FILTERS = {
    "state": Filter(JobState, f"one of {', '.join(JobState)}"),
    "model": words("the name of a model"),
    "batch": Filter(batch_uuid, "the id of a batch"),
    "q": words("words of the prompt"),
    "cursor": Filter(job_uuid, "the next_cursor of an earlier page"),
    "limit": page_size(),
}
