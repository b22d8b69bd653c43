"""Every way to ask for something that cannot be had, and what is said about it."""

import json
from io import BytesIO
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st

MEBIBYTE = 1024 * 1024
HUGE = "9" * 5000

# (the body as sent, the field that is refused)
REFUSED = {
    "no prompt": ("{}", "prompt"),
    "empty prompt": ('{"prompt": ""}', "prompt"),
    "blank prompt": ('{"prompt": " \\n\\t"}', "prompt"),
    "prompt of 10,000 characters": (json.dumps({"prompt": "x" * 10_000}), "prompt"),
    "prompt one too long": (json.dumps({"prompt": "x" * 2001}), "prompt"),
    "prompt is a number": ('{"prompt": 7}', "prompt"),
    "prompt is a boolean": ('{"prompt": true}', "prompt"),
    "prompt is null": ('{"prompt": null}', "prompt"),
    "prompt is a list": ('{"prompt": ["a"]}', "prompt"),
    "lone surrogate": ('{"prompt": "\\ud800"}', "prompt"),
    "NUL byte": ('{"prompt": "a\\u0000b"}', "prompt"),
    "lone surrogate in the negative prompt": ('{"prompt": "a", "negative_prompt": "\\udfff"}', "negative_prompt"),
    "NUL byte in the negative prompt": ('{"prompt": "a", "negative_prompt": "\\u0000"}', "negative_prompt"),
    "negative width": ('{"prompt": "a", "width": -64}', "width"),
    "width of nothing": ('{"prompt": "a", "width": 0}', "width"),
    "width between multiples": ('{"prompt": "a", "width": 129}', "width"),
    "width too large": ('{"prompt": "a", "width": 1024}', "width"),
    "width as a fraction": ('{"prompt": "a", "width": 128.5}', "width"),
    "width as a float": ('{"prompt": "a", "width": 128.0}', "width"),
    "width as text": ('{"prompt": "a", "width": "128"}', "width"),
    "width as a boolean": ('{"prompt": "a", "width": true}', "width"),
    "width null": ('{"prompt": "a", "width": null}', "width"),
    "huge height": (f'{{"prompt": "a", "height": {HUGE}}}', "height"),
    "height out of every double": ('{"prompt": "a", "height": 1e400}', "height"),
    "no steps": ('{"prompt": "a", "num_inference_steps": 0}', "num_inference_steps"),
    "too many steps": ('{"prompt": "a", "num_inference_steps": 101}', "num_inference_steps"),
    "negative guidance": ('{"prompt": "a", "guidance_scale": -0.1}', "guidance_scale"),
    "infinite guidance": ('{"prompt": "a", "guidance_scale": 1e400}', "guidance_scale"),
    "minus infinite guidance": ('{"prompt": "a", "guidance_scale": -1e400}', "guidance_scale"),
    "guidance as a boolean": ('{"prompt": "a", "guidance_scale": true}', "guidance_scale"),
    "huge guidance": (f'{{"prompt": "a", "guidance_scale": {HUGE}}}', "guidance_scale"),
    "guidance of 400 digits": (f'{{"prompt": "a", "guidance_scale": {"9" * 400}}}', "guidance_scale"),
    "huge seed": (f'{{"prompt": "a", "seed": {HUGE}}}', "seed"),
    "huge negative seed": (f'{{"prompt": "a", "seed": -{HUGE}}}', "seed"),
    "seed one too large": ('{"prompt": "a", "seed": 4294967296}', "seed"),
    "negative seed": ('{"prompt": "a", "seed": -1}', "seed"),
    "seed as a boolean": ('{"prompt": "a", "seed": false}', "seed"),
    "no pictures": ('{"prompt": "a", "num_images": 0}', "num_images"),
    "too many pictures": ('{"prompt": "a", "num_images": 9}', "num_images"),
    "unknown sampler": ('{"prompt": "a", "sampler": "fast"}', "sampler"),
    "sampler as an object": ('{"prompt": "a", "sampler": {}}', "sampler"),
    "unknown format": ('{"prompt": "a", "format": "gif"}', "format"),
    "format of svg": ('{"prompt": "a", "format": "svg"}', "format"),
    "quality too large": ('{"prompt": "a", "quality": 101}', "quality"),
    "unknown model": ('{"prompt": "a", "model": "nothing"}', "model"),
    "model as a path": ('{"prompt": "a", "model": "../../etc"}', "model"),
    "model as a number": ('{"prompt": "a", "model": 1}', "model"),
    "model null": ('{"prompt": "a", "model": null}', "model"),
    "model of a lone surrogate": ('{"prompt": "a", "model": "\\ud800"}', "model"),
    "unknown priority": ('{"prompt": "a", "priority": "first"}', "priority"),
    "priority as a number": ('{"prompt": "a", "priority": 0}', "priority"),
    "priority as a list": ('{"prompt": "a", "priority": ["bulk"]}', "priority"),
    "deadline of nothing": ('{"prompt": "a", "deadline_seconds": 0}', "deadline_seconds"),
    "negative deadline": ('{"prompt": "a", "deadline_seconds": -1}', "deadline_seconds"),
    "deadline as a boolean": ('{"prompt": "a", "deadline_seconds": true}', "deadline_seconds"),
    "deadline as text": ('{"prompt": "a", "deadline_seconds": "60"}', "deadline_seconds"),
    "deadline never": ('{"prompt": "a", "deadline_seconds": 1e400}', "deadline_seconds"),
    "deadline after the longest": ('{"prompt": "a", "deadline_seconds": 604801}', "deadline_seconds"),
    "huge deadline": (f'{{"prompt": "a", "deadline_seconds": {HUGE}}}', "deadline_seconds"),
    "deadline null": ('{"prompt": "a", "deadline_seconds": null}', "deadline_seconds"),
    "unknown field": ('{"prompt": "a", "steps": 3}', "steps"),
    "state is not for the sender": ('{"prompt": "a", "state": "succeeded"}', "state"),
    "owner is not for the sender": ('{"prompt": "a", "owner": "me"}', "owner"),
    "field of no name": ('{"prompt": "a", "": 1}', ""),
    "field twice": ('{"prompt": "a", "prompt": "b"}', "prompt"),
    "field twice, further in": ('{"prompt": "a", "more": {"b": 1, "b": 2}}', "b"),
    "body is a list": ("[]", "body"),
    "body is a string": ('"a red house"', "body"),
    "body is a number": ("7", "body"),
    "body is null": ("null", "body"),
}

