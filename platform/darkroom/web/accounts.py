"""Who am I, and what operators do: keys, intake, workers, putting a job back. A view makes one call and answers.

Only here does an operator meet the jobs of others: on every other route an admin's key sees its own owner's, like any.
"""

from typing import Any, TypeVar
from uuid import UUID

from flask import Response, request
from pydantic import BaseModel, ValidationError

from darkroom import fleet, intake, jobs, keys
from darkroom.errors import FieldError, InvalidParameters, JobNotFound, KeyNotFound, WorkerNotFound
from darkroom.fleet import WorkerRecord
from darkroom.intake import Pause
from darkroom.keys import KeyRecord, Quotas
from darkroom.web import account_schemas as schemas
from darkroom.web.account_schemas import LIMITS, KeyChanges, NewKey, NewPause
from darkroom.web.answers import answer
from darkroom.web.documents import timestamp
from darkroom.web.guards import require_json
from darkroom.web.identity import asks, current
from darkroom.web.openapi import WITH_A_BODY, ApiBlueprint, problems, takes
from darkroom.web.services import job_uuid, services
from darkroom.web.submission import read_body, read_json

MISSING = problems(404, *WITH_A_BODY)

Body = TypeVar("Body", bound=BaseModel)

blueprint = ApiBlueprint("accounts", __name__)
blueprint.before_request(require_json)


@blueprint.get("/api/v1/me", responses={200: schemas.MeDocument})
@asks("read")
def show_me() -> Response:
    """Who asks, what they may do, and how much of that is left."""
    identity = current()
    key = keys.get(services().database, identity.key_id) if identity.key_id else None
    shown = {"id": str(key.id), "name": key.name, "prefix": key.prefix} if key else None
    document = {"owner": identity.owner, "key": shown, "scopes": sorted(identity.scopes), "weight": identity.weight}
    return answer(document | {"quota": quota_document(key)})


@blueprint.get("/api/v1/admin/keys", responses={200: schemas.KeyList})
@asks("admin")
def list_keys() -> Response:
    """Every key that ever was, oldest first."""
    return answer({"keys": [key_document(key) for key in keys.list_keys(services().database)]})


@blueprint.post("/api/v1/admin/keys", responses={201: schemas.MadeKey, **problems(*WITH_A_BODY)})
@asks("admin")
@takes(body=NewKey)
def create_key() -> Response:
    """Make a key: 201, with the key itself, which is not shown again."""
    body = read_as(NewKey)
    record, key = keys.create(
        services().database,
        name=body.name,
        owner=body.name if body.owner is None else body.owner,
        scopes=tuple(body.scopes),
        quotas=quotas_of(body),
    )
    services().keys.forget()
    return answer(key_document(record) | {"key": key}, status=201, headers={"Location": key_path(record.id)})


@blueprint.get("/api/v1/admin/keys/<key_id>", responses={200: schemas.KeyDocument, **problems(404)})
@asks("admin")
def show_key(key_id: str) -> Response:
    """One key."""
    return answer(key_document(keys.get(services().database, key_uuid(key_id))))


@blueprint.patch("/api/v1/admin/keys/<key_id>", responses={200: schemas.KeyDocument, **MISSING})
@asks("admin")
@takes(body=KeyChanges)
def change_key(key_id: str) -> Response:
    """Give a key other quotas or scopes; what is not named stays. In force with its next submit."""
    changes = read_as(KeyChanges).model_dump(exclude_unset=True)
    record = keys.change(services().database, key_uuid(key_id), changes=changes)
    services().keys.forget()
    return answer(key_document(record))


@blueprint.post("/api/v1/admin/keys/<key_id>/revoke", responses={200: schemas.KeyDocument, **MISSING})
@asks("admin")
def revoke_key(key_id: str) -> Response:
    """Let nobody in with this key any more. Its jobs go on, and stay its owner's."""
    record = keys.revoke(services().database, key_uuid(key_id))
    services().keys.forget()
    return answer(key_document(record))


@blueprint.get("/api/v1/admin/intake", responses={200: schemas.IntakeDocument})
@asks("admin")
def show_intake() -> Response:
    """Whether jobs are taken."""
    return answer(intake_document(intake.read(services().database)))


@blueprint.post("/api/v1/admin/intake/pause", responses={200: schemas.IntakeDocument, **problems(*WITH_A_BODY)})
@asks("admin")
@takes(body=NewPause)
def pause_intake() -> Response:
    """Take no more jobs: every submit is 503 with this reason. What was taken goes on."""
    reason = read_as(NewPause).reason
    pause = intake.pause(services().database, reason=reason, paused_by=current().owner)
    services().notice.forget()
    return answer(intake_document(pause))


@blueprint.post("/api/v1/admin/intake/resume", responses={200: schemas.IntakeDocument, **problems(*WITH_A_BODY)})
@asks("admin")
def resume_intake() -> Response:
    """Take jobs again."""
    intake.resume(services().database, resumed_by=current().owner)
    services().notice.forget()
    return answer(intake_document(None))


