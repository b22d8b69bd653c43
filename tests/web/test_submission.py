"""What goes with a submission beside its parameters: each field's limit, and the same request only once."""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from darkroom import keys
from darkroom.keys import Quotas
from darkroom.web.submission import DEEPEST_METADATA, MOST_METADATA_BYTES

JOBS = "/api/v1/jobs"
DAY = 86400
URL = "https://example.com/hook"


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def filling(num_bytes: int) -> dict[str, str]:
    return {"a": "x" * (num_bytes - len('{"a":""}'))}


TAKEN: list[tuple[str, Any]] = [
    ("metadata", {}),
    ("metadata", {"order": 7, "tags": ["a", None, 1.5, True], "ü": "🏔"}),
    ("metadata", filling(MOST_METADATA_BYTES)),
    ("metadata", nested(DEEPEST_METADATA)),
    ("metadata", {"a": "\x00"}),
    ("retention_seconds", 0.001),
    ("retention_seconds", 30 * DAY),
    ("deadline_seconds", 0.5),
    ("deadline_seconds", 7 * DAY),
    ("priority", "bulk"),
    ("priority", "interactive"),
    ("webhook", {"url": URL, "events": ["job.succeeded"]}),
]
REFUSED: list[tuple[str, Any, str]] = [
    ("metadata", [], "not an object"),
    ("metadata", "x", "not an object"),
    ("metadata", filling(MOST_METADATA_BYTES + 1), "4097 bytes"),
    ("metadata", nested(DEEPEST_METADATA + 1), "too deeply"),
    ("metadata", {"a": "\ud800"}, "surrogate"),
    ("retention_seconds", 0, "out of range"),
    ("retention_seconds", 30 * DAY + 1, "out of range"),
    ("retention_seconds", "60", "not a number"),
    ("retention_seconds", True, "not a number"),
    ("deadline_seconds", 0, "out of range"),
    ("deadline_seconds", 7 * DAY + 1, "out of range"),
    ("priority", "urgent", "not a priority"),
    ("priority", 1, "not a priority"),
    ("webhook", "x", "not an object"),
    ("webhook.url", {"url": "http://127.0.0.1/"}, "not on the internet"),
    ("webhook.url", {}, "missing"),
    ("webhook.events", {"url": URL, "events": ["job.lost"]}, "no event"),
]


@pytest.mark.parametrize(("field", "value"), TAKEN, ids=lambda value: ascii(value)[:30])
def test_value_at_its_limit_is_taken_and_given_back(client: FlaskClient, field: str, value: Any) -> None:
    response = client.post(JOBS, json={"prompt": "a", field: value})
    assert response.status_code == 202, response.text
    if field != "deadline_seconds":
        assert client.get(response.headers["Location"]).json[field] == value


@pytest.mark.parametrize(("field", "value", "problem"), REFUSED, ids=lambda value: ascii(value)[:30])
def test_value_beyond_its_limit_is_refused_by_field(
    bare_client: FlaskClient, field: str, value: Any, problem: str
) -> None:
    response = bare_client.post(JOBS, json={"prompt": "a", field.partition(".")[0]: value})
    assert response.status_code == 422, response.text
    (error,) = response.json["errors"]
    assert (error["field"], problem in error["problem"]) == (field, True), error


@pytest.mark.parametrize("number", ["1e999", "1" * 500])
def test_number_that_no_reader_keeps_is_refused_in_metadata(bare_client: FlaskClient, number: str) -> None:
    body = f'{{"prompt": "a", "metadata": {{"a": {number}}}}}'
    response = bare_client.post(JOBS, data=body, content_type="application/json")
    assert (response.status_code, response.json["errors"][0]["field"]) == (422, "metadata")


def test_same_request_under_one_key_is_the_same_job(client: FlaskClient) -> None:
    key = {"Idempotency-Key": "order-7"}
    first = client.post(JOBS, json={"prompt": "a", "seed": 1}, headers=key)
    again = client.post(JOBS, data='{"seed": 1,\n "prompt": "a"}', content_type="application/json", headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.headers["Location"] == first.headers["Location"]
    other = client.post(JOBS, json={"prompt": "b", "seed": 1}, headers=key)
    assert (other.status_code, other.json["code"]) == (409, "request_differs")
    assert len(client.get(JOBS).json["jobs"]) == 1


def test_refused_request_leaves_its_key_free(client: FlaskClient) -> None:
    key = {"Idempotency-Key": "k"}
    assert client.post(JOBS, json={"prompt": ""}, headers=key).status_code == 422
    assert client.post(JOBS, json={"prompt": "a"}, headers=key).status_code == 202


@pytest.mark.parametrize(("key", "status"), [("k", 202), ("k" * 255, 202), ("k" * 256, 422), ("", 422), ("a b", 422)])
def test_idempotency_key_has_1_to_255_visible_characters(client: FlaskClient, key: str, status: int) -> None:
    response = client.post(JOBS, json={"prompt": "a"}, headers={"Idempotency-Key": key})
    assert response.status_code == status
    if status == 422:
        assert response.json["errors"][0]["field"] == "Idempotency-Key"


@pytest.mark.parametrize(
    ("scopes", "status"), [(("submit", "read"), 422), (("submit", "interactive"), 202), (("submit", "admin"), 202)]
)
def test_key_may_ask_for_the_interactive_line_only_if_it_says_so(
    app: Flask, client: FlaskClient, scopes: tuple[str, ...], status: int
) -> None:
    database = app.extensions["darkroom"].database
    _, secret = keys.create(database, name="k", owner="ann", scopes=scopes, quotas=Quotas())
    headers = {"Authorization": f"Bearer {secret}"}
    response = client.post(JOBS, json={"prompt": "a", "priority": "interactive"}, headers=headers)
    assert response.status_code == status, response.text
    if status == 422:
        assert response.json["errors"] == [
            {"field": "priority", "problem": "is not open to this key", "limit": "one of bulk"}
        ]
    assert client.post(JOBS, json={"prompt": "a"}, headers=headers).json["priority"] == "bulk"


def test_key_that_is_held_to_bulk_cannot_retry_its_way_into_the_other_line(app: Flask, client: FlaskClient) -> None:
    database = app.extensions["darkroom"].database
    headers = {}
    for scopes in (("submit", "read", "interactive"), ("submit", "read")):
        _, secret = keys.create(database, name="k", owner="ann", scopes=scopes, quotas=Quotas())
        headers[scopes] = {"Authorization": f"Bearer {secret}"}
    hasty, patient = headers.values()
    job = client.post(JOBS, json={"prompt": "a", "priority": "interactive"}, headers=hasty).json
    client.post(job["urls"]["cancel"], headers=hasty)
    retry = f"{job['urls']['self']}/retry"
    assert client.post(retry, headers=patient).json["priority"] == "bulk"
    assert client.post(retry, headers=hasty).json["priority"] == "interactive"
