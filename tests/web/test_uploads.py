"""Pictures that people send: taken by what they are, never by what they say, and made anew."""

import struct
import zlib
from base64 import b64encode
from io import BytesIO
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from darkroom import jobs
from darkroom.errors import InvalidParameters
from darkroom.web.uploads import LARGEST_SIDE, MOST_UPLOAD_BYTES, MOST_UPLOAD_PIXELS, SMALLEST_SIDE, PictureReader

UPLOADS = "/api/v1/uploads"
MISSING = "01a2045d-65c5-7697-ac09-40880b426809"


def picture(kind: str = "PNG", size: tuple[int, int] = (32, 16), mode: str = "RGB", **how: Any) -> bytes:
    made = BytesIO()
    Image.new(mode, size, 200 if mode in {"L", "P"} else None).save(made, kind, **how)
    return made.getvalue()


def bare_png(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def read(body: bytes) -> Any:
    return PictureReader().read(body, field="file")


def refusal(body: bytes) -> str:
    with pytest.raises(InvalidParameters) as refused:
        read(body)
    (error,) = refused.value.errors
    assert error.field == "file"
    return error.problem


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("as_form", [True, False])
def test_upload_is_stored_as_a_png_of_ours(
    app: Flask, client: FlaskClient, bucket: None, kind: str, as_form: bool
) -> None:
    body = picture(kind)
    sent = {"data": {"file": (BytesIO(body), "../../evil.svg")}} if as_form else {"data": body}
    content_type = "multipart/form-data" if as_form else "application/octet-stream"
    response = client.post(UPLOADS, content_type=content_type, **sent)
    assert response.status_code == 201, response.text
    upload = response.json
    assert response.headers["Location"] == f"{UPLOADS}/{upload['id']}"
    assert client.get(response.headers["Location"]).json == upload
    stored = app.extensions["darkroom"].storage.get(stored_key(app, upload["id"]))
    assert len(stored) == upload["num_bytes"]
    with Image.open(BytesIO(stored)) as found:
        assert (found.format, found.size) == ("PNG", (32, 16)) == ("PNG", (upload["width"], upload["height"]))


def stored_key(app: Flask, upload_id: str) -> str:
    return jobs.get_upload(app.extensions["darkroom"].database, UUID(upload_id), owner="local").key


def test_nothing_that_came_with_a_picture_is_kept_and_it_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    exif[0x010E] = "where I live"
    body = picture("JPEG", (32, 16), exif=exif, comment=b"where I live", icc_profile=b"where I live")
    assert body.count(b"where I live") == 3
    safe = read(body)
    assert (safe.width, safe.height) == (16, 32)
    assert b"where I live" not in safe.body
    with Image.open(BytesIO(safe.body)) as found:
        found.load()
        assert found.info == {}


def test_text_of_a_png_is_dropped() -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("parameters", "a secret prompt")
    assert b"secret" not in read(picture(pnginfo=notes)).body


@pytest.mark.parametrize(
    ("mode", "expected"), [("RGBA", "RGBA"), ("LA", "RGBA"), ("L", "RGB"), ("P", "RGB"), ("1", "RGB")]
)
def test_picture_of_any_mode_becomes_color_and_keeps_what_is_clear(mode: str, expected: str) -> None:
    with Image.open(BytesIO(read(picture(mode=mode)).body)) as found:
        assert found.mode == expected


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM", "AVIF"])
def test_other_formats_are_refused_by_their_content(kind: str) -> None:
    assert refusal(picture(kind)) == "cannot be read as a picture"


@pytest.mark.parametrize(
    "body", [b"", b"x", b"<svg xmlns='http://www.w3.org/2000/svg'/>", picture()[:40], b"%!PS-Adobe"]
)
def test_what_is_no_picture_is_refused(body: bytes) -> None:
    assert refusal(body) == "cannot be read as a picture"


@pytest.mark.parametrize("size", [(4096, 4097), (LARGEST_SIDE + 1, 8), (65535, 65535), (2**31 - 1, 2**31 - 1)])
def test_bomb_is_refused_by_what_its_header_says(size: tuple[int, int]) -> None:
    assert "pixels" in refusal(bare_png(*size))


@pytest.mark.parametrize("size", [(SMALLEST_SIDE, SMALLEST_SIDE), (LARGEST_SIDE, SMALLEST_SIDE), (4096, 4096)])
def test_picture_at_its_limits_is_taken(size: tuple[int, int]) -> None:
    assert size[0] * size[1] <= MOST_UPLOAD_PIXELS
    safe = read(picture("PNG", size))
    assert (safe.width, safe.height) == size


@pytest.mark.parametrize(
    "size", [(SMALLEST_SIDE - 1, 64), (64, SMALLEST_SIDE - 1), (LARGEST_SIDE + 1, 64), (4104, 4096)]
)
def test_picture_beyond_its_limits_is_refused(size: tuple[int, int]) -> None:
    assert f"{size[0]} x {size[1]} pixels" in refusal(picture("PNG", size))


def test_bytes_have_a_limit_at_which_a_picture_is_still_taken(client: FlaskClient, bucket: None) -> None:
    body = picture()
    full = body + bytes(MOST_UPLOAD_BYTES - len(body))
    assert read(full).width == 32
    assert "bytes" in refusal(full + b"\0")
    assert client.post(UPLOADS, data=full, content_type="image/png").status_code == 201
    too_large = client.post(UPLOADS, data=full + b"\0", content_type="image/png")
    assert (too_large.status_code, too_large.json["code"]) == (413, "body_too_large")
    # By hand: the test client leaves the file open in which it puts together a form of this size.
    head = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    form = head + full + b"\r\n--edge--\r\n"
    assert client.post(UPLOADS, data=form, content_type="multipart/form-data; boundary=edge").status_code == 201


def test_other_routes_still_take_a_megabyte_at_most(bare_client: FlaskClient) -> None:
    response = bare_client.post("/api/v1/jobs", data=b"x" * (1024 * 1024 + 1), content_type="application/json")
    assert response.status_code == 413


@pytest.mark.parametrize("content_type", ["text/html", "application/json", ""])
def test_other_content_types_are_415(bare_client: FlaskClient, content_type: str) -> None:
    response = bare_client.post(UPLOADS, data=picture(), content_type=content_type)
    assert response.status_code == 415


def test_form_without_a_file_is_refused_by_field(bare_client: FlaskClient) -> None:
    response = bare_client.post(UPLOADS, data={"other": "x"}, content_type="multipart/form-data")
    assert (response.status_code, response.json["errors"][0]["field"]) == (422, "file")


def test_page_of_another_site_may_not_upload(bare_client: FlaskClient) -> None:
    form = {"file": (BytesIO(picture()), "a.png")}
    headers = {"Origin": "https://evil.example"}
    response = bare_client.post(UPLOADS, data=form, content_type="multipart/form-data", headers=headers)
    assert response.status_code == 403


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's remarks on damaged EXIF
@given(at=st.integers(0, 4000), value=st.integers(0, 255), cut=st.integers(0, 4000))
def test_no_damage_breaks_anything(kind: str, at: int, value: int, cut: int) -> None:
    body = bytearray(picture(kind, (40, 40), exif=Image.Exif().tobytes()))
    body[at % len(body)] = value
    try:
        read(bytes(body[: max(1, len(body) - cut % len(body))]) if cut % 3 == 0 else bytes(body))
    except InvalidParameters:
        return


@pytest.fixture
def upload(client: FlaskClient, bucket: None) -> Any:
    return client.post(UPLOADS, data=picture(), content_type="image/png").json


def test_job_begins_from_an_upload(app: Flask, submit: Any, upload: Any) -> None:
    job = submit(init_image=upload["id"], mask=upload["id"], strength=0.5)
    key = stored_key(app, upload["id"])
    assert (job["params"]["init_image"], job["params"]["mask"], job["params"]["strength"]) == (key, key, 0.5)


def test_job_begins_from_an_earlier_picture(client: FlaskClient, submit: Any, worker: Any) -> None:
    submit()
    claim = worker.develop()
    image = client.get(f"/api/v1/jobs/{claim.job_id}").json["images"][0]
    assert submit(init_image=image["id"])["params"]["init_image"] == f"jobs/{claim.job_id}/1/0.png"


def test_job_begins_from_a_data_url(app: Flask, submit: Any, bucket: None) -> None:
    job = submit(init_image="data:image/png;base64," + b64encode(picture()).decode())
    assert app.extensions["darkroom"].storage.get(job["params"]["init_image"]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "reference",
    [
        MISSING,
        "x",
        f"job:{MISSING}/0",
        "job:x/0",
        "uploads/a/b.png",
        "jobs/a/1/0.png",
        "data:,x",
        "data:image/png;base64,!",
        "data:image/png;base64,eA==",
    ],
)
@pytest.mark.parametrize("field", ["init_image", "mask"])
def test_what_names_no_picture_is_refused_by_field(
    client: FlaskClient, bucket: None, upload: Any, reference: str, field: str
) -> None:
    body = {"prompt": "a", "init_image": upload["id"]} | {field: reference}
    response = client.post("/api/v1/jobs", json=body)
    assert response.status_code == 422
    assert [error["field"] for error in response.json["errors"]] == [field]
    assert client.get("/api/v1/jobs").json["jobs"] == []


def test_deleted_upload_is_closed_to_new_jobs(client: FlaskClient, upload: Any) -> None:
    assert client.delete(f"{UPLOADS}/{upload['id']}").status_code == 204
    assert client.delete(f"{UPLOADS}/{upload['id']}").status_code == 404
    assert client.get(f"{UPLOADS}/{upload['id']}").status_code == 404
    assert client.post("/api/v1/jobs", json={"prompt": "a", "init_image": upload["id"]}).status_code == 422


def test_storage_that_is_away_is_503_and_names_no_upload(bare_client: FlaskClient) -> None:
    response = bare_client.post(UPLOADS, data=picture(), content_type="image/png")
    assert (response.status_code, response.json["code"]) == (503, "storage_unavailable")
