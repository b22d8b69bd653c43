"""What is on offer and what goes on, over HTTP: models, the queue, and whether this process works."""

from flask import Response

from darkroom import fleet
from darkroom.web import schemas
from darkroom.web.answers import answer
from darkroom.web.documents import models_document, queue_document
from darkroom.web.health import REQUIRED, readiness
from darkroom.web.identity import asks
from darkroom.web.openapi import ApiBlueprint, problems
from darkroom.web.problems import Problem, respond
from darkroom.web.services import services

blueprint = ApiBlueprint("api_queue", __name__)


@blueprint.get("/api/v1/models", responses={200: schemas.ModelList})
@asks("read")
def list_models() -> Response:
    """Every model on offer, with its license, its limits, and the workers that hold it."""
    lease_seconds = services().settings.lease_seconds
    workers = fleet.list_workers(services().database, heard_within_seconds=lease_seconds)
    return answer(models_document(services().catalog, workers))


@blueprint.get("/api/v1/queue", responses={200: schemas.Queue})
@asks("read")
def show_queue() -> Response:
    """How many jobs wait and run, of everybody, by model and class, and how long the oldest has waited.

    Where more than 1,000 wait, the counts may be 2 seconds old.
    """
    return answer(queue_document(services().census.lines()))


@blueprint.get("/healthz", responses={200: schemas.Health}, security=[])
@asks("public")
def healthz() -> Response:
    """Whether this process answers at all."""
    return answer({"status": "ok"})


@blueprint.get("/readyz", responses={200: schemas.Health, **problems(503)}, security=[])
@asks("public")
def readyz() -> Response:
    """Whether this process can take jobs: 503 names what it lacks; what it can do without only makes it degraded."""
    report = readiness(services())
    failing = [name for name, check in report.items() if not check["ok"]]
    if REQUIRED.intersection(failing):
        detail = f"Not ready: {', '.join(failing)}."
        return respond(Problem(503, "not_ready", detail, (), {"Retry-After": "2"}, {"checks": report}))
    return answer({"status": "degraded" if failing else "ready", "failing": failing, "checks": report})
