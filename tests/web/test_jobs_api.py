from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import create_environ

from darkroom.db import Database

MISSING = "01a2045d-65c5-7697-ac09-40880b426809"


def test_submit_answers_202_with_the_job_and_where_it_is(client: FlaskClient) -> None:
    response = client.post("/api/v1/jobs", json={"prompt": "a red house", "seed": 7})

    assert response.status_code == 202
    job = response.json
    assert response.headers["Location"] == job["urls"]["self"] == f"/api/v1/jobs/{job['id']}"
    assert (job["state"], job["priority"], job["position"]) == ("queued", "bulk", 0)
    assert job["params"]["seed"] == 7
    assert job["params"]["width"] == 128
    assert job["images"] == []
    assert job["created_at"].endswith("Z")


def test_whole_life_reads_the_same_on_both_databases(
    database: Database, client: FlaskClient, worker: Any, submit: Any
) -> None:
    job = submit(num_images=2, seed=4294967295)
    worker.develop()

    job = client.get(job["urls"]["self"]).json
    assert job["state"] == "succeeded"
    assert [image["seed"] for image in job["images"]] == [4294967295, 0]
    assert job["images"][1]["url"] == f"/api/v1/jobs/{job['id']}/images/1"
    assert job["timings"] == {"encode": 0.1, "denoise": 2.5}
    assert (job["position"], job["progress"], job["error"]) == (None, None, None)


def test_priority_is_taken_as_asked(submit: Any) -> None:
    assert submit(priority="interactive")["priority"] == "interactive"
    assert submit(priority="bulk")["priority"] == "bulk"


def test_position_counts_the_jobs_ahead(client: FlaskClient, submit: Any) -> None:
    submit()
    second = submit()
    assert second["position"] == 1
    submit(priority="interactive")
    assert client.get(second["urls"]["self"]).json["position"] == 2


def test_deadline_is_the_asked_one(client: FlaskClient, submit: Any) -> None:
    job = submit(deadline_seconds=60)
    span = datetime.fromisoformat(job["deadline_at"]) - datetime.fromisoformat(job["created_at"])
    assert span.total_seconds() == pytest.approx(60, abs=1)


def test_running_job_shows_its_step(app: Any, client: FlaskClient, worker: Any, submit: Any) -> None:
    job = submit()
    claim = worker.claim()
    progress = {"stage": "denoise", "step": 12, "num_steps": 20}
    app.extensions["darkroom"].progress.publish({claim.job_id: progress})

    shown = client.get(job["urls"]["self"]).json
    assert shown["state"] == "running"
    assert shown["progress"] == progress


def test_failed_job_says_why(client: FlaskClient, worker: Any, submit: Any) -> None:
    job = submit()
    worker.fail("The device ran out of memory.")
    shown = client.get(job["urls"]["self"]).json
    assert shown["state"] == "failed"
    assert shown["error"] == {"code": "out_of_memory", "message": "The device ran out of memory."}


def test_cancel_ends_a_job_and_again_is_fine(client: FlaskClient, submit: Any) -> None:
    job = submit()
    for _ in range(2):
        response = client.post(job["urls"]["cancel"])
        assert response.status_code == 200
        assert response.json["state"] == "canceled"


def test_cancel_of_a_job_that_ended_otherwise_is_a_conflict(client: FlaskClient, worker: Any, submit: Any) -> None:
    job = submit()
    worker.develop()
    response = client.post(job["urls"]["cancel"])
    assert response.status_code == 409
    assert response.json["code"] == "job_finished"
    assert client.get(job["urls"]["self"]).json["state"] == "succeeded"


def test_retry_is_a_new_job_that_names_the_old_one(client: FlaskClient, worker: Any, submit: Any) -> None:
    job = submit(seed=5, priority="interactive")
    worker.fail("the device ran out of memory")

    response = client.post(f"{job['urls']['self']}/retry")

    again = response.json
    assert response.status_code == 202
    assert response.headers["Location"] == again["urls"]["self"] != job["urls"]["self"]
    assert (again["retry_of"], again["state"], again["attempt"]) == (job["id"], "queued", 0)
    assert (again["params"], again["priority"]) == (job["params"], "interactive")
    assert client.get(job["urls"]["self"]).json["state"] == "failed"


def test_retry_of_a_job_that_has_not_ended_is_a_conflict(client: FlaskClient, submit: Any) -> None:
    response = client.post(f"{submit()['urls']['self']}/retry")

    assert (response.status_code, response.json["code"]) == (409, "job_live")
    assert len(client.get("/api/v1/jobs").json["jobs"]) == 1


def test_retry_of_an_unknown_job_is_404(bare_client: FlaskClient) -> None:
    response = bare_client.post(f"/api/v1/jobs/{MISSING}/retry")
    assert (response.status_code, response.json["code"]) == (404, "unknown_job")


