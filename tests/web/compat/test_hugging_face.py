"""Hugging Face's text-to-image, by `huggingface_hub`'s InferenceClient."""

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from darkroom.config import Settings
from darkroom.jobs import JobState
from darkroom.web import create_app

MODEL = "darkroom-seeded"
PATH = f"/hf/models/{MODEL}"


def client_of(deployment: Any, **how: Any) -> InferenceClient:
    return InferenceClient(api_key=deployment.keys["ann"], timeout=60, **how)


def test_every_way_to_name_the_address_gives_a_picture(deployment: Any) -> None:
    url = f"{deployment.url}{PATH}"
    pictures = [
        client_of(deployment, model=url).text_to_image("a red house", seed=9),
        client_of(deployment, base_url=url).text_to_image("a red house", seed=9),
        client_of(deployment).text_to_image("a red house", seed=9, model=url),
    ]
    assert [picture.format for picture in pictures] == ["PNG"] * 3
    assert [picture.convert("L").getpixel((0, 0)) for picture in pictures] == [9] * 3


def test_parameters_reach_the_job(deployment: Any) -> None:
    picture = client_of(deployment, model=f"{deployment.url}{PATH}").text_to_image(
        "a boat",
        negative_prompt="fog",
        width=64,
        height=192,
        num_inference_steps=3,
        guidance_scale=2.5,
        scheduler="DPM++ 2M Karras",
        seed=5,
        extra_body={"walk": True},
    )
    assert picture.size == (64, 192)
    job = deployment.jobs()[0]
    params = job.params
    assert (job.state, params.prompt, params.negative_prompt, params.seed) == (JobState.SUCCEEDED, "a boat", "fog", 5)
    assert (params.num_inference_steps, params.guidance_scale, params.sampler) == (3, 2.5, "dpmpp_2m_karras")
    assert params.walk


def test_answer_tells_the_seed_and_has_the_format_that_is_accepted(deployment: Any) -> None:
    with deployment.client() as client:
        for accept, content_type in [
            ("image/webp", "image/webp"),
            ("*/*", "image/png"),
            ("application/json", "image/png"),
        ]:
            body = {"inputs": "a boat", "parameters": {"seed": 3}, "options": {"wait_for_model": True}}
            response = client.post(PATH, json=body, headers={"Accept": accept})
            assert (response.headers["Content-Type"], response.headers["X-Seed"]) == (content_type, "3")


def test_name_that_stands_for_a_model_is_taken(deployment: Any) -> None:
    with deployment.client() as client:
        assert client.post("/hf/models/dall-e-3", json={"inputs": "a boat"}).status_code == 200


def test_refusals_are_told_in_the_clients_words(deployment: Any) -> None:
    client = client_of(deployment, model=f"{deployment.url}{PATH}")
    with pytest.raises(HfHubHTTPError, match="num_inference_steps 101 is out of range"):
        client.text_to_image("a boat", num_inference_steps=101)
    with pytest.raises(HfHubHTTPError, match="not a number"):
        client.text_to_image("fail")
    with pytest.raises(HfHubHTTPError, match="There is no model 'some/model'"):
        client.text_to_image("a boat", model=f"{deployment.url}/hf/models/some/model")
    with pytest.raises(HfHubHTTPError, match="This key is not known"):
        InferenceClient(api_key="dk_wrong", model=f"{deployment.url}{PATH}").text_to_image("a boat")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "inputs"),
        ({"inputs": ""}, "inputs"),
        ({"inputs": 7}, "inputs"),
        ({"inputs": "x", "parameters": []}, None),
        ({"inputs": "x", "parameters": 7}, "parameters"),
        ({"inputs": "x", "parameters": {"prompt": "y"}}, "prompt"),
        ({"inputs": "x", "parameters": {"inputs": "y"}}, "inputs"),
        ({"inputs": "x", "parameters": {"scheduler": "sideways"}}, "scheduler"),
        ({"inputs": "x", "parameters": {"num_images": 2}}, "num_images"),
        ({"inputs": "x", "parameters": {"model": "y"}}, "model"),
        ({"inputs": "x", "seed": -1}, "seed"),
        ({"inputs": "x", "colour": "red"}, "colour"),
    ],
)
def test_field_that_is_not_taken_is_refused_by_its_name(waiters: Flask, body: Any, field: str | None) -> None:
    response = waiters.test_client().post(PATH, json=body)
    assert response.status_code == (422 if field else 504)
    assert field is None or response.json["error"].startswith(f"{field} ")


@pytest.fixture
def waiters(settings: Settings) -> Iterator[Flask]:
    """An application that lets one wait, and not for long."""
    app = create_app(settings.model_copy(update={"web_waiters": 1, "compat_wait_seconds": 0.1}))
    yield app
    app.extensions["darkroom"].background.stop()
    app.extensions["darkroom"].database.dispose()


def test_picture_that_is_late_is_told_of_and_its_job_goes_on(waiters: Flask) -> None:
    client: FlaskClient = waiters.test_client()
    response = client.post(PATH, json={"inputs": "a boat"})
    assert (response.status_code, response.json["error_type"]) == (504, "not_in_time")
    [job] = client.get("/api/v1/jobs").json["jobs"]
    assert job["id"] in response.json["error"]


def test_call_beyond_the_budget_stores_nothing(waiters: Flask) -> None:
    client: FlaskClient = waiters.test_client()
    with waiters.extensions["darkroom"].waiting.place():
        response = client.post(PATH, json={"inputs": "a boat"})
    assert response.status_code == 503
    assert response.headers["Retry-After"]
    assert client.get("/api/v1/jobs").json["jobs"] == []
