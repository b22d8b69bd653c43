"""What a page that lies open is told: HTML that says where it goes, until all is told."""

import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient

from darkroom import jobs, keys
from darkroom.config import Settings
from darkroom.events import ProgressBoard
from darkroom.keys import Quotas
from darkroom.previews import PreviewBoard
from darkroom.web import create_app

WEBP = b"RIFF\x04\x00\x00\x00WEBP"
ENDED = "event: ended"


class LivePage:
    """A page's stream, read a message at a time."""

    def __init__(self, client: FlaskClient, path: str) -> None:
        self.response = client.get(path)
        assert self.response.status_code == 200, self.response.text
        self._chunks = (bytes(chunk).decode() for chunk in self.response.response)  # type: ignore[arg-type]

    def until(self, *words: str) -> str:
        """Read on until a message has all these words, and return it."""
        read = []
        for chunk in self._chunks:
            read.append(chunk)
            if all(word in chunk for word in words):
                return chunk
        raise AssertionError(f"the stream ended without {words}: {read}")

    def rest(self) -> list[str]:
        """Read to the end."""
        return list(self._chunks)


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    """An application with its loops, where hearts beat fast."""
    app = create_app(settings.model_copy(update={"stream_heartbeat_seconds": 0.2, "web_waiters": 2}))
    yield app
    app.extensions["darkroom"].background.stop()
    app.extensions["darkroom"].database.dispose()


@pytest.fixture
def follow(client: FlaskClient) -> Iterator[Callable[[str], LivePage]]:
    """Open a stream; it is closed at the end of the test."""
    opened: list[LivePage] = []

    def follow(path: str) -> LivePage:
        opened.append(LivePage(client, path))
        return opened[-1]

    yield follow
    for page in opened:
        page.response.close()


def live_path(job: Any) -> str:
    return f"{job['urls']['page']}/live"


@pytest.mark.timeout(60)
def test_job_page_is_told_of_its_place_its_steps_its_previews_and_its_end(
    app: Flask, settings: Settings, follow: Any, worker: Any, submit: Any
) -> None:
    job = submit(num_images=2)
    page = follow(live_path(job))
    first = page.until("Next in the line.", "<title>Waiting · Darkroom</title>")
    assert "#announcement" not in first, "nothing has happened yet"

    claim = worker.claim()
    assert "A worker has it." in page.until('hx-target="#announcement"')
    app.extensions["darkroom"].progress.publish({claim.job_id: {"stage": "denoise", "step": 3, "num_steps": 20}})
    assert "#announcement" not in page.until("<title>3/20 Developing", "Step 3 of 20."), "steps are not said aloud"
    PreviewBoard(settings.redis_url).publish(claim.job_id, 1, step=4, body=WEBP)
    app.extensions["darkroom"].progress.publish({claim.job_id: {"stage": "denoise", "step": 4, "num_steps": 20}})
    assert "data:image/webp;base64," in page.until('hx-target="#frame-1"', "Step 4 of 20.")

    jobs.fail(worker.database, claim.job_id, attempt=claim.attempt, code="x", message="no")
    assert "It could not be developed." in page.until('hx-target="#announcement"')
    assert page.rest() == [f"{ENDED}\ndata: \n\n"]


@pytest.mark.timeout(60)
def test_what_is_told_needs_no_nonce(follow: Any, worker: Any, submit: Any) -> None:
    job = submit()
    page = follow(live_path(job))
    worker.develop()
    told = "".join([page.until("Developed"), *page.rest()])
    assert set(re.findall(r"\shx-[\w:-]+", told)) == {" hx-target", " hx-swap"}
    assert "csrf_token" not in told


@pytest.mark.timeout(60)
def test_who_comes_back_after_the_end_is_told_of_it(follow: Any, worker: Any, submit: Any) -> None:
    job = submit()
    worker.develop()
    page = follow(live_path(job))
    assert "Developed in" in page.until('hx-target="#announcement"')
    assert page.rest() == [f"{ENDED}\ndata: \n\n"]


@pytest.mark.timeout(60)
def test_waiting_job_is_told_when_its_place_changes_without_a_word_of_its_own(
    client: FlaskClient, follow: Any, submit: Any
) -> None:
    first, second, third = submit(), submit(), submit()
    page = follow(live_path(third))
    page.until("2 jobs ahead of it.")
    client.post(f"{first['urls']['self']}/cancel", json={})
    page.until("1 job ahead of it.")  # it may have looked because of the word that it was submitted
    client.post(f"{second['urls']['self']}/cancel", json={})
    page.until("Next in the line.")


@pytest.mark.timeout(60)
def test_page_of_a_job_that_is_deleted_comes_back_to_find_it_gone(
    client: FlaskClient, follow: Any, submit: Any
) -> None:
    job = submit()
    page = follow(live_path(job))
    page.until("Next in the line.")
    client.delete(job["urls"]["self"])
    assert ENDED not in "".join(page.rest())
    assert client.get(live_path(job)).status_code == 404


@pytest.mark.timeout(60)
def test_stream_ends_with_the_key_that_opened_it_and_gives_its_place_back(
    app: Flask, client: FlaskClient, submit: Any
) -> None:
    services = app.extensions["darkroom"]
    key, text = keys.create(services.database, name="ann", owner="ann", scopes=("read", "submit"), quotas=Quotas())
    services.keys.forget()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {text}"
    page = LivePage(client, live_path(submit()))
    page.until("Next in the line.")
    assert services.waiting.num_taken == 1
    keys.revoke(services.database, UUID(str(key.id)))
    services.keys.forget()
    assert ENDED not in "".join(page.rest())
    page.response.close()
    assert services.waiting.num_taken == 0


@pytest.mark.timeout(60)
def test_comparison_is_told_of_each_picture_and_ends_with_the_last(
    client: FlaskClient, settings: Settings, follow: Any, worker: Any
) -> None:
    fields = {"prompt": "a red house", "seed": 7, "walk": True, "priority": "interactive"}
    batch = client.post("/api/v1/jobs/batch", json={"jobs": [fields, fields | {"prompt": "a blue house"}]}).json
    page = follow(f"/compare/{batch['id']}/live")
    page.until("#standing-0", "Next in the line.", "<title>0 of 2 done")

    first = worker.develop(has_walk=True)
    told = page.until("<title>1 of 2 done", "#frame-0")
    assert f"/api/v1/jobs/{first.job_id}/images/0?variant=walk" in told
    assert "#announcement" not in told

    second = worker.claim()
    PreviewBoard(settings.redis_url).publish(second.job_id, 0, step=4, body=WEBP)
    ProgressBoard(settings.redis_url).publish({second.job_id: {"stage": "denoise", "step": 4, "num_steps": 20}})
    told = page.until("#frame-1", "data:image/webp;base64,", "Step 4 of 20.")
    assert "#standing-0" not in told, "what has not changed is not told again"

    client.post(f"/api/v1/jobs/{second.job_id}/cancel", json={})
    assert "All 2 have ended." in page.until("<title>2 of 2 done")
    assert page.rest() == [f"{ENDED}\ndata: \n\n"]


def test_page_that_has_nothing_to_hear_hears_a_heartbeat(
    client: FlaskClient, submit: Any, worker: Any, follow: Any
) -> None:
    submit()
    page = follow(f"/jobs/{worker.claim().job_id}/live")
    assert page.until("event: heartbeat") == "event: heartbeat\ndata: \n\n"
