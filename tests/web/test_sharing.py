"""Links that show a job's pictures to whoever has them: what they show, and when they end."""

from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image as Picture

from darkroom import keys
from darkroom.keys import Quotas
from darkroom.picture_files import encode
from darkroom.picture_metadata import embedded, parameters_of
from darkroom.storage import image_key
from darkroom.web.limits import LINK_REQUESTS_PER_MINUTE
from darkroom.web.pages.shared import Share

PROMPT = "a boat that only Ann has thought of"
SECRETS = {"negative_prompt": "everything that Ann dislikes", "seed": 271828182}


@pytest.fixture
def shared(client: FlaskClient, worker: Any, submit: Any) -> Any:
    """A job whose picture's file says all that a worker writes into one."""
    job = submit(prompt=PROMPT, **SECRETS)
    claim = worker.develop()
    texts = embedded(parameters_of(claim.params, model=claim.model, seed=claim.params.seed))
    body = encode(Picture.new("RGB", (96, 64), "red"), "png", quality=90, texts=texts)
    worker.storage.put(image_key(claim.job_id, claim.attempt, 0, "png"), body, content_type="image/png")
    return job


@pytest.fixture
def link(browser: Any, shared: Any) -> str:
    """The way of a link to the job, as its owner made it."""
    page = browser.open(f"{shared['urls']['page']}?days=7")
    [address] = [tag["href"] for tag in page.all("a") if tag.get("id") == "link"]
    assert address.startswith("http://localhost/shared/")
    return urlsplit(address).path


@pytest.fixture
def stranger(app: Flask, shared: Any, link: str) -> FlaskClient:
    """Somebody without a key, at a door that asks for one."""
    services = app.extensions["darkroom"]
    keys.create(services.database, name="ann", owner="ann", scopes=("read",), quotas=Quotas())
    services.keys.forget()
    stranger = app.test_client()
    assert stranger.get(shared["urls"]["page"]).status_code == 303, "the door asks for a key"
    return stranger


def test_link_shows_the_pictures_and_the_prompt_and_nothing_else(stranger: FlaskClient, link: str, shared: Any) -> None:
    response = stranger.get(link)
    assert response.status_code == 200
    assert PROMPT in response.text
    told = response.text.replace(link, "")
    for secret in (SECRETS["negative_prompt"], str(SECRETS["seed"]), shared["id"], "local", "euler", "by-hand"):
        assert secret not in told
    assert response.headers["X-Robots-Tag"] == "noindex"
    assert "/gallery" not in response.text, "a guest is led nowhere else"

    picture = stranger.get(f"{link}/0")
    assert (picture.status_code, picture.content_type) == (200, "image/png")
    assert "no-store" not in picture.headers["Cache-Control"]
    with Picture.open(BytesIO(picture.data)) as image:
        assert (image.size, image.getpixel((5, 5)), image.info) == ((96, 64), (255, 0, 0), {})
    assert shared["id"] not in str(picture.headers)


def test_picture_that_somebody_has_already_is_not_read_again_until_the_link_ends(
    app: Flask, client: FlaskClient, link: str, shared: Any, worker: Any
) -> None:
    first = client.get(f"{link}/0")
    has_it = {"If-None-Match": first.headers["ETag"]}
    worker.storage.delete([image_key(UUID(shared["id"]), 1, 0, "png")])
    again = client.get(f"{link}/0", headers=has_it)
    assert (again.status_code, again.data) == (304, b"")
    assert again.headers["Cache-Control"] == first.headers["Cache-Control"] == "private, max-age=3600"
    client.delete(shared["urls"]["self"])
    assert client.get(f"{link}/0", headers=has_it).status_code == 404


def test_link_that_is_asked_for_without_end_is_answered_so_often_and_no_other_suffers(client: FlaskClient) -> None:
    answers = [client.head("/shared/x/0").status_code for _ in range(LINK_REQUESTS_PER_MINUTE + 1)]
    assert answers == [404] * LINK_REQUESTS_PER_MINUTE + [429]
    refused = client.get("/shared/x")
    assert int(refused.headers["Retry-After"]) <= 60
    assert f"at most {LINK_REQUESTS_PER_MINUTE} per 1 minute are answered" in refused.text
    assert client.get("/shared/y").status_code == 404


def test_link_leads_to_no_other_picture(stranger: FlaskClient, link: str) -> None:
    assert stranger.get(f"{link}/1").status_code == 404
    assert stranger.get(f"{link}/../0").status_code == 404


def test_link_ends_on_its_day(app: Flask, stranger: FlaskClient, shared: Any) -> None:
    with app.test_request_context():
        past = Share(UUID(shared["id"]), datetime.now(UTC) - timedelta(seconds=1)).token
    for path in (f"/shared/{past}", f"/shared/{past}/0"):
        response = stranger.get(path)
        assert response.status_code == 410
        assert PROMPT not in response.text


@pytest.mark.parametrize("end", ["x", "", "/"])
def test_link_that_was_changed_leads_nowhere(stranger: FlaskClient, link: str, end: str) -> None:
    assert stranger.get(link[:-1] + end).status_code == 404


def test_link_ends_with_its_job(client: FlaskClient, link: str, shared: Any) -> None:
    client.delete(shared["urls"]["self"])
    assert client.get(link).status_code == 404
    assert client.get(f"{link}/0").status_code == 404


def test_job_without_pictures_cannot_be_shared(browser: Any, submit: Any) -> None:
    page = browser.open(f"{submit()['urls']['page']}?days=7")
    assert "/shared/" not in page.html


def test_link_is_good_for_as_long_as_was_asked(browser: Any, shared: Any) -> None:
    assert browser.open(f"{shared['urls']['page']}?days=8").status_code == 422
    page = browser.open(f"{shared['urls']['page']}?days=30")
    day = datetime.now(UTC) + timedelta(days=30)
    assert f"until {day.day} {day:%b %Y}" in page.words
