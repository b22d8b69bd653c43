"""Webhooks over HTTP: the endpoints that an owner has registered, and what became of each delivery."""

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from flask import Response, request

from darkroom.errors import DarkroomError, DeliveryNotFound, FieldError, InvalidParameters, JobNotFound, WebhookNotFound
from darkroom.models import DeliveryState
from darkroom.web import webhook_schemas as schemas
from darkroom.web.answers import answer
from darkroom.web.documents import timestamp
from darkroom.web.guards import require_json
from darkroom.web.identity import asks, current
from darkroom.web.openapi import WITH_A_BODY, ApiBlueprint, problems, takes
from darkroom.web.queries import Filter, page_size, read_query
from darkroom.web.services import job_uuid, services
from darkroom.web.submission import read_body, read_json
from darkroom.webhooks import deliveries, endpoints
from darkroom.webhooks.deliveries import DeliveryRecord
from darkroom.webhooks.endpoints import EndpointRecord
from darkroom.webhooks.subscriptions import LIMITS, events_problem, read_subscription

CHANGEABLE = ("events", "enabled")

blueprint = ApiBlueprint("webhooks", __name__)
blueprint.before_request(require_json)


@blueprint.post("/api/v1/webhooks", responses={201: schemas.NewWebhook, **problems(409, *WITH_A_BODY)})
@asks("submit")
@takes(body=schemas.WebhookRequest)
def register_webhook() -> Response:
    """Register an address to be told of jobs at: 201, with the secret, which is not shown again."""
    subscription = read_subscription(read_json(read_body(request)), services().destinations)
    endpoint, secret = endpoints.register(services().database, subscription, owner=current().owner)
    document = endpoint_document(endpoint) | {"secret": secret}
    return answer(document, status=201, headers={"Location": endpoint_path(endpoint.id)})


@blueprint.get("/api/v1/webhooks", responses={200: schemas.WebhookList})
@asks("read")
def list_webhooks() -> Response:
    """Every registered address, the oldest first."""
    found = endpoints.list_endpoints(services().database, owner=current().owner)
    return answer({"webhooks": [endpoint_document(endpoint) for endpoint in found]})


@blueprint.get("/api/v1/webhooks/<webhook_id>", responses={200: schemas.WebhookDocument, **problems(404)})
@asks("read")
def show_webhook(webhook_id: str) -> Response:
    """One registered address."""
    endpoint_id = _id(webhook_id, WebhookNotFound)
    return answer(endpoint_document(endpoints.get_endpoint(services().database, endpoint_id, owner=current().owner)))


@blueprint.patch(
    "/api/v1/webhooks/<webhook_id>", responses={200: schemas.WebhookDocument, **problems(404, *WITH_A_BODY)}
)
@asks("submit")
@takes(body=schemas.WebhookChanges)
def change_webhook(webhook_id: str) -> Response:
    """Change what an address is told of, or whether it is told at all."""
    endpoint_id = _id(webhook_id, WebhookNotFound)
    changes = read_changes(read_json(read_body(request)))
    owner = current().owner
    changed = endpoints.change(
        services().database, endpoint_id, owner=owner, events=changes.get("events"), is_enabled=changes.get("enabled")
    )
    return answer(endpoint_document(changed))


@blueprint.delete("/api/v1/webhooks/<webhook_id>", responses={204: None, **problems(404, *WITH_A_BODY)})
@asks("submit")
def remove_webhook(webhook_id: str) -> Response:
    """Forget an address and its deliveries: 204."""
    endpoints.remove(services().database, _id(webhook_id, WebhookNotFound), owner=current().owner)
    return Response(status=204)


@blueprint.post("/api/v1/webhooks/<webhook_id>/rotate", responses={200: schemas.Secret, **problems(404, *WITH_A_BODY)})
@asks("submit")
def rotate_webhook(webhook_id: str) -> Response:
    """Draw a new secret, which is not shown again. The earlier one signs beside it for a day."""
    endpoint_id = _id(webhook_id, WebhookNotFound)
    return answer({"secret": endpoints.rotate(services().database, endpoint_id, owner=current().owner)})


@blueprint.get("/api/v1/webhooks/secret", responses={200: schemas.Secret})
@asks("submit")
def show_secret() -> Response:
    """What signs the webhooks that jobs name themselves."""
    return answer({"secret": endpoints.job_secret(services().database, owner=current().owner)})