# The body as sent, which is no JSON at all.
MALFORMED = {
    "nothing": b"",
    "half an object": b'{"prompt": "a"',
    "trailing comma": b'{"prompt": "a",}',
    "single quotes": b"{'prompt': 'a'}",
    "NaN": b'{"prompt": "a", "guidance_scale": NaN}',
    "Infinity": b'{"prompt": "a", "guidance_scale": Infinity}',
    "-Infinity": b'{"prompt": "a", "guidance_scale": -Infinity}',
    "raw NUL byte": b'{"prompt": "a\x00b"}',
    "bytes that are not UTF-8": b'{"prompt": "\xff"}',
    "a surrogate in UTF-8": b'{"prompt": "\xed\xa0\x80"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"prompt": "a"}',
    "deep nesting": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep nesting of objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a form": b"prompt=a+red+house",
}


def post(client: FlaskClient, body: bytes | str, content_type: str = "application/json") -> Any:
    return client.post("/api/v1/jobs", data=body, content_type=content_type)


def num_jobs(client: FlaskClient) -> int:
    return len(client.get("/api/v1/jobs?limit=100").json["jobs"])


@pytest.mark.parametrize(("body", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_field_is_named_with_its_problem_and_limit(bare_client: FlaskClient, body: str, field: str) -> None:
    before = num_jobs(bare_client)
    response = post(bare_client, body)

    assert response.status_code == 422
    assert response.content_type == "application/problem+json"
    assert response.json["code"] == "invalid_parameters"
    assert field in [error["field"] for error in response.json["errors"]]
    for error in response.json["errors"]:
        assert error.keys() == {"field", "problem", "limit"}
        assert error["problem"]
        assert error["limit"]
    assert num_jobs(bare_client) == before


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_json_is_400(bare_client: FlaskClient, body: bytes) -> None:
    response = post(bare_client, body)
    assert response.status_code == 400
    assert response.content_type == "application/problem+json"
    assert response.json["code"] == "malformed_json"
    assert response.json["detail"]


def test_every_bad_field_is_listed_at_once(bare_client: FlaskClient) -> None:
    response = post(bare_client, '{"prompt": "", "width": 1, "seed": -1, "priority": "x", "deadline_seconds": 0}')
    fields = {error["field"] for error in response.json["errors"]}
    assert fields == {"prompt", "width", "seed", "priority", "deadline_seconds"}


def test_field_that_cannot_be_read_hides_no_other(bare_client: FlaskClient) -> None:
    response = post(bare_client, '{"prompt": 1, "width": "wide", "height": 513, "seed": -1, "fast": true}')
    fields = [error["field"] for error in response.json["errors"]]
    assert sorted(fields) == ["fast", "height", "prompt", "seed", "width"]


def test_values_at_their_limits_are_taken_as_they_are(bare_client: FlaskClient) -> None:
    body = {"prompt": "x" * 2000, "width": 512, "height": 64, "num_inference_steps": 100, "guidance_scale": 30}
    body |= {"seed": 4294967295, "num_images": 8, "quality": 100, "format": "webp", "sampler": "ddim"}
    response = bare_client.post("/api/v1/jobs", json=body)
    assert response.status_code == 202
    assert response.json["params"] | body == response.json["params"]


def test_number_of_many_digits_costs_no_time(bare_client: FlaskClient) -> None:
    response = post(bare_client, f'{{"prompt": "a", "seed": {"9" * 1_000_000}}}')
    assert (response.status_code, response.json["errors"][0]["field"]) == (422, "seed")


@pytest.mark.parametrize("body", ['{"prompt": "a", "NAME": 1}', '{"NAME": 1, "NAME": 2}'], ids=["unknown", "twice"])
def test_name_of_a_field_is_not_echoed_at_any_length(bare_client: FlaskClient, body: str) -> None:
    response = post(bare_client, body.replace("NAME", "x" * 400_000))
    assert response.status_code == 422
    assert len(response.data) < 2000


def test_body_of_one_mebibyte_is_read_and_a_longer_one_is_413(bare_client: FlaskClient) -> None:
    body = json.dumps({"prompt": "a red house"})
    assert post(bare_client, body.ljust(MEBIBYTE)).status_code == 202
    response = post(bare_client, body.ljust(MEBIBYTE + 1))
    assert response.status_code == 413
    assert response.json["code"] == "body_too_large"
    assert str(MEBIBYTE) in response.json["detail"]


@pytest.mark.parametrize(("num_bytes", "status"), [(MEBIBYTE - 1, 202), (MEBIBYTE, 413), (2 * MEBIBYTE, 413)])
def test_body_of_undeclared_length_is_held_to_the_limit_too(
    bare_client: FlaskClient, num_bytes: int, status: int
) -> None:
    body = BytesIO(b'{"prompt": "a red house"}'.ljust(num_bytes))
    chunked = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    response = bare_client.post(
        "/api/v1/jobs", input_stream=body, content_type="application/json", environ_overrides=chunked
    )
    assert response.status_code == status


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "application/jsonp",
     "application/json; charset=utf-16", "text/json"],
)  # fmt: skip
def test_body_that_is_not_declared_json_is_415(bare_client: FlaskClient, content_type: str) -> None:
    response = post(bare_client, '{"prompt": "a red house"}', content_type)
    assert response.status_code == 415
    assert response.json["code"] == "unsupported_media_type"


def test_declared_charset_of_utf_8_is_fine(bare_client: FlaskClient) -> None:
    assert post(bare_client, '{"prompt": "a red house"}', "application/json; charset=UTF-8").status_code == 202


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\ud800", "a\x00"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
FIELDS = st.sampled_from(
    ["prompt", "negative_prompt", "model", "width", "height", "num_inference_steps", "guidance_scale", "sampler",
     "seed", "num_images", "format", "quality", "priority", "deadline_seconds", "owner"]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(body=VALUES | st.dictionaries(FIELDS | st.text(), VALUES))
def test_no_json_body_breaks_anything(bare_client: FlaskClient, body: Any) -> None:
    response = post(bare_client, json.dumps(body))
    assert response.status_code in {202, 400, 422}
    if response.status_code == 202:
        assert {name: body[name] for name in body.keys() & response.json["params"].keys()}.items() <= {
            **response.json["params"]
        }.items()


@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=200))
def test_no_bytes_break_anything(bare_client: FlaskClient, body: bytes) -> None:
    assert post(bare_client, body).status_code in {202, 400, 422}
