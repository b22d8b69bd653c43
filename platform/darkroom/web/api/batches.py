"""Batches over HTTP: many jobs in one request, how far they are, and calling them off."""

from flask import Response, request

from darkroom.jobs import JobClass
from darkroom.web import schemas
from darkroom.web.answers import answer
from darkroom.web.api.jobs import IDEMPOTENCY_KEY
from darkroom.web.batches import check_batch
from darkroom.web.documents import batch_document, batch_path
from darkroom.web.guards import require_json
from darkroom.web.identity import asks
from darkroom.web.openapi import WITH_A_BODY, ApiBlueprint, problems, takes
from darkroom.web.services import services
from darkroom.web.submission import read_body, read_idempotency, read_json

blueprint = ApiBlueprint("api_batches", __name__)
blueprint.before_request(require_json)


@blueprint.post("/api/v1/jobs/batch", responses={202: schemas.BatchMade, **problems(404, 409, *WITH_A_BODY)})
@asks("submit")
@takes(header=schemas.SubmitHeaders, body=schemas.BatchRequest)
def submit_batch() -> Response:
    """Queue up to 1,000 jobs, all or none: 202, and where to find the batch."""
    body = read_json(read_body(request))
    # A job and a batch are never the same request, whatever their bodies.
    again = read_idempotency(request.headers.get(IDEMPOTENCY_KEY), {"batch": body})
    submissions = check_batch(body, services().rules(), job_class=JobClass.BULK)
    batch, job_ids = services().submit_batch(submissions, request=again)
    document = batch_document(batch) | {"job_ids": [str(job_id) for job_id in job_ids]}
    return answer(document, status=202, headers={"Location": batch_path(batch.id)})


@blueprint.get("/api/v1/batches/<batch_id>", responses={200: schemas.BatchDocument, **problems(404)})
@asks("read")
def show_batch(batch_id: str) -> Response:
    """How far a batch is. Its jobs are listed by /api/v1/jobs?batch=."""
    return answer(batch_document(services().batch(batch_id)))


@blueprint.post(
    "/api/v1/batches/<batch_id>/cancel", responses={200: schemas.BatchDocument, **problems(404, *WITH_A_BODY)}
)
@asks("submit")
def cancel_batch(batch_id: str) -> Response:
    """Call off every job of a batch that has not ended. Again is fine."""
    return answer(batch_document(services().cancel_batch(batch_id)))
