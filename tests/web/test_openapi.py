"""The document says what the API does: every status, every shape, for requests that nobody thought of."""

import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import checks

from darkroom import fleet, intake, keys
from darkroom.fleet import WorkerFacts
from darkroom.params import GenerationParams
from darkroom.web.openapi import operations
from darkroom.webhooks import deliveries

EXAMPLES = 16
# They end when the job does, or never: tests/web/test_streams.py.
STREAMS = frozenset({"/api/v1/events", "/api/v1/jobs/{job_id}/events"})
# No operation names a 500: one is caught as a status that is not documented.
CHECKS = (
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
)


def png() -> bytes:
    made = BytesIO()
    Image.new("RGB", (16, 16)).save(made, "PNG")
    return made.getvalue()


def hold_to_the_document(operation: Any, known: dict[str, str], headers: dict[str, str]) -> None:
    """Send what the document allows and what it does not, to things that are there and to others; always the same."""
    negative = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy() | negative, is_there=st.booleans())
    def every_answer_is_documented(case: Any, is_there: bool) -> None:
        if is_there:
            case.path_parameters.update({name: known[name] for name in case.path_parameters})
        case.call_and_validate(headers=headers, checks=CHECKS)

    every_answer_is_documented()


@pytest.mark.timeout(300)
def test_every_answer_is_one_that_the_document_names(app: Flask, client: FlaskClient, submit: Any, worker: Any) -> None:
    known = {"n": "0", "job_id": submit(metadata={"from": "a test"})["id"]}
    worker.develop()
    known["batch_id"] = client.post("/api/v1/jobs/batch", json={"matrix": {"prompt": "a {red|blue} house"}}).json["id"]
    known["upload_id"] = client.post("/api/v1/uploads", data=png(), content_type="image/png").json["id"]
    database = app.extensions["darkroom"].database
    fleet.register(database, WorkerFacts("a-worker", "host", 1, "cpu", 0, "cpu", ["none"], 1, "0"))
    hook = {"url": "https://example.org", "events": ["job.queued"]}
    known["webhook_id"] = client.post("/api/v1/webhooks", json=hook).json["id"]
    submit()
    assert deliveries.plan(database) is False, "all is planned"
    known["delivery_id"] = client.get("/api/v1/webhooks/deliveries").json["deliveries"][0]["id"]
    # The document also makes keys: from then on a key is asked for.
    _, key = keys.create(database, name="root", owner="local", scopes=keys.SCOPES, quotas=keys.Quotas())
    other, _ = keys.create(database, name="other", owner="other", scopes=keys.SCOPES, quotas=keys.Quotas())
    known |= {"worker_id": "a-worker", "key_id": str(other.id)}
    described = schemathesis.openapi.from_wsgi("/openapi.json", app)
    answered = [each for each in described.get_all_operations() if each.ok().path not in STREAMS]
    for found in answered:
        intake.resume(database, resumed_by="the test")
        hold_to_the_document(found.ok(), known, {"Authorization": f"Bearer {key}"})


def test_no_operation_expects_to_break(bare_client: FlaskClient) -> None:
    document = bare_client.get("/openapi.json").json
    for path, method, operation in operations(document):
        assert "500" not in operation["responses"], (method, path)
        assert operation["summary"], (method, path)


def test_document_is_openapi_3_1_and_names_every_field_of_a_job(bare_client: FlaskClient) -> None:
    document = bare_client.get("/openapi.json").json
    assert document["openapi"].startswith("3.1")
    fields = document["components"]["schemas"]["JobRequest"]["properties"]
    assert set(GenerationParams.model_fields) <= fields.keys()
    assert {"model", "priority", "deadline_seconds", "retention_seconds", "metadata", "webhook"} <= fields.keys()


def test_every_reference_of_the_document_leads_somewhere(bare_client: FlaskClient) -> None:
    document = bare_client.get("/openapi.json").json
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert names <= document["components"]["schemas"].keys()


def test_docs_page_loads_nothing_from_elsewhere(bare_client: FlaskClient) -> None:
    page = bare_client.get("/docs")
    assert page.status_code == 200
    assert "POST /api/v1/jobs" in page.text
    assert re.findall(r'(?:src|href)="(https?:|//)', page.text) == []
    assert "style=" not in page.text
    assert "script-src 'nonce-" in page.headers["Content-Security-Policy"]


def test_readme_names_every_kind_of_thing_that_the_api_has(app: Flask) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    rules = [rule.rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/api/v1/")]
    nouns = {"/".join(rule.split("/")[:4]) for rule in rules}
    assert {noun for noun in nouns if f"{noun}`" not in readme and f"{noun}/" not in readme} == set()


def test_every_link_within_the_docs_page_leads_somewhere(bare_client: FlaskClient) -> None:
    page = bare_client.get("/docs").text
    places = re.findall(r'id="([^"]+)"', page)
    assert len(set(places)) == len(places)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(places)
