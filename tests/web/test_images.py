"""Pictures on their way from the storage to a browser."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from darkroom.config import Settings
from darkroom.storage import Storage
from darkroom.web import create_app


@pytest.fixture
def image(client: FlaskClient, worker: Any, submit: Any) -> Any:
    """The document of a picture that is stored."""
    job = submit()
    worker.develop()
    return client.get(job["urls"]["self"]).json["images"][0]


def test_picture_arrives_whole_and_as_what_it_is(client: FlaskClient, image: Any) -> None:
    response = client.get(image["url"])
    assert response.status_code == 200
    assert response.content_type == "image/png"
    assert len(response.data) == image["num_bytes"] == response.content_length
    assert response.headers["ETag"] == f'"{image["sha256"]}"'
    assert response.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert response.headers["Content-Disposition"].startswith("inline")


def test_thumbnail_is_another_file_with_another_tag(client: FlaskClient, image: Any) -> None:
    response = client.get(image["thumb_url"])
    assert response.content_type == "image/webp"
    assert response.data.startswith(b"RIFF")
    assert response.headers["ETag"] != f'"{image["sha256"]}"'


def test_download_has_a_file_name_of_ours(client: FlaskClient, image: Any) -> None:
    disposition = client.get(image["url"] + "?download=1").headers["Content-Disposition"]
    job_id = image["url"].split("/")[4]
    assert disposition == f'attachment; filename="darkroom-{job_id}-0.png"'


def test_browser_that_has_the_picture_is_told_so_without_asking_the_storage(
    settings: Settings, client: FlaskClient, image: Any
) -> None:
    away = settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:1"})
    response = (
        create_app(away, with_background=False)
        .test_client()
        .get(image["url"], headers={"If-None-Match": f'"{image["sha256"]}"'})
    )
    assert response.status_code == 304
    assert response.data == b""


def test_head_tells_the_size_and_gives_the_connection_back(client: FlaskClient, image: Any) -> None:
    for _ in range(100):  # more than the pool has
        response = client.head(image["url"])
        assert response.content_length == image["num_bytes"]


@pytest.mark.parametrize("n", ["1", "-1", "x", "0x0", "00", "9" * 5000, "%D9%A0", "0.5"])
def test_picture_that_is_not_there_is_404(client: FlaskClient, image: Any, n: str) -> None:
    response = client.get(image["url"][:-1] + n)
    assert response.status_code == 404
    assert response.json
    assert response.json["code"] == "unknown_image"


def test_unknown_variant_is_refused(client: FlaskClient, image: Any) -> None:
    response = client.get(image["url"] + "?variant=huge")
    assert response.status_code == 422
    assert response.json
    assert response.json["errors"][0]["field"] == "variant"


def test_pictures_of_a_job_that_has_not_ended_do_not_exist(client: FlaskClient, worker: Any, submit: Any) -> None:
    job = submit()
    worker.claim()
    assert client.get(job["urls"]["self"] + "/images/0").status_code == 404


def test_file_that_the_storage_lost_is_502(settings: Settings, client: FlaskClient, worker: Any, submit: Any) -> None:
    job = submit()
    claim = worker.develop()
    Storage(settings).delete([f"jobs/{job['id']}/{claim.attempt}/0.png"])
    response = client.get(job["urls"]["self"] + "/images/0")
    assert response.status_code == 502
    assert response.json
    assert response.json["code"] == "picture_missing"
