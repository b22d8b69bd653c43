"""Calls that wait for a job: how long, for how many, and what they are told when it takes longer."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient

from darkroom.config import Settings
from darkroom.errors import InvalidParameters, JobNotFound, NoPlaceToWait
from darkroom.events import ProgressBoard
from darkroom.web import create_app
from darkroom.web.waiting import Waiting, preferred_wait

LONG_SECONDS = 30
PROMPTLY_SECONDS = 5
NOWHERE = UUID("01a20405-fb01-7070-bc9a-0d618ca8ebd9")


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    """An application with its loops, and two places to wait in."""
    app = create_app(settings.model_copy(update={"web_waiters": 2}))
    yield app
    app.extensions["darkroom"].background.stop()
    app.extensions["darkroom"].database.dispose()


@pytest.fixture
def waiting(app: Flask) -> Waiting:
    waiting: Waiting = app.extensions["darkroom"].waiting
    return waiting


@pytest.fixture
def wait_beside() -> Iterator[Callable[[Callable[[], Any]], list[Any]]]:
    """Call in a thread; what it returns lies in a list afterwards."""
    threads: list[threading.Thread] = []

    def begin(call: Callable[[], Any]) -> list[Any]:
        results: list[Any] = []
        threads.append(threading.Thread(target=lambda: results.append(call())))
        threads[-1].start()
        return results

    yield begin
    for thread in threads:
        thread.join(LONG_SECONDS)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_wait_ends_with_the_job(waiting: Waiting, wait_beside: Any, worker: Any, submit: Any) -> None:
    job_id = UUID(submit()["id"])
    began = time.monotonic()
    ended = wait_beside(lambda: waiting.wait_for(job_id, LONG_SECONDS))
    until(lambda: waiting.num_taken == 1)
    worker.develop()
    until(lambda: ended)
    assert ended[0].state == "succeeded"
    assert len(ended[0].images) == 1
    assert time.monotonic() - began < PROMPTLY_SECONDS
    assert waiting.num_taken == 0


def test_wait_without_redis_ends_with_the_job(
    waiting: Waiting, wait_beside: Any, worker: Any, submit: Any, valkey: Any
) -> None:
    valkey.pause()
    job_id = UUID(submit()["id"])
    ended = wait_beside(lambda: waiting.wait_for(job_id, LONG_SECONDS))
    until(lambda: waiting.num_taken == 1)
    began = time.monotonic()
    worker.develop()
    until(lambda: ended)
    assert ended[0].state == "succeeded"
    assert time.monotonic() - began < PROMPTLY_SECONDS


def test_ended_job_is_not_waited_for(waiting: Waiting, worker: Any, submit: Any) -> None:
    job_id = UUID(submit()["id"])
    worker.fail("the card is too small")
    began = time.monotonic()
    assert waiting.wait_for(job_id, LONG_SECONDS).state == "failed"
    assert time.monotonic() - began < PROMPTLY_SECONDS


def test_time_that_is_up_gives_the_job_as_it_is(waiting: Waiting, submit: Any) -> None:
    assert waiting.wait_for(UUID(submit()["id"]), 0.1).state == "queued"
    assert waiting.num_taken == 0


def test_job_that_is_unknown_is_not_waited_for_and_takes_no_place(waiting: Waiting) -> None:
    with pytest.raises(JobNotFound):
        waiting.wait_for(NOWHERE, LONG_SECONDS)
    assert waiting.num_taken == 0


def test_waits_up_to_the_budget_are_taken_and_one_more_is_not(waiting: Waiting) -> None:
    with waiting.place(), waiting.place():
        with pytest.raises(NoPlaceToWait):
            waiting.take_place()
        assert waiting.num_taken == 2
    waiting.take_place()()
    assert waiting.num_taken == 0


def test_place_given_back_twice_is_one_place(waiting: Waiting) -> None:
    with waiting.place():
        give_back = waiting.take_place()
        give_back()
        give_back()
        assert waiting.num_taken == 1


def test_end_of_the_process_ends_a_wait(app: Flask, waiting: Waiting, wait_beside: Any, submit: Any) -> None:
    job_id = UUID(submit()["id"])
    ended = wait_beside(lambda: waiting.wait_for(job_id, LONG_SECONDS))
    until(lambda: waiting.num_taken == 1)
    began = time.monotonic()
    app.extensions["darkroom"].background.end_waits()
    until(lambda: ended)
    assert time.monotonic() - began < 2
    assert ended[0].state == "queued"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        (["respond-async"], None),
        (["waiting=3"], None),
        (["wait=3"], 3),
        (["wait=0"], 0),
        (["wait=60"], 60),
        (["wait"], 60),
        (["respond-async, wait=3"], 3),
        (["respond-async", "Wait=3"], 3),
        (['wait="3"'], 3),
        (["wait=3; foo=bar"], 3),
        (["wait=3, wait=5"], 3),
    ],
)
def test_preference_is_read_as_rfc_7240_says(headers: list[str], seconds: int | None) -> None:
    assert preferred_wait(headers) == seconds


@pytest.mark.parametrize("header", ["wait=61", "wait=-1", "wait=1.5", "wait=", "wait=x", "wait=99999999999"])
def test_wait_that_is_no_number_of_seconds_up_to_the_limit_is_refused(header: str) -> None:
    with pytest.raises(InvalidParameters) as caught:
        preferred_wait([header])
    assert caught.value.errors[0].field == "Prefer"


def test_submit_that_prefers_to_wait_is_answered_with_the_ended_job(
    client: FlaskClient, wait_beside: Any, waiting: Waiting, worker: Any
) -> None:
    body = {"prompt": "a red house"}
    answers = wait_beside(lambda: client.post("/api/v1/jobs", json=body, headers={"Prefer": "wait=30"}))
    until(lambda: waiting.num_taken == 1 and not jobs_are_none(client))
    worker.develop()
    until(lambda: answers)
    assert (answers[0].status_code, answers[0].json["state"]) == (200, "succeeded")
    assert answers[0].headers["Preference-Applied"] == "wait=30"
    assert answers[0].json["images"]


def jobs_are_none(client: FlaskClient) -> bool:
    return client.get("/api/v1/jobs").json["jobs"] == []


def test_submit_that_waited_in_vain_is_accepted(client: FlaskClient) -> None:
    response = client.post("/api/v1/jobs", json={"prompt": "a red house"}, headers={"Prefer": "wait=0"})
    assert (response.status_code, response.json["state"]) == (202, "queued")
    assert response.headers["Preference-Applied"] == "wait=0"


def test_submit_beyond_the_budget_stores_nothing(client: FlaskClient, waiting: Waiting) -> None:
    with waiting.place(), waiting.place():
        response = client.post("/api/v1/jobs", json={"prompt": "a red house"}, headers={"Prefer": "wait=1"})
        assert response.status_code == 503
        assert response.headers["Retry-After"]
        assert client.post("/api/v1/jobs", json={"prompt": "a red house"}).status_code == 202
    assert len(client.get("/api/v1/jobs").json["jobs"]) == 1


def test_poll_with_the_version_it_has_is_told_only_changes(client: FlaskClient, worker: Any, submit: Any) -> None:
    path = submit()["urls"]["self"]
    tags = []
    for change in (lambda: None, worker.claim, lambda: client.post(f"{path}/cancel")):
        change()
        response = client.get(path)
        assert response.status_code == 200
        same = client.get(path, headers={"If-None-Match": response.headers["ETag"]})
        assert (same.status_code, same.data, same.headers["ETag"]) == (304, b"", response.headers["ETag"])
        tags.append(response.headers["ETag"])
    assert len(set(tags)) == 3
    assert client.get(path, headers={"If-None-Match": tags[0]}).status_code == 200


def test_version_of_a_waiting_job_changes_with_its_place(client: FlaskClient, worker: Any, submit: Any) -> None:
    submit()
    path = submit()["urls"]["self"]
    tag = client.get(path).headers["ETag"]
    worker.claim()
    assert client.get(path, headers={"If-None-Match": tag}).status_code == 200


def test_version_of_a_running_job_changes_with_its_steps(
    client: FlaskClient, worker: Any, submit: Any, settings: Settings
) -> None:
    path = submit()["urls"]["self"]
    job_id = worker.claim().job_id
    tag = client.get(path).headers["ETag"]
    ProgressBoard(settings.redis_url).publish({job_id: {"stage": "denoise", "step": 4, "num_steps": 9}})
    assert client.get(path, headers={"If-None-Match": tag}).status_code == 200


def test_version_of_somebody_else_s_job_is_not_told(client: FlaskClient) -> None:
    assert client.get(f"/api/v1/jobs/{NOWHERE}", headers={"If-None-Match": '"x"'}).status_code == 404
