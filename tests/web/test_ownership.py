"""Nobody reads, cancels, lists, streams or downloads what is somebody else's: held against every route there is.

The routes come from the URL map and what they ask for from their marks, so a new route is held to this by itself. An
argument that `Ann` knows nothing of stands for her job's id; better tell her what it stands for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image as Picture
from sqlalchemy import insert, select
from werkzeug.test import TestResponse

from darkroom import fleet, keys
from darkroom.db import Database
from darkroom.fleet import WorkerFacts
from darkroom.keys import Quotas
from darkroom.models import DeliveryState, Image, Job, JobEvent, WebhookDelivery
from darkroom.web.identity import RouteWithoutRule, asks, check_rules, rule_of
from darkroom.web.problems import is_for_programs
from darkroom.webhooks import endpoints
from darkroom.webhooks.subscriptions import Subscription

PROMPT = "a house that only Ann may see"
SILENT_METHODS = {"HEAD", "OPTIONS"}
MOST_READ = 65536
# What an argument may stand for that is nobody's: with only these in its address, a route is for all who have a key.
OF_NOBODY = {
    "n": "0",
    "filename": "darkroom.css",
    "worker_id": "worker-of-all",
    "model_id": "darkroom-seeded",
    "model_owner": "anybody",
    "model_name": "darkroom-seeded",
    "kind": "upscalers",
}
# First what leaves her things as they are.
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True)
class Call:
    """One method of one route, and what stands for its arguments."""

    method: str
    path: str
    endpoint: str
    rule: str
    arguments: frozenset[str]

    def __str__(self) -> str:
        return f"{self.method} {self.path} ({self.endpoint})"


@dataclass
class Ann:
    """Somebody who has one of everything."""

    headers: dict[str, str]
    job_id: str
    things: dict[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """The ids that are hers."""
        return [self.job_id, *(text for name, text in self.things.items() if name not in OF_NOBODY)]

    def calls(self, app: Flask) -> list[Call]:
        """Every method of every route, aimed at her things."""
        calls = []
        adapter = app.url_map.bind("localhost")
        for route in app.url_map.iter_rules():
            arguments = {name: self.things.get(name, self.job_id) for name in route.arguments}
            path = adapter.build(route.endpoint, arguments)
            for method in sorted((route.methods or set()) - SILENT_METHODS):
                rule = rule_of(app, route.endpoint)
                calls.append(Call(method, path, route.endpoint, rule, frozenset(route.arguments)))
        return calls


@dataclass(frozen=True)
class Answer:
    """As much of an answer as says whether somebody was let in. A stream is left after what it begins with."""

    status: int
    body: str
    location: str


def ask(client: FlaskClient, call: Call, headers: Mapping[str, str] | None = None) -> Answer:
    body = None if call.method == "GET" else {}
    response = client.open(call.path, method=call.method, json=body, headers=headers, buffered=False)
    answer = Answer(response.status_code, beginning_of(response), response.headers.get("Location", ""))
    response.close()
    return answer


def beginning_of(response: TestResponse) -> str:
    chunks = iter(response.response)
    if response.mimetype == "text/event-stream":
        return bytes(next(chunks)).decode()  # type: ignore[arg-type]
    return b"".join(bytes(chunk) for chunk in chunks)[:MOST_READ].decode(errors="replace")  # type: ignore[arg-type]


@pytest.fixture
def app(app: Flask) -> Flask:
    app.config["WTF_CSRF_ENABLED"] = False  # it would turn the pages' forms away before their owner is looked at
    return app


@pytest.fixture
def app_database(app: Flask) -> Database:
    database: Database = app.extensions["darkroom"].database
    return database


def key_for(database: Database, owner: str, *scopes: str) -> dict[str, str]:
    """Make a key, and the headers that show it."""
    _, key = keys.create(database, name=owner, owner=owner, scopes=scopes or ("submit", "read"), quotas=Quotas())
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def ann(app: Flask, app_database: Database, worker: Any) -> Ann:
    headers = key_for(app_database, "ann")
    client = app.test_client()

    def post(path: str, **what: Any) -> Any:
        response = client.post(path, **what, headers=headers)
        assert response.status_code in {201, 202}, response.text
        return response.json

    job = post("/api/v1/jobs", json={"prompt": PROMPT})
    worker.develop()
    batch = post("/api/v1/jobs/batch", json={"jobs": [{"prompt": PROMPT}] * 2})
    picture = BytesIO()
    Picture.new("RGB", (64, 64)).save(picture, "PNG")
    upload = post("/api/v1/uploads", data=picture.getvalue(), content_type="image/png")
    endpoint, _ = endpoints.register(app_database, Subscription("https://ann.example/", ("succeeded",)), owner="ann")
    things = {
        "batch_id": batch["id"],
        "upload_id": upload["id"],
        "webhook_id": str(endpoint.id),
        "delivery_id": delivery_of(app_database, UUID(job["id"])),
    }
    fleet.register(app_database, WorkerFacts("worker-of-all", "here", 1, "cpu", 0, "cpu", ["none"], 1, "0"))
    things["key_id"] = str(keys.list_keys(app_database)[0].id)
    return Ann(headers, job["id"], things | OF_NOBODY)


def delivery_of(database: Database, job_id: UUID) -> str:
    values = {"job_id": job_id, "owner": "ann", "seq": 1, "type": "succeeded", "destination": "job"}
    delivery_id = uuid4()
    with database.write() as session:
        statement = insert(WebhookDelivery).values(
            id=delivery_id, origin="https://ann.example", state=DeliveryState.DEAD, **values
        )
        session.execute(statement)
    return str(delivery_id)


@pytest.fixture
def guarded(app: Flask, ann: Ann) -> list[Call]:
    """Every call that asks for a key."""
    return [call for call in ann.calls(app) if call.rule != "public"]


def test_the_table_holds_every_route(app: Flask, ann: Ann) -> None:
    calls = ann.calls(app)
    assert {call.endpoint for call in calls} == set(app.view_functions)
    assert {call.rule for call in calls} == {"public", "read", "submit", "admin"}
    assert {call.path for call in calls if call.rule == "public"} >= {"/login", "/healthz", "/static/darkroom.css"}


def test_route_without_a_rule_is_refused(app: Flask) -> None:
    app._got_first_request = False
    app.add_url_rule("/new", "new", lambda: "open to all")
    with pytest.raises(RouteWithoutRule, match="new"):
        check_rules(app)
    app.view_functions["new"] = asks("read")(lambda: "open to those with a key")
    check_rules(app)


def test_anonymous_is_turned_away_from_everything_that_is_not_public(client: FlaskClient, guarded: list[Call]) -> None:
    let_in = []
    for call in guarded:
        answer = ask(client, call)
        to_login = answer.status == 303 and answer.location.startswith("/login")
        if not (answer.status == 401 if is_for_programs(call.path) else to_login):
            let_in.append((str(call), answer.status))
    assert let_in == []


@pytest.mark.parametrize("credentials", ["Bearer dk_" + "x" * 43, "Bearer x", "Basic Og==", "Digest x", "Bearer"])
def test_wrong_key_is_turned_away_from_everything_that_is_not_public(
    client: FlaskClient, guarded: list[Call], credentials: str
) -> None:
    answers = [(str(call), ask(client, call, {"Authorization": credentials}).status) for call in guarded]
    assert [answer for answer in answers if answer[1] not in {401, 303}] == []


@pytest.mark.parametrize("scope", ["read", "submit", "admin"])
def test_key_without_the_scope_is_turned_away(
    client: FlaskClient, app_database: Database, guarded: list[Call], scope: str
) -> None:
    headers = key_for(app_database, "ann", *({"read", "submit", "admin"} - {scope}))
    asked = [call for call in guarded if call.rule == scope]
    assert asked
    answers = [(str(call), ask(client, call, headers).status) for call in asked]
    assert [answer for answer in answers if answer[1] != 403] == []


@pytest.fixture(params=["key", "session", "admin"])
def stranger(request: pytest.FixtureRequest, client: FlaskClient, app_database: Database, ann: Ann) -> dict[str, str]:
    """Somebody who has a key of their own, or a session with it; or an operator, on the routes of all."""
    if request.param == "admin":
        return key_for(app_database, "root", *keys.SCOPES)
    headers = key_for(app_database, "bob")
    if request.param == "session":
        client.post("/login", data={"key": headers.pop("Authorization").removeprefix("Bearer ")})
    return headers


def test_stranger_finds_nothing_of_hers_and_changes_nothing(
    client: FlaskClient, app_database: Database, ann: Ann, guarded: list[Call], stranger: dict[str, str]
) -> None:
    before = rows_of_ann(app_database)
    found = []
    for call in (call for call in guarded if call.rule != "admin"):
        answer = ask(client, call, stranger)
        is_hers = bool(call.arguments - OF_NOBODY.keys()) and answer.status != 404
        names_hers = answer.status < 400 and any(each in answer.body for each in ann.ids)
        if is_hers or names_hers or PROMPT in answer.body:
            found.append((str(call), answer.status))
    assert found == []
    assert rows_of_ann(app_database) == before


def rows_of_ann(database: Database) -> list[Any]:
    """Everything that is stored of her jobs."""
    with database.read() as session:
        jobs = session.scalars(select(Job).where(Job.owner == "ann").order_by(Job.id)).all()
        ids = [job.id for job in jobs]
        rows = [*jobs, *session.scalars(select(Image).where(Image.job_id.in_(ids)))]
        rows += session.scalars(select(JobEvent).where(JobEvent.job_id.in_(ids)).order_by(JobEvent.position))
        return [{name: value for name, value in vars(row).items() if name[0] != "_"} for row in rows]


def test_her_own_key_is_let_in_everywhere_but_on_operators_routes(
    client: FlaskClient, ann: Ann, guarded: list[Call]
) -> None:
    in_order = sorted(guarded, key=lambda call: METHODS.index(call.method))
    answers = [(call, ask(client, call, ann.headers)) for call in in_order]
    kept_out = [str(call) for call, answer in answers if (answer.status == 403) is not (call.rule == "admin")]
    assert kept_out == []
    assert [(str(call), answer.status) for call, answer in answers if answer.status in {401, 500}] == []
    reading = [(call, answer) for call, answer in answers if call.method == "GET" and call.rule == "read"]
    assert [(str(call), answer.status) for call, answer in reading if answer.status not in {200, 302}] == []


def test_operators_key_is_let_in_on_operators_routes(
    client: FlaskClient, app_database: Database, guarded: list[Call]
) -> None:
    headers = key_for(app_database, "root", *keys.SCOPES)
    answers = [(str(call), ask(client, call, headers).status) for call in guarded if call.rule == "admin"]
    assert [answer for answer in answers if answer[1] in {401, 403, 404, 500}] == []


@pytest.fixture
def by_cookie(client: FlaskClient, ann: Ann) -> FlaskClient:
    client.post("/login", data={"key": ann.headers["Authorization"].removeprefix("Bearer ")})
    return client


def test_revoked_key_and_its_session_are_turned_away_from_everything(
    app: Flask, by_cookie: FlaskClient, app_database: Database, ann: Ann, guarded: list[Call]
) -> None:
    assert by_cookie.get("/gallery").status_code == 200
    keys.revoke(app_database, keys.list_keys(app_database)[0].id)
    app.extensions["darkroom"].keys.forget()
    for headers in ({}, ann.headers):
        answers = [(str(call), ask(by_cookie, call, headers).status) for call in guarded]
        assert [answer for answer in answers if answer[1] not in {401, 303}] == []
