"""OpenAI's images API, by the `openai` package."""

import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import httpx
import openai
import pytest
from flask import Flask
from flask.testing import FlaskClient
from openai import OpenAI
from PIL import Image as Picture
from sqlalchemy import update

from darkroom import jobs
from darkroom.config import Settings
from darkroom.db import now
from darkroom.errors import ConfigError
from darkroom.jobs import JobClass, JobState
from darkroom.models import Job
from darkroom.web import create_app

MODEL = "darkroom-seeded"
GENERATIONS = "/v1/images/generations"


@pytest.fixture
def client(deployment: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{deployment.url}/v1", api_key=deployment.keys["ann"], max_retries=0) as client:
        yield client


def opened(text: str | None) -> Picture.Image:
    assert text
    return Picture.open(BytesIO(b64decode(text)))


def test_picture_comes_as_base64_unless_asked_otherwise(client: OpenAI, deployment: Any) -> None:
    response = client.images.generate(prompt="a red house", model=MODEL, size="64x128", extra_body={"seed": 7})
    assert response.data
    picture = opened(response.data[0].b64_json)
    assert (picture.format, picture.size, picture.convert("L").getpixel((0, 0))) == ("PNG", (64, 128), 7)
    assert (response.size, response.output_format) == ("64x128", "png")
    job = deployment.jobs()[0]
    assert (job.state, job.params.prompt, job.params.seed) == (JobState.SUCCEEDED, "a red house", 7)


def test_several_pictures_each_tell_their_seed(client: OpenAI) -> None:
    response = client.images.generate(prompt="boats", model=MODEL, n=3, extra_body={"seed": 40})
    assert response.data
    assert [image.to_dict()["seed"] for image in response.data] == [40, 41, 42]
    assert [opened(image.b64_json).convert("L").getpixel((0, 0)) for image in response.data] == [40, 41, 42]


def test_picture_comes_as_an_address_for_who_shows_the_key(client: OpenAI, deployment: Any) -> None:
    response = client.images.generate(prompt="a red house", model=MODEL, response_format="url")
    assert response.data
    url = response.data[0].url
    assert url
    assert url.startswith(deployment.url)
    with deployment.client() as own, deployment.client("bob") as other:
        assert own.get(url).headers["Content-Type"] == "image/png"
        assert other.get(url).status_code == 404
    assert httpx.get(url).status_code == 401


def test_extra_fields_reach_the_job(client: OpenAI, deployment: Any) -> None:
    extra = {"steps": 3, "guidance": 2, "negative_prompt": "fog", "sampler": "DPM++ 2M Karras", "metadata": {"a": 1}}
    client.images.generate(prompt="x", model=MODEL, output_format="webp", output_compression=50, extra_body=extra)
    job = deployment.jobs()[0]
    params = job.params
    assert (params.num_inference_steps, params.guidance_scale, params.negative_prompt) == (3, 2, "fog")
    assert (params.sampler, params.format, params.quality) == ("dpmpp_2m_karras", "webp", 50)
    assert job.metadata == {"a": 1}


def test_request_of_librechat_is_taken(client: OpenAI, deployment: Any) -> None:
    options: Any = {"size": "auto", "quality": "auto", "background": "auto", "user": "ann", "n": 1}
    response = client.images.generate(prompt="a red house", model="gpt-image-1", **options)
    assert response.size == "128x128"
    assert deployment.jobs()[0].model == MODEL


def test_call_is_as_urgent_as_the_key_allows(client: OpenAI, deployment: Any, app: Flask) -> None:
    client.images.generate(prompt="a red house", model=MODEL)
    assert deployment.jobs()[0].job_class is JobClass.BULK
    services = app.extensions["darkroom"]
    app.test_client().post(GENERATIONS, json={"prompt": "a red house", "stream": True}).close()
    assert jobs.list_jobs(services.database, owner="local")[0].job_class is JobClass.INTERACTIVE


@pytest.mark.parametrize("name", ["dall-e-3", "dall-e-2", "gpt-image-1"])
def test_name_that_no_model_has_stands_for_the_default(client: OpenAI, name: str) -> None:
    assert client.models.retrieve(name).id == MODEL


def test_models_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "darkroom-128"]


def test_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="a red house", model="flux-13")
    assert caught.value.code == "model_not_found"
    assert MODEL in str(caught.value)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("flux-13")


