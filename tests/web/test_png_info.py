"""A picture's file, sent to be asked how it was made."""

from io import BytesIO

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from darkroom.picture_metadata import PictureParameters, embedded
from darkroom.web.uploads import MOST_UPLOAD_BYTES

PATH = "/api/v1/png-info"
HOUSE = PictureParameters(prompt="a red house", width=64, height=64, num_inference_steps=4, sampler="euler", seed=7)


def picture(**texts):
    chunks = PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    buffer = BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "png", pnginfo=chunks)
    return buffer.getvalue()


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream"])
def test_file_as_the_body_is_read(bare_client, content_type):
    texts = embedded(HOUSE)
    response = bare_client.post(PATH, data=picture(**texts), content_type=content_type)
    assert response.status_code == 200
    assert response.json == {"text": texts["parameters"], "parameters": HOUSE.known}


def test_file_of_a_form_is_read(bare_client):
    response = bare_client.post(PATH, data={"file": (BytesIO(picture(**embedded(HOUSE))), "house.png")})
    assert response.json["parameters"]["prompt"] == "a red house"


def test_file_that_says_nothing_is_no_error(bare_client):
    response = bare_client.post(PATH, data=picture(), content_type="image/png")
    assert (response.status_code, response.json) == (200, {"text": None, "parameters": {}})


@pytest.mark.parametrize("body", [b"", b"no picture", picture()[:30]])
def test_what_is_no_picture_is_refused(bare_client, body):
    response = bare_client.post(PATH, data=body, content_type="image/png")
    assert response.status_code == 422
    assert [error["field"] for error in response.json["errors"]] == ["file"]


@pytest.mark.parametrize(("num_over", "status"), [(-1, 200), (0, 200), (1, 413)])
def test_file_is_read_up_to_the_limit_of_uploads(bare_client, num_over, status):
    body = picture()
    body += bytes(MOST_UPLOAD_BYTES + num_over - len(body))
    assert bare_client.post(PATH, data=body, content_type="image/png").status_code == status


def test_other_content_is_refused(bare_client):
    assert bare_client.post(PATH, json={"image": "data:"}).status_code == 415