@blueprint.post("/api/v1/webhooks/secret/rotate", responses={200: schemas.Secret, **problems(*WITH_A_BODY)})
@asks("submit")
def rotate_secret() -> Response:
    """Draw a new secret for the webhooks that jobs name. The earlier one signs beside it for a day."""
    return answer({"secret": endpoints.rotate_job_secret(services().database, owner=current().owner)})


@blueprint.get("/api/v1/webhooks/deliveries", responses={200: schemas.DeliveryPage})
@asks("read")
@takes(query=schemas.DeliveryQuery)
def list_deliveries() -> Response:
    """The newest deliveries first, a page at a time."""
    query = read_query(request.args, FILTERS)
    found = deliveries.list_deliveries(
        services().database,
        owner=current().owner,
        state=query["state"],
        endpoint_id=query["webhook"],
        job_id=query["job"],
        before=query["cursor"],
        limit=query["limit"] + 1,  # one more tells whether there is a next page
    )
    page = found[: query["limit"]]
    next_cursor = str(page[-1].id) if len(found) > len(page) else None
    return answer({"deliveries": [delivery_document(delivery) for delivery in page], "next_cursor": next_cursor})


@blueprint.get("/api/v1/webhooks/deliveries/<delivery_id>", responses={200: schemas.DeliveryDocument, **problems(404)})
@asks("read")
def show_delivery(delivery_id: str) -> Response:
    """One delivery: how often it was tried, and what came of it last."""
    found = deliveries.get_delivery(services().database, _id(delivery_id, DeliveryNotFound), owner=current().owner)
    return answer(delivery_document(found))


@blueprint.post(
    "/api/v1/webhooks/deliveries/<delivery_id>/replay",
    responses={202: schemas.DeliveryDocument, **problems(404, *WITH_A_BODY)},
)
@asks("submit")
def replay_delivery(delivery_id: str) -> Response:
    """Deliver once more, now, whether it had arrived, was given up or still waits: 202."""
    replayed = deliveries.replay(services().database, _id(delivery_id, DeliveryNotFound), owner=current().owner)
    return answer(delivery_document(replayed), status=202)


def endpoint_path(endpoint_id: UUID) -> str:
    """Where a program finds an endpoint."""
    return f"/api/v1/webhooks/{endpoint_id}"


def endpoint_document(endpoint: EndpointRecord) -> dict[str, Any]:
    """One registered address, without its secret."""
    return {
        "id": str(endpoint.id),
        "url": endpoint.url,
        "events": list(endpoint.events),
        "enabled": endpoint.disabled_at is None,
        "created_at": timestamp(endpoint.created_at),
        "disabled_at": timestamp(endpoint.disabled_at),
    }


def delivery_document(delivery: DeliveryRecord) -> dict[str, Any]:
    """One delivery. `next_at` is when it is tried again."""
    is_pending = delivery.state is DeliveryState.PENDING
    return {
        "id": str(delivery.id),
        "state": delivery.state.value,
        "type": delivery.type,
        "job_id": str(delivery.job_id),
        "seq": delivery.seq,
        "webhook_id": str(delivery.endpoint_id) if delivery.endpoint_id else None,
        "num_tries": delivery.num_tries,
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
        "created_at": timestamp(delivery.created_at),
        "next_at": timestamp(delivery.due_at) if is_pending else None,
        "ended_at": timestamp(delivery.ended_at),
    }


def read_changes(body: Mapping[str, Any]) -> dict[str, Any]:
    """Read {"events", "enabled"}, each as it is wanted. Raises InvalidParameters."""
    errors = [
        FieldError(name[:64], "cannot be changed", f"some of {', '.join(CHANGEABLE)}")
        for name in body
        if name not in CHANGEABLE
    ]
    if problem := events_problem(body.get("events")):
        errors.append(FieldError("events", problem, LIMITS["events"]))
    if not isinstance(body.get("enabled"), bool | None):
        errors.append(FieldError("enabled", "is neither true nor false", "true or false"))
    if errors:
        raise InvalidParameters(errors)
    return dict(body)


FILTERS = {
    "state": Filter(DeliveryState, f"one of {', '.join(DeliveryState)}"),
    "webhook": Filter(job_uuid, "the id of a webhook"),
    "job": Filter(job_uuid, "the id of a job"),
    "cursor": Filter(job_uuid, "the next_cursor of an earlier page"),
    "limit": page_size(),
}


def _id(text: str, missing: Callable[[str], DarkroomError]) -> UUID:
    try:
        return job_uuid(text)
    except JobNotFound as error:
        raise missing(text) from error