@blueprint.get("/api/v1/admin/workers", responses={200: schemas.WorkerList})
@asks("admin")
def list_workers() -> Response:
    """Every worker that was heard of lately, by host."""
    return answer({"workers": [worker_document(worker) for worker in fleet.list_workers(services().database)]})


@blueprint.post("/api/v1/admin/workers/<worker_id>/drain", responses={202: schemas.DrainDocument, **MISSING})
@asks("admin")
def drain_worker(worker_id: str) -> Response:
    """Have a worker claim nothing more: 202, its next heartbeat tells it. What it runs goes on."""
    fleet.drain(services().database, known_as(worker_id))
    return answer({"id": worker_id, "is_drain_wanted": True}, status=202)


@blueprint.post("/api/v1/admin/workers/<worker_id>/resume", responses={202: schemas.DrainDocument, **MISSING})
@asks("admin")
def resume_worker(worker_id: str) -> Response:
    """Have a drained worker claim again: 202, its next heartbeat tells it."""
    fleet.undrain(services().database, known_as(worker_id))
    return answer({"id": worker_id, "is_drain_wanted": False}, status=202)


@blueprint.post(
    "/api/v1/admin/jobs/<job_id>/requeue", responses={200: schemas.RequeuedDocument, **problems(404, 409, *WITH_A_BODY)}
)
@asks("admin")
def requeue_job(job_id: str) -> Response:
    """Put anybody's running job back into the queue, at its place and with nothing counted against it."""
    jobs.requeue(services().database, job_uuid(job_id), reason="an operator put it back")
    job = jobs.get(services().database, job_uuid(job_id))
    return answer({"id": str(job.id), "owner": job.owner, "state": job.state.value})


def read_as(model: type[Body]) -> Body:
    """Read the request's body. Raises InvalidParameters with every bad field."""
    return validated(model, read_json(read_body(request)))


def validated(model: type[Body], document: Any) -> Body:
    """Hold a document to its shape. Raises InvalidParameters with every bad field."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise InvalidParameters(_field_error(fault, model) for fault in error.errors(include_url=False)) from error


def _field_error(fault: Any, model: type[BaseModel]) -> FieldError:
    field = str(fault["loc"][0])
    is_known = field in model.model_fields
    problem = fault["msg"] if is_known else "is not a field"
    return FieldError(field, problem, LIMITS[field] if is_known else f"one of {', '.join(model.model_fields)}")


def quotas_of(body: KeyChanges) -> Quotas:
    """The quotas that a body names."""
    return Quotas(body.weight, body.max_queued, body.megapixel_steps_per_day, body.requests_per_minute)


def key_uuid(text: str) -> UUID:
    """Read a key's id from an address. Raises KeyNotFound."""
    try:
        return job_uuid(text)
    except JobNotFound as error:
        raise KeyNotFound(text) from error


def known_as(worker_id: str) -> str:
    """Read a worker's id from an address. Raises WorkerNotFound for what no database could hold."""
    if not worker_id.isprintable():
        raise WorkerNotFound(worker_id)
    return worker_id


def key_path(key_id: UUID) -> str:
    """Where an operator finds the key."""
    return f"/api/v1/admin/keys/{key_id}"


def quota_document(key: KeyRecord | None) -> dict[str, Any]:
    """What may be used, and what is used of it. Without a limit nothing is said to be left."""
    quotas = key.quotas if key else Quotas()
    waiting = jobs.num_queued(services().database, key.id) if key else None
    used, most = (key.used_megapixel_steps if key else None), quotas.megapixel_steps_per_day
    return {
        "max_queued": quotas.max_queued,
        "num_queued": waiting,
        "queued_left": None if quotas.max_queued is None or waiting is None else max(0, quotas.max_queued - waiting),
        "megapixel_steps_per_day": most,
        "megapixel_steps_today": used,
        "megapixel_steps_left": None if most is None or used is None else max(0.0, most - used),
        "requests_per_minute": quotas.requests_per_minute,
    }


def key_document(key: KeyRecord) -> dict[str, Any]:
    """One key, without the key itself, which nobody knows."""
    return {
        "id": str(key.id),
        "name": key.name,
        "owner": key.owner,
        "prefix": key.prefix,
        "scopes": sorted(key.scopes),
        **vars(key.quotas),
        "megapixel_steps_today": key.used_megapixel_steps,
        "created_at": timestamp(key.created_at),
        "last_used_at": timestamp(key.last_used_at),
        "revoked_at": timestamp(key.revoked_at),
    }


def intake_document(pause: Pause | None) -> dict[str, Any]:
    """Whether jobs are taken, and if not, why, since when, and who said so."""
    if pause is None:
        return {"paused": False, "reason": None, "paused_by": None, "paused_at": None}
    return {
        "paused": True,
        "reason": pause.reason,
        "paused_by": pause.paused_by,
        "paused_at": timestamp(pause.paused_at),
    }


def worker_document(worker: WorkerRecord) -> dict[str, Any]:
    """One worker as it was last heard of."""
    return vars(worker) | {
        "state": worker.state.value,
        "started_at": timestamp(worker.started_at),
        "heartbeat_at": timestamp(worker.heartbeat_at),
    }