@pytest.mark.parametrize(
    "job_id",
    [MISSING, "1", "x", "%00", "..", f"{{{MISSING}}}", MISSING.replace("-", ""), "urn:uuid:" + MISSING, "9" * 5000],
)
@pytest.mark.parametrize("address", ["/api/v1/jobs/{}", "/api/v1/jobs/{}/images/0"])
def test_unknown_job_is_404_and_never_an_empty_done(bare_client: FlaskClient, address: str, job_id: str) -> None:
    response = bare_client.get(address.format(job_id))
    assert response.status_code == 404
    assert response.content_type == "application/problem+json"
    assert "state" not in response.json


@pytest.mark.parametrize("spell", ["{{{0}}}", "urn:uuid:{0}", "{0.hex}", "{0} ", "{0}-"])
def test_job_has_one_address(client: FlaskClient, submit: Any, spell: str) -> None:
    job = submit()
    assert client.get("/api/v1/jobs/" + job["id"].upper()).status_code == 200
    assert client.get("/api/v1/jobs/" + spell.format(UUID(job["id"]))).status_code == 404


def test_cancel_of_an_unknown_job_is_404(bare_client: FlaskClient) -> None:
    response = bare_client.post(f"/api/v1/jobs/{MISSING}/cancel")
    assert (response.status_code, response.json["code"]) == (404, "unknown_job")


def test_list_pages_through_every_job_newest_first(client: FlaskClient, submit: Any) -> None:
    made = [submit()["id"] for _ in range(5)]
    seen, cursor = [], ""
    while cursor is not None:
        page = client.get(f"/api/v1/jobs?limit=2{cursor and '&cursor=' + cursor}").json
        assert len(page["jobs"]) <= 2
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
    assert seen == made[::-1]


def test_a_job_that_comes_while_paging_moves_nothing(client: FlaskClient, submit: Any) -> None:
    made = [submit()["id"] for _ in range(4)]
    first = client.get("/api/v1/jobs?limit=2").json
    submit()
    second = client.get(f"/api/v1/jobs?limit=2&cursor={first['next_cursor']}").json
    assert [job["id"] for job in first["jobs"] + second["jobs"]] == made[::-1]


def test_list_filters_by_state_and_model(client: FlaskClient, submit: Any) -> None:
    canceled = submit()
    client.post(canceled["urls"]["cancel"])
    queued = submit()
    assert [job["id"] for job in client.get("/api/v1/jobs?state=queued").json["jobs"]] == [queued["id"]]
    assert [job["id"] for job in client.get("/api/v1/jobs?state=canceled").json["jobs"]] == [canceled["id"]]
    assert len(client.get("/api/v1/jobs?model=darkroom-seeded").json["jobs"]) == 2
    assert client.get("/api/v1/jobs?model=another").json["jobs"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("state=done", "state"),
        ("state=", "state"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=1e1", "limit"),
        ("limit=%D9%A3", "limit"),
        (f"limit={'9' * 5000}", "limit"),
        ("cursor=x", "cursor"),
        ("cursor=%00", "cursor"),
        ("model=%00", "model"),
        ("status=queued", "status"),
    ],
)
def test_filter_that_is_not_understood_is_refused(bare_client: FlaskClient, query: str, field: str) -> None:
    response = bare_client.get(f"/api/v1/jobs?{query}")
    assert response.status_code == 422
    assert [error["field"] for error in response.json["errors"]] == [field]
    assert response.json["errors"][0]["limit"]


def test_models_lists_limits_and_license_but_not_where_weights_lie(bare_client: FlaskClient) -> None:
    answer = bare_client.get("/api/v1/models").json
    model = answer["models"][0]
    assert answer["default"] == model["name"] == "darkroom-seeded"
    assert model["license"] == "Apache-2.0"
    assert model["limits"]["max_size"] == 512
    assert "source" not in model


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/v1/jobs", {"GET", "HEAD", "OPTIONS", "POST"}),
        ("PUT", "/api/v1/jobs/" + MISSING, {"DELETE", "GET", "HEAD", "OPTIONS"}),
        ("GET", "/api/v1/jobs/" + MISSING + "/cancel", {"OPTIONS", "POST"}),
        ("POST", "/api/v1/models", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/healthz", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_wrong_method_is_405_and_says_which_are_right(
    bare_client: FlaskClient, method: str, path: str, allowed: set[str]
) -> None:
    response = bare_client.open(path, method=method)
    assert response.status_code == 405
    assert response.json["code"] == "method_not_allowed"
    assert set(response.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/v2/jobs", "/api/v1/jobs/", "/api/v1/nothing"])
def test_unknown_path_below_api_is_a_problem_document(bare_client: FlaskClient, path: str) -> None:
    response = bare_client.get(path)
    assert response.status_code == 404
    assert response.content_type == "application/problem+json"
    assert response.json["code"] == "unknown_path"


@pytest.mark.parametrize(("path", "is_whole"), [("/healthz", True), ("/nowhere", True), ("/api/v1/events", False)])
def test_answer_that_is_there_goes_to_the_server_as_a_whole(app: Flask, path: str, is_whole: bool) -> None:
    body = app.wsgi_app(create_environ(path, "http://127.0.0.1"), lambda *_: lambda _: None)
    assert isinstance(body, list) is is_whole
    if not isinstance(body, list):
        body.close()  # type: ignore[attr-defined]