def test_bad_field_is_named_as_it_was_sent(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a red house", model=MODEL, extra_body={"steps": 101})
    assert (caught.value.param, caught.value.type) == ("steps", "invalid_request_error")
    assert "from 1 to 100" in str(caught.value)


def test_wrong_key_is_told_so(deployment: Any) -> None:
    stranger = OpenAI(base_url=f"{deployment.url}/v1", api_key="dk_wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as caught:
        stranger.models.list()
    assert caught.value.code == "key_unknown"


def test_failed_job_is_told_once(deployment: Any) -> None:
    answers: list[httpx.Response] = []
    with httpx.Client(event_hooks={"response": [answers.append]}) as http:
        patient = OpenAI(base_url=f"{deployment.url}/v1", api_key=deployment.keys["bob"], http_client=http)
        with pytest.raises(openai.InternalServerError, match="not a number"):
            patient.images.generate(prompt="fail", model=MODEL)
    assert len(answers) == 1
    assert len([job for job in deployment.jobs("bob") if job.params.prompt == "fail"]) == 1


def test_stream_tells_partial_pictures_and_the_whole_one(client: OpenAI, deployment: Any) -> None:
    stream = client.images.generate(
        prompt="wait:stream", model=MODEL, stream=True, partial_images=2, extra_body={"steps": 10}
    )
    told: list[Any] = []
    for event in stream:
        told.append(event)
        if len(told) == 2:
            deployment.release("stream")
    assert [event.type.rpartition(".")[2] for event in told] == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in told[:2]] == [0, 1]
    assert opened(told[0].b64_json).format == "WEBP"
    assert opened(told[2].b64_json).format == "PNG"


def test_stream_without_partial_pictures_tells_each_whole_one(client: OpenAI) -> None:
    told = list(client.images.generate(prompt="a red house", model=MODEL, stream=True, n=2))
    assert [event.type for event in told] == ["image_generation.completed"] * 2


def test_stream_of_a_job_that_fails_raises(client: OpenAI) -> None:
    with pytest.raises(openai.APIError, match="not a number"):
        list(client.images.generate(prompt="fail", model=MODEL, stream=True))


def test_edit_begins_from_the_picture(client: OpenAI, encoded: Callable[..., bytes], deployment: Any) -> None:
    response = client.images.edit(
        image=("photo.png", encoded("blue")), prompt="5", model=MODEL, extra_body={"strength": 0.5, "seed": 3}
    )
    assert response.data
    assert opened(response.data[0].b64_json).convert("RGB").getpixel((0, 0)) == (0, 0, 255)
    params = deployment.jobs()[0].params
    assert (params.prompt, params.strength, params.seed, params.mask) == ("5", 0.5, 3, None)


def test_edit_as_a_stream(client: OpenAI, encoded: Callable[..., bytes]) -> None:
    told = list(client.images.edit(image=[encoded("blue")], prompt="a boat", model=MODEL, stream=True))
    assert [event.type for event in told] == ["image_edit.completed"]


def test_retried_request_does_not_pay_twice(deployment: Any) -> None:
    attempts: list[str] = []

    def lose_the_first_answer(response: httpx.Response) -> None:
        if response.request.url.path == GENERATIONS:
            attempts.append(response.request.headers["x-stainless-retry-count"])
            if len(attempts) == 1:
                raise httpx.ReadError("the network is gone")

    before = len(deployment.jobs())
    with httpx.Client(event_hooks={"response": [lose_the_first_answer]}) as http:
        client = OpenAI(base_url=f"{deployment.url}/v1", api_key=deployment.keys["ann"], http_client=http)
        assert client.images.generate(prompt="a house twice", model=MODEL).data
    assert attempts == ["0", "1"]
    assert len(deployment.jobs()) == before + 1


def test_equal_request_that_is_no_retry_is_another_job(client: OpenAI, deployment: Any) -> None:
    before = len(deployment.jobs())
    for _ in range(2):
        client.images.generate(prompt="one house each", model=MODEL)
    first, second = deployment.jobs()[: len(deployment.jobs()) - before]
    assert first.params.seed != second.params.seed


# What follows asks the application itself.


@pytest.fixture
def waiters(settings: Settings) -> Iterator[Flask]:
    """An application that lets one wait, and not for long."""
    app = create_app(settings.model_copy(update={"web_waiters": 1, "compat_wait_seconds": 0.2}))
    yield app
    app.extensions["darkroom"].background.stop()
    app.extensions["darkroom"].database.dispose()


def test_picture_that_is_late_is_told_of_and_its_job_goes_on(waiters: Flask) -> None:
    client = waiters.test_client()
    response = client.post(GENERATIONS, json={"prompt": "a red house"})
    assert (response.status_code, response.json["error"]["code"]) == (504, "not_in_time")
    assert response.headers["Retry-After"]
    [job] = client.get("/api/v1/jobs").json["jobs"]
    assert job["state"] == "queued"
    assert job["id"] in response.json["error"]["message"]
    client.post(GENERATIONS, json={"prompt": "a red house"}, headers={"x-stainless-retry-count": "1"})
    assert len(client.get("/api/v1/jobs").json["jobs"]) == 1


@pytest.mark.parametrize(("age_seconds", "num_jobs"), [(890, 1), (910, 2)])
def test_retry_gets_what_was_made_lately(waiters: Flask, age_seconds: float, num_jobs: int) -> None:
    client, database = waiters.test_client(), waiters.extensions["darkroom"].database
    client.post(GENERATIONS, json={"prompt": "a red house"})
    with database.write() as session:
        session.execute(update(Job).values(created_at=now(-age_seconds)))
    client.post(GENERATIONS, json={"prompt": "a red house"}, headers={"x-stainless-retry-count": "1"})
    assert len(jobs.list_jobs(database, owner="local")) == num_jobs


def test_retry_of_a_request_that_never_arrived_makes_its_job_once(waiters: Flask) -> None:
    client = waiters.test_client()
    for retry_count in ("1", "2"):
        client.post(GENERATIONS, json={"prompt": "a boat"}, headers={"x-stainless-retry-count": retry_count})
    assert len(client.get("/api/v1/jobs").json["jobs"]) == 1


@pytest.mark.parametrize("is_stream", [False, True])
def test_call_beyond_the_budget_stores_nothing(waiters: Flask, is_stream: bool) -> None:
    client = waiters.test_client()
    with waiters.extensions["darkroom"].waiting.place():
        response = client.post(GENERATIONS, json={"prompt": "a red house", "stream": is_stream})
    assert (response.status_code, response.json["error"]["code"]) == (503, "too_many_waiting")
    assert response.headers["Retry-After"]
    assert client.get("/api/v1/jobs").json["jobs"] == []
    assert client.post(GENERATIONS, json={"prompt": "a red house"}).status_code == 504


def test_refused_stream_gives_its_place_back(waiters: Flask) -> None:
    waiting = waiters.extensions["darkroom"].waiting
    for _ in range(2):
        body = {"prompt": "x", "stream": True, "init_image": "01a20405-fb01-7070-bc9a-0d618ca8ebd9"}
        assert waiters.test_client().post(GENERATIONS, json=body).status_code == 400
    assert waiting.num_taken == 0


def test_calls_end_with_the_server(settings: Settings, until: Callable[..., None]) -> None:
    app = create_app(settings)
    services = app.extensions["darkroom"]
    answers: list[Any] = []
    for is_stream in (False, True):
        body = {"prompt": "a red house", "stream": is_stream}
        threading.Thread(
            target=lambda body=body: answers.append(app.test_client().post(GENERATIONS, json=body))
        ).start()
    until(lambda: services.waiting.num_taken == 2)
    services.background.stop()
    until(lambda: len(answers) == 2, seconds=5)
    assert sorted(answer.status_code for answer in answers) == [200, 504]
    [stream] = [answer for answer in answers if answer.status_code == 200]
    assert b'"code": "stopping"' in stream.data
    services.database.dispose()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"partial_images": -1}, "partial_images"),
        ({"partial_images": 4}, "partial_images"),
        ({"partial_images": True}, "partial_images"),
        ({"stream": "yes"}, "stream"),
        ({"response_format": "svg"}, "response_format"),
        ({"quality": 80}, "quality"),
        ({"background": "transparent"}, "background"),
        ({"size": "128"}, "size"),
        ({"size": "128x"}, "size"),
        ({"size": 128}, "size"),
        ({"size": "56x64"}, "width"),
        ({"size": "520x64"}, "width"),
        ({"size": "128x128", "width": 64}, "width"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 0}, "output_compression"),
        ({"output_compression": 101}, "output_compression"),
        ({"num_inference_steps": 2, "steps": 2}, "steps"),
        ({"frame_count": 4}, "frame_count"),
        ({"sampler": "Euler Sideways"}, "sampler"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_field_that_is_not_taken_is_refused_by_its_name(bare_client: FlaskClient, fields: Any, param: str) -> None:
    response = bare_client.post(GENERATIONS, json={"prompt": "a red house"} | fields)
    assert (response.status_code, response.json["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"partial_images": 0},
        {"partial_images": 3},
        {"partial_images": None, "stream": None, "quality": None},
        {"n": 1},
        {"n": 8},
        {"size": "64x64"},
        {"size": "512x512"},
        {"output_compression": 1},
        {"output_compression": 100},
        *({"quality": quality} for quality in ("auto", "standard", "hd", "low", "medium", "high", "xhigh", "max")),
        {"background": "opaque", "moderation": "low", "style": "vivid", "user": "x"},
    ],
)
def test_field_within_its_limits_is_taken(waiters: Flask, fields: Any) -> None:
    response = waiters.test_client().post(GENERATIONS, json={"prompt": "a red house", "model": None} | fields)
    assert response.json["error"]["code"] == "not_in_time"


def edited(client: FlaskClient, **form: Any) -> Any:
    return client.post("/v1/images/edits", data={"prompt": "a boat"} | form, content_type="multipart/form-data")


def test_edit_develops_anew_what_the_mask_leaves_out(
    waiters: Flask, bucket: None, encoded: Callable[..., bytes]
) -> None:
    mask = Picture.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    body = BytesIO()
    mask.save(body, "PNG")
    image = (BytesIO(encoded()), "photo.png")
    response = edited(waiters.test_client(), image=image, mask=(BytesIO(body.getvalue()), "mask.png"))
    assert response.json["error"]["code"] == "not_in_time"
    services = waiters.extensions["darkroom"]
    [job] = jobs.list_jobs(services.database, owner="local")
    assert job.params.mask
    stored = Picture.open(BytesIO(services.storage.get(job.params.mask))).convert("L")
    assert (stored.getpixel((0, 0)), stored.getpixel((63, 0))) == (255, 0)


def test_edit_takes_the_mask_from_a_picture_that_is_transparent(
    waiters: Flask, bucket: None, encoded: Callable[..., bytes]
) -> None:
    edited(waiters.test_client(), image=(BytesIO(encoded((9, 9, 9, 0), mode="RGBA")), "photo.png"))
    [job] = jobs.list_jobs(waiters.extensions["darkroom"].database, owner="local")
    assert job.params.mask


def test_edit_of_no_picture_or_of_two_is_refused(bare_client: FlaskClient, encoded: Callable[..., bytes]) -> None:
    assert edited(bare_client).json["error"]["param"] == "image"
    two = [(BytesIO(encoded()), "1.png"), (BytesIO(encoded()), "2.png")]
    assert edited(bare_client, **{"image[]": two}).json["error"]["param"] == "image"


def test_edit_by_a_mask_without_transparency_is_refused(
    bare_client: FlaskClient, encoded: Callable[..., bytes]
) -> None:
    files = {"image": (BytesIO(encoded()), "1.png"), "mask": (BytesIO(encoded()), "2.png")}
    assert edited(bare_client, **files).json["error"]["param"] == "mask"


def test_edit_of_what_is_no_picture_is_refused(bare_client: FlaskClient) -> None:
    response = edited(bare_client, image=(BytesIO(b"GIF89a"), "1.gif"))
    assert (response.status_code, response.json["error"]["param"]) == (400, "image")


def test_alias_stands_for_its_model_or_the_default(settings: Settings) -> None:
    aliases = ("house=darkroom-seeded", "boat")
    app = create_app(settings.model_copy(update={"model_aliases": aliases}), with_background=False)
    for name in ("house", "boat"):
        assert app.test_client().get(f"/v1/models/{name}").json["id"] == MODEL
    app.extensions["darkroom"].database.dispose()


def test_alias_for_a_model_that_is_not_there_stops_the_start(settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"DARKROOM_MODEL_ALIASES.*no model 'tent'"):
        create_app(settings.model_copy(update={"model_aliases": ("house=tent",)}), with_background=False)


def test_generation_that_is_not_declared_json_is_refused(bare_client: FlaskClient) -> None:
    response = bare_client.post(GENERATIONS, data='{"prompt": "x"}', content_type="text/plain")
    assert (response.status_code, response.json["error"]["code"]) == (415, "unsupported_media_type")
