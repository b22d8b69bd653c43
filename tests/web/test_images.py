"""Pictures on their way from the storage to a browser."""

from typing import Any

import httpx
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


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-199", 100, 199),
        ("bytes=500000-", 500000, 512008),
        ("bytes=-9", 512000, 512008),
        ("bytes=0-999999999", 0, 512008),
        ("bytes=-999999999", 0, 512008),
        ("bytes=512008-", 512008, 512008),
    ],
)
def test_range_is_answered_with_just_that_part(
    client: FlaskClient, image: Any, asked: str, first: int, last: int
) -> None:
    whole = client.get(image["url"]).data
    assert len(whole) == 512009
    response = client.get(image["url"], headers={"Range": asked})
    assert response.status_code == 206
    assert response.data == whole[first : last + 1]
    assert response.headers["Content-Range"] == f"bytes {first}-{last}/512009"
    assert response.content_length == last - first + 1
    assert response.headers["ETag"] == f'"{image["sha256"]}"'


@pytest.mark.parametrize("asked", ["bytes=512009-", "bytes=999999-9999999", "bytes=-0"])
def test_range_behind_the_end_is_416_with_the_size(client: FlaskClient, image: Any, asked: str) -> None:
    response = client.get(image["url"], headers={"Range": asked})
    assert response.status_code == 416
    assert response.headers["Content-Range"] == "bytes */512009"
    assert response.json
    assert response.json["code"] == "range_not_satisfiable"


@pytest.mark.parametrize(
    "asked", ["bytes=5-1", "bytes=-", "bytes=0-1,4-5", "lines=0-1", "bytes=x-", "bytes=1-" + "9" * 30]
)
def test_range_that_is_none_of_ours_gets_the_whole_picture(client: FlaskClient, image: Any, asked: str) -> None:
    response = client.get(image["url"], headers={"Range": asked})
    assert (response.status_code, len(response.data)) == (200, 512009)
    assert response.headers["Accept-Ranges"] == "bytes"


def test_range_of_another_version_gets_the_whole_picture(client: FlaskClient, image: Any) -> None:
    same = {"Range": "bytes=0-9", "If-Range": f'"{image["sha256"]}"'}
    assert client.get(image["url"], headers=same).status_code == 206
    assert client.get(image["url"], headers=same | {"If-Range": '"other"'}).status_code == 200


def test_walk_is_the_first_pictures_and_only_where_there_is_one(
    settings: Settings, client: FlaskClient, worker: Any, submit: Any
) -> None:
    job = submit(walk=True)
    claim = worker.develop(has_walk=True)
    (image,) = client.get(job["urls"]["self"]).json["images"]
    walk = client.get(image["walk_url"])
    assert (walk.status_code, walk.content_type, walk.data) == (200, "image/webp", b"RIFFwalk")
    assert walk.headers["ETag"] not in {image["sha256"], client.get(image["url"]).headers["ETag"]}
    assert claim.params.walk

    submit()
    worker.develop()
    other = client.get("/api/v1/jobs?limit=1").json["jobs"][0]["images"][0]
    assert other["walk_url"] is None
    assert client.get(other["url"] + "?variant=walk").status_code == 404


def test_public_storage_gives_pictures_out_itself(
    settings: Settings, s3: Any, client: FlaskClient, image: Any, submit: Any
) -> None:
    public = settings.model_copy(update={"s3_public_endpoint_url": s3.endpoint_url})
    direct = create_app(public, with_background=False).test_client()
    response = direct.get(image["url"] + "?download=1")
    assert response.status_code == 302
    assert response.headers["Location"].startswith(s3.endpoint_url)
    found = httpx.get(response.headers["Location"])
    assert found.content == client.get(image["url"]).data
    assert found.headers["Content-Disposition"].startswith("attachment; filename=")
    assert found.headers["Content-Type"] == "image/png"
    assert response.headers["Cache-Control"] == "private, max-age=450"
    assert f"img-src 'self' data: blob: {s3.endpoint_url};" in direct.get("/gallery").headers["Content-Security-Policy"]
