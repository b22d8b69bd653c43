"""A job as those see it who wait for it: versions, the place in line, when it may be done, search, erasure."""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from darkroom import fleet, jobs
from darkroom.errors import ObjectNotFound
from darkroom.fleet import WorkerFacts
from darkroom.jobs import Done, JobClass, NewJob
from darkroom.sweeper import Sweeper
from darkroom.web import create_app
from darkroom.web.census import FEW, FRESH_SECONDS, Census
from darkroom.web.pace import FEWEST_DONE, PROGRESS_AGE_SECONDS, Eta, Figures, figures_of

FACTS = WorkerFacts(
    id="first",
    host="dark",
    pid=1,
    device="cpu",
    device_memory_bytes=1,
    fingerprint="f",
    models=["darkroom-seeded"],
    slots=2,
    version="0",
)


def test_who_has_this_version_is_told_so_and_nothing_else(client: FlaskClient, submit: Any) -> None:
    job = submit()
    first = client.get(job["urls"]["self"])
    again = client.get(job["urls"]["self"], headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    assert "Content-Security-Policy" not in again.headers  # what a browser has of the first answer stays as it was
    weak = client.get(job["urls"]["self"], headers={"If-None-Match": "W/" + first.headers["ETag"]})
    assert weak.status_code == 304


def test_every_change_that_is_told_is_another_version(
    app: Flask, client: FlaskClient, worker: Any, submit: Any
) -> None:
    ahead, job = submit(), submit()
    seen = []

    def look() -> None:
        response = client.get(job["urls"]["self"])
        assert client.get(job["urls"]["self"]).headers["ETag"] == response.headers["ETag"]
        seen.append((response.headers["ETag"], response.data))

    look()
    client.post(ahead["urls"]["cancel"])
    look()
    claim = worker.claim()
    look()
    for step in (1, 2):
        progress = {"stage": "denoise", "step": step, "num_steps": 20}
        app.extensions["darkroom"].progress.publish({claim.job_id: progress})
        look()
    jobs.requeue(app.extensions["darkroom"].database, claim.job_id, reason="drain")
    worker.develop()
    look()
    assert len({etag for etag, _ in seen}) == len({body for _, body in seen}) == len(seen)


def test_eta_is_unknown_until_enough_was_done(app: Flask, worker: Any, submit: Any) -> None:
    fleet.register(app.extensions["darkroom"].database, FACTS)
    for _ in range(FEWEST_DONE - 1):
        submit()
        worker.develop()
    fresh = create_app(app.extensions["darkroom"].settings, with_background=False).test_client()
    assert fresh.get(submit()["urls"]["self"]).json["eta"] is None


def test_eta_is_an_interval_once_enough_was_done(app: Flask, worker: Any, submit: Any) -> None:
    fleet.register(app.extensions["darkroom"].database, FACTS)
    for _ in range(FEWEST_DONE):
        submit()
        worker.develop()
    # A process that has only now begun to measure: this one remembers for some seconds that nobody could tell.
    fresh = create_app(app.extensions["darkroom"].settings, with_background=False).test_client()
    eta = fresh.get(submit()["urls"]["self"]).json["eta"]
    assert 0 <= eta["min_seconds"] <= eta["max_seconds"]
    assert fresh.get("/api/v1/jobs").json["jobs"][0]["eta"] is None


def test_eta_is_unknown_without_a_worker(app: Flask, worker: Any, submit: Any) -> None:
    for _ in range(FEWEST_DONE):
        submit()
        worker.develop()
    fresh = create_app(app.extensions["darkroom"].settings, with_background=False).test_client()
    assert fresh.get(submit()["urls"]["self"]).json["eta"] is None


def test_eta_grows_with_the_rounds_ahead_and_the_jobs_own_cost() -> None:
    figures = Figures(fast=1.0, slow=2.0, usual_cost=10.0, num_slots=2)
    assert figures.eta(5, num_ahead=0) == Eta(5.0, 30.0)
    assert figures.eta(5, num_ahead=1) == Eta(5.0, 30.0)
    assert figures.eta(5, num_ahead=2) == Eta(15.0, 50.0)
    assert figures.rest(5) == Eta(5.0 - PROGRESS_AGE_SECONDS, 10.0)
    assert figures.rest(0.1) == Eta(0.0, 0.2)


def test_figures_are_of_the_faster_and_the_slower_jobs() -> None:
    done = [Done(seconds=float(n), cost=2.0) for n in range(1, 11)]
    assert figures_of(done, num_slots=3) == Figures(fast=1.0, slow=5.0, usual_cost=2.0, num_slots=3)
    assert figures_of(done[: FEWEST_DONE - 1], num_slots=3) is None


def test_list_searches_prompts(client: FlaskClient, submit: Any) -> None:
    red = submit(prompt="A Red house")
    submit(prompt="a blue house")
    assert [job["id"] for job in client.get("/api/v1/jobs?q=red+HOUSE").json["jobs"]] == [red["id"]]
    assert client.get("/api/v1/jobs?q=green").json == {"jobs": [], "next_cursor": None}
    page = client.get("/api/v1/jobs?q=house&limit=1").json
    rest = client.get(f"/api/v1/jobs?q=house&limit=1&cursor={page['next_cursor']}").json
    assert [job["id"] for job in rest["jobs"]] == [red["id"]]


@pytest.mark.parametrize(("length", "status"), [(200, 200), (201, 422)])
def test_search_words_have_a_longest_length(bare_client: FlaskClient, length: int, status: int) -> None:
    assert bare_client.get("/api/v1/jobs", query_string={"q": "x" * length}).status_code == status


def test_erased_job_is_gone_with_its_pictures_and_its_words(
    app: Flask, client: FlaskClient, worker: Any, submit: Any
) -> None:
    job = submit(prompt="a secret house")
    claim = worker.develop()
    services = app.extensions["darkroom"]
    image_url = f"{job['urls']['self']}/images/0"
    assert client.delete(job["urls"]["self"]).status_code == 204
    for response in (client.get(job["urls"]["self"]), client.get(image_url), client.delete(job["urls"]["self"])):
        assert response.status_code == 404
    assert client.get("/api/v1/jobs?q=secret").json["jobs"] == []

    Sweeper(services.settings, database=services.database, storage=services.storage).do_chores()

    with pytest.raises(ObjectNotFound):
        services.storage.get(f"jobs/{claim.job_id}/1/0.png")
    with services.database.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar() == 0
        assert connection.exec_driver_sql("SELECT count(*) FROM job_events").scalar() == 0


def test_running_job_is_canceled_when_it_is_erased(app: Flask, client: FlaskClient, worker: Any, submit: Any) -> None:
    job = submit()
    claim = worker.claim()
    assert client.delete(job["urls"]["self"]).status_code == 204
    assert jobs.get(app.extensions["darkroom"].database, claim.job_id).state == "canceled"


def test_models_say_what_they_take_and_where_they_are_loaded(app: Flask, client: FlaskClient) -> None:
    fleet.register(app.extensions["darkroom"].database, FACTS)
    (model,) = [each for each in client.get("/api/v1/models").json["models"] if each["name"] == "darkroom-seeded"]
    assert "img2img" in model["features"]
    assert model["loras"] == []
    assert model["license"] == "Apache-2.0"
    assert model["loaded_on"] == [{"worker": "first", "device": "cpu", "state": "ready"}]
    assert "source" not in model


def test_long_queue_is_counted_no_more_often_than_every_two_seconds(app: Flask, submit: Any) -> None:
    database, clock = app.extensions["darkroom"].database, [0.0]
    census = Census(database, clock=lambda: clock[0])
    submit()
    assert [line.queued for line in census.lines()] == [1]
    submit()
    assert [line.queued for line in census.lines()] == [2], "a short one is counted every time"
    (template,) = jobs.front_of_queue(database, model="darkroom-seeded", limit=1)
    again = NewJob("darkroom-seeded", jobs.get(database, template).params, JobClass.BULK, 3600)
    jobs.submit_batch(database, [again] * (FEW - 1), owner="ann")
    assert [line.queued for line in census.lines()] == [FEW + 1]
    submit()
    clock[0] = FRESH_SECONDS - 0.1
    assert [line.queued for line in census.lines()] == [FEW + 1]
    clock[0] = FRESH_SECONDS + 0.1
    assert [line.queued for line in census.lines()] == [FEW + 2]


def test_queue_tells_every_line(client: FlaskClient, worker: Any, submit: Any) -> None:
    assert client.get("/api/v1/queue").json == {"queued": 0, "running": 0, "oldest_seconds": None, "lines": []}
    submit()
    worker.claim()
    submit(), submit(priority="interactive")
    queue = client.get("/api/v1/queue").json
    assert (queue["queued"], queue["running"], queue["oldest_seconds"] >= 0) == (2, 1, True)
    assert [(line["priority"], line["queued"], line["running"]) for line in queue["lines"]] == [
        ("interactive", 1, 0),
        ("bulk", 1, 1),
    ]
