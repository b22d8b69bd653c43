"""Event streams: what is told, in which order, with which id, to whom, and how a stream ends."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient

from darkroom import jobs, keys
from darkroom.config import Settings
from darkroom.events import ProgressBoard
from darkroom.keys import Quotas
from darkroom.params import resolve
from darkroom.previews import PreviewBoard
from darkroom.web import create_app
from darkroom.web.hub import MOST_UNREAD

PATIENCE_SECONDS = 20
WEBP = b"RIFF\x04\x00\x00\x00WEBP"


@dataclass(frozen=True)
class Event:
    """One event as a client reads it; `id` is None where it had none."""

    name: str
    id: str | None
    document: Any


class Stream:
    """A client of a stream, which reads it as it comes."""

    def __init__(self, client: FlaskClient, path: str, last_event_id: str | None = None) -> None:
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        self.response = client.get(path, headers=headers)
        self.status_code = self.response.status_code
        self.comments: list[str] = []
        self._chunks = iter(self.response.response)
        self._chunks_read: list[str] = []

    def __iter__(self) -> Iterator[Event]:
        for chunk in self._chunks:
            text = chunk.decode() if isinstance(chunk, bytes) else str(chunk)
            lines = text.splitlines()
            fields = dict(line.split(": ", 1) for line in lines if line and not line.startswith(":"))
            self.comments += [line[2:] for line in lines if line.startswith(":")]
            if "data" in fields:
                yield Event(fields["event"], fields.get("id"), json.loads(fields["data"]))

    def until(self, name: str) -> list[Event]:
        """Read on until an event of that name has come."""
        read: list[Event] = []
        for event in self:
            read.append(event)
            if event.name == name:
                return read
        raise AssertionError(f"the stream ended without {name}: {read}")

    def until_comment(self, part: str) -> None:
        """Read on until a comment that has this in it."""
        for chunk in self._chunks:
            if part in str(chunk):
                return
        raise AssertionError(f"the stream ended without {part}")

    def close(self) -> None:
        self.response.close()


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    """An application with its loops, where hearts beat fast."""
    quick = {"stream_heartbeat_seconds": 0.2, "web_waiters": 2}
    app = create_app(settings.model_copy(update=quick))
    yield app
    app.extensions["darkroom"].background.stop()
    app.extensions["darkroom"].database.dispose()


@pytest.fixture
def follow(client: FlaskClient) -> Iterator[Callable[..., Stream]]:
    """Open a stream; it is closed at the end of the test."""
    opened: list[Stream] = []

    def follow(path: str, last_event_id: str | None = None) -> Stream:
        opened.append(Stream(client, path, last_event_id))
        return opened[-1]

    yield follow
    for stream in opened:
        stream.close()


def events_of(job: Any) -> str:
    return f"{job['urls']['self']}/events"


def in_background(call: Callable[[], object]) -> threading.Timer:
    """Have something happen while the test reads."""
    timer = threading.Timer(0.1, call)
    timer.start()
    return timer


def names(read: list[Event]) -> list[str]:
    return [event.document["state"] if event.name == "state" else event.name for event in read]


@pytest.mark.timeout(60)
def test_a_job_is_told_from_its_first_line_to_its_pictures(
    follow: Callable[..., Stream], worker: Any, submit: Any
) -> None:
    job = submit(num_images=2)
    stream = follow(events_of(job))
    in_background(worker.develop)
    read = stream.until("done")
    assert names(read) == ["queued", "running", "succeeded", "image", "image", "done"]
    assert [event.id for event in read] == ["1", "2", None, None, None, "3"]
    assert [event.document["n"] for event in read if event.name == "image"] == [0, 1]
    assert read[-1].document["state"] == "succeeded"
    assert list(stream) == []


def test_picture_that_is_told_of_can_be_fetched(
    follow: Callable[..., Stream], client: FlaskClient, worker: Any, submit: Any
) -> None:
    stream = follow(events_of(submit()))
    in_background(worker.develop)
    image = next(event for event in stream if event.name == "image")
    assert client.get(image.document["url"]).status_code == 200


@pytest.mark.parametrize(
    ("last", "told"), [("1", ["running", "succeeded", "image", "done"]), ("2", ["succeeded", "image", "done"])]
)
def test_who_comes_back_is_told_what_he_missed(
    follow: Callable[..., Stream], worker: Any, submit: Any, last: str, told: list[str]
) -> None:
    job = submit()
    worker.develop()
    assert names(follow(events_of(job), last).until("done")) == told


def test_who_knows_the_end_of_a_job_is_told_to_stay_away(client: FlaskClient, worker: Any, submit: Any) -> None:
    job = submit()
    worker.develop()
    assert client.get(events_of(job), headers={"Last-Event-ID": "3"}).status_code == 204


def test_failure_is_told_with_its_reason(follow: Callable[..., Stream], worker: Any, submit: Any) -> None:
    job = submit()
    worker.fail("the card is too small")
    state, done = follow(events_of(job), "2").until("done")
    assert (state.document["state"], state.document["code"]) == ("failed", "out_of_memory")
    assert done.document["error"]["message"] == "the card is too small"


def test_worker_s_name_is_not_told(follow: Callable[..., Stream], worker: Any, submit: Any) -> None:
    job = submit()
    worker.develop()
    assert "by-hand" not in str(follow(events_of(job)).until("done"))


def test_progress_and_previews_of_a_running_job_are_shown_to_who_looks(
    follow: Callable[..., Stream], settings: Settings, worker: Any, submit: Any
) -> None:
    job = submit(num_inference_steps=9)
    job_id = worker.claim().job_id
    stream = follow(events_of(job))
    stream.until("state")
    previews = PreviewBoard(settings.redis_url)
    previews.publish(job_id, 0, step=4, body=WEBP)
    ProgressBoard(settings.redis_url).publish({job_id: {"stage": "denoise", "step": 4, "num_steps": 9}})
    read = stream.until("preview")
    assert (read[-2].name, read[-2].document["step"], read[-2].id) == ("progress", 4, None)
    assert read[-1].document["image"].startswith("data:image/webp;base64,UklGR")
    assert (read[-1].document["n"], read[-1].document["step"], read[-1].document["num_steps"]) == (0, 4, 9)
    assert previews.watched([job_id]) == {job_id}


def test_previews_are_asked_for_as_soon_as_somebody_looks_however_lately_others_did(
    follow: Callable[..., Stream], settings: Settings, worker: Any, submit: Any
) -> None:
    for _ in range(2):
        job = submit()
        job_id = worker.claim().job_id
        stream = follow(events_of(job))
        stream.until("state")
        ProgressBoard(settings.redis_url).publish({job_id: {"stage": "denoise", "step": 4, "num_steps": 9}})
        stream.until("progress")
        assert PreviewBoard(settings.redis_url).watched([job_id]) == {job_id}


def test_nobody_watches_a_job_whose_stream_is_closed(
    app: Flask, follow: Callable[..., Stream], settings: Settings, worker: Any, submit: Any, valkey: Any
) -> None:
    job = submit()
    job_id = worker.claim().job_id
    stream = follow(events_of(job))
    ProgressBoard(settings.redis_url).publish({job_id: {"stage": "denoise", "step": 4, "num_steps": 9}})
    stream.until("progress")
    stream.close()
    with valkey.client() as client:
        client.flushall()
    other = follow(events_of(submit()))
    other.until_comment("still here")
    assert PreviewBoard(settings.redis_url).watched([job_id]) == set()


def test_idle_stream_shows_life(follow: Callable[..., Stream], submit: Any) -> None:
    stream = follow(events_of(submit()))
    stream.until("state")
    for _ in range(2):
        stream.until_comment("still here")


@pytest.mark.parametrize("fault", ["stop", "pause"])
def test_events_arrive_without_redis(
    follow: Callable[..., Stream], worker: Any, submit: Any, valkey: Any, fault: str
) -> None:
    getattr(valkey, fault)()
    stream = follow(events_of(submit()))
    stream.until("state")
    in_background(worker.develop)
    assert stream.until("done")


def test_events_of_all_my_jobs_arrive_in_one_stream(follow: Callable[..., Stream], worker: Any, submit: Any) -> None:
    stream = follow("/api/v1/events")
    stream.until_comment("still here")
    first, second = submit(), submit()
    in_background(worker.develop)
    read = [*stream.until("done")]
    assert {event.document.get("job_id", event.document.get("id")) for event in read} == {first["id"], second["id"]}
    assert names(read) == ["queued", "queued", "running", "succeeded", "image", "done"]
    assert all(event.id for event in read if event.name in {"state", "done"} and event.document["state"] != "succeeded")


def test_stream_of_all_goes_on_behind_the_last_event_that_was_read(
    follow: Callable[..., Stream], worker: Any, submit: Any
) -> None:
    stream = follow("/api/v1/events")
    stream.until_comment("still here")
    submit()
    last = stream.until("state")[-1].id
    stream.close()
    worker.develop()
    assert names(follow("/api/v1/events", last).until("done")) == ["running", "succeeded", "image", "done"]


def test_follower_for_whom_too_much_has_come_is_told_all_of_it(
    follow: Callable[..., Stream], client: FlaskClient
) -> None:
    behind, other = follow("/api/v1/events"), follow("/api/v1/events")
    for stream in (behind, other):
        stream.until_comment("still here")
    job_ids: list[str] = []
    while len(job_ids) <= MOST_UNREAD:
        batch = {"matrix": {"prompt": "a house", "seed": list(range(MOST_UNREAD // 2 + 1))}}
        job_ids += client.post("/api/v1/jobs/batch", json=batch).get_json()["job_ids"]
    for stream in (other, behind):  # when one was told the last, it has come for both
        told: list[str] = []
        while job_ids[-1] not in told:
            told.append(stream.until("state")[-1].document["job_id"])
        assert told == job_ids


def test_events_of_another_owner_are_not_in_my_stream(app: Flask, follow: Callable[..., Stream], submit: Any) -> None:
    stream = follow("/api/v1/events")
    stream.until_comment("still here")
    submit_for(app, "somebody else")
    mine = submit()
    assert stream.until("state")[-1].document["job_id"] == mine["id"]


def submit_for(app: Flask, owner: str) -> UUID:
    services = app.extensions["darkroom"]
    entry = services.catalog.default
    params = jobs.NewJob(entry.name, resolve(entry, {"prompt": "not yours"}), jobs.JobClass.BULK, 60)
    return jobs.submit(services.database, params, owner=owner).id


def test_stream_of_another_owner_s_job_is_refused(app: Flask, client: FlaskClient) -> None:
    job_id = submit_for(app, "somebody else")
    assert client.get(f"/api/v1/jobs/{job_id}/events").status_code == 404


@pytest.mark.parametrize("path", ["/api/v1/events", "/api/v1/jobs/01a20405-fb01-7070-bc9a-0d618ca8ebd9/events"])
@pytest.mark.parametrize("rubbish", ["x", "-1", "1.5", "1-2-3", "99999999999999999999-1"])
def test_id_that_no_event_has_is_refused(bare_client: FlaskClient, path: str, rubbish: str) -> None:
    response = bare_client.get(path, headers={"Last-Event-ID": rubbish})
    assert response.status_code == 422
    assert response.json["errors"][0]["field"] == "Last-Event-ID"


def test_streams_up_to_the_budget_are_served_and_one_more_is_not(
    app: Flask, client: FlaskClient, follow: Callable[..., Stream], submit: Any
) -> None:
    job = submit()
    first, second = follow(events_of(job)), follow("/api/v1/events")
    refused = client.get(events_of(job))
    assert (first.status_code, second.status_code, refused.status_code) == (200, 200, 503)
    assert int(refused.headers["Retry-After"]) > 0
    assert refused.json["code"] == "too_many_waiting"
    assert client.get(job["urls"]["self"]).status_code == 200


def test_client_that_is_lost_frees_its_place(
    app: Flask, client: FlaskClient, follow: Callable[..., Stream], submit: Any
) -> None:
    waiting = app.extensions["darkroom"].waiting
    begun, unread = follow(events_of(submit())), follow("/api/v1/events")
    begun.until("state")
    assert waiting.num_taken == 2
    begun.close()
    unread.close()
    assert waiting.num_taken == 0
    client.head("/api/v1/events").close()
    assert waiting.num_taken == 0


def test_refused_stream_takes_no_place(app: Flask, client: FlaskClient) -> None:
    client.get("/api/v1/jobs/01a20405-fb01-7070-bc9a-0d618ca8ebd9/events")
    assert app.extensions["darkroom"].waiting.num_taken == 0


@pytest.mark.parametrize("is_of_one_job", [True, False])
@pytest.mark.parametrize("end", ["revoke", "take the scope", "lock the door"])
def test_stream_ends_with_what_let_it_in(
    app: Flask, client: FlaskClient, follow: Callable[..., Stream], submit: Any, end: str, is_of_one_job: bool
) -> None:
    services = app.extensions["darkroom"]
    stays_open = end != "lock the door"
    path = events_of(submit()) if is_of_one_job else "/api/v1/events"
    if stays_open:
        key, text = keys.create(services.database, name="a", owner="local", scopes=("read",), quotas=Quotas())
        services.keys.forget()
        client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {text}"
    stream = follow(path)
    stream.until_comment("still here")
    match end:
        case "revoke":
            keys.revoke(services.database, key.id)
        case "take the scope":
            keys.change(services.database, key.id, changes={"scopes": ["submit"]})
        case "lock the door":
            keys.create(services.database, name="a", owner="local", scopes=("read",), quotas=Quotas())
    services.keys.forget()
    stream.until_comment("come back")
    assert list(stream) == []
    assert client.get(path).status_code in {401, 403}


def test_stream_outlasts_a_database_that_cannot_tell_whose_key_it_was(
    app: Flask, client: FlaskClient, follow: Callable[..., Stream], submit: Any
) -> None:
    services = app.extensions["darkroom"]
    stream = follow(events_of(submit()))
    stream.until("state")
    database_file = Path(services.database.url.removeprefix("sqlite:///"))
    away = database_file.rename(database_file.with_suffix(".away"))
    database_file.mkdir()
    services.keys.forget()
    stream.until_comment("still here")
    stream.until_comment("still here")
    database_file.rmdir()
    away.rename(database_file)


def test_streams_end_when_the_process_is_told_to(app: Flask, follow: Callable[..., Stream], submit: Any) -> None:
    streams = [follow(events_of(submit())), follow("/api/v1/events")]
    for stream in streams:
        stream.until_comment("still here")
    app.extensions["darkroom"].background.end_waits()
    for stream in streams:
        stream.until_comment("come back")
        assert list(stream) == []


def test_stream_opened_after_the_end_was_told_ends_at_once(
    app: Flask, follow: Callable[..., Stream], submit: Any
) -> None:
    job = submit()
    app.extensions["darkroom"].background.end_waits()
    assert names(list(follow(events_of(job)))) == ["queued"]


def test_stream_of_a_job_that_is_deleted_meanwhile_ends(
    app: Flask, follow: Callable[..., Stream], submit: Any, valkey: Any
) -> None:
    services = app.extensions["darkroom"]
    job = submit()
    stream = follow(events_of(job))
    stream.until("state")
    valkey.stop()  # the next look into SQL finds the job gone
    jobs.cancel(services.database, UUID(job["id"]), owner="local")
    jobs.delete_ended(services.database, UUID(job["id"]))
    assert names(list(stream)) in ([], ["canceled", "done"])


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_streams_hold_no_connection_while_they_wait(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"web_waiters": 100}))
    client = app.test_client()
    job = client.post("/api/v1/jobs", json={"prompt": "a red house"}).json
    streams = [Stream(client, events_of(job)) for _ in range(40)]
    for stream in streams:
        stream.until("state")
    assert client.get(job["urls"]["self"]).status_code == 200
    for stream in streams:
        stream.close()
    app.extensions["darkroom"].background.stop()
    app.extensions["darkroom"].database.dispose()
