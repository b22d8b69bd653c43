"""Replicate's predictions, by the `replicate` package."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from io import BytesIO
from typing import Any

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image as Picture
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError
from replicate.helpers import FileOutput

from darkroom import jobs
from darkroom.config import Settings
from darkroom.jobs import JobState
from darkroom.web import create_app

MODEL = "darkroom-seeded"
REF = f"darkroom/{MODEL}"
PREDICTIONS = "/replicate/v1/predictions"


@pytest.fixture
def client_with(deployment: Any) -> Iterator[Callable[[str], Client]]:
    """A client with a key. It leaves its connections open, so they are taken from it in the end."""
    with httpx.HTTPTransport() as transport:
        url = f"{deployment.url}/replicate"
        yield lambda key: Client(api_token=key, base_url=url, transport=transport)


@pytest.fixture
def client(client_with: Callable[[str], Client], deployment: Any) -> Client:
    return client_with(deployment.keys["ann"])


def test_run_gives_files(client: Client, deployment: Any) -> None:
    output: Any = client.run(
        REF, input={"prompt": "a red house", "num_outputs": 2, "output_format": "jpg", "seed": 200}
    )
    assert all(isinstance(file, FileOutput) for file in output)
    pictures = [Picture.open(BytesIO(file.read())) for file in output]
    assert [picture.format for picture in pictures] == ["JPEG", "JPEG"]
    assert deployment.jobs()[0].params.num_images == 2


def test_run_polls_on_when_the_wait_was_too_short(client: Client, deployment: Any, until: Callable[..., None]) -> None:
    outputs: list[Any] = []
    call = threading.Thread(
        target=lambda: outputs.append(client.run(REF, input={"prompt": "wait:run"}, wait=1)), daemon=True
    )
    call.start()
    until(lambda: any(job.params.prompt == "wait:run" and job.state is JobState.RUNNING for job in deployment.jobs()))
    call.join(1.5)
    assert not outputs
    deployment.release("run")
    call.join(30)
    assert [len(output) for output in outputs] == [1]


def test_prediction_that_was_not_waited_for_is_starting(client: Client, deployment: Any) -> None:
    prediction = client.predictions.create(version=MODEL, input={"prompt": "wait:life"})
    assert (prediction.status, prediction.model, prediction.output) == ("starting", MODEL, None)
    deadline = time.monotonic() + 30
    while prediction.progress is None:
        assert time.monotonic() < deadline
        prediction.reload()
    assert prediction.status == "processing"
    assert prediction.progress.total == 20
    deployment.release("life")
    prediction.wait()
    assert prediction.status == "succeeded"
    assert prediction.metrics
    assert prediction.metrics["predict_time"] > 0
    assert prediction.input
    assert prediction.input["num_outputs"] == 1


def test_version_and_name_may_be_said_in_every_way(client: Client) -> None:
    for version in (MODEL, REF, "dall-e-3"):
        prediction = client.predictions.create(version=version, input={"prompt": "x"}, wait=60)
        assert prediction.status == "succeeded"


def test_parameters_reach_the_job(client: Client, deployment: Any, encoded: Callable[..., bytes]) -> None:
    what: Any = {
        "prompt": "a boat",
        "negative_prompt": "fog",
        "width": 64,
        "height": 128,
        "num_inference_steps": 3,
        "guidance_scale": 2.5,
        "scheduler": "DPM++ 2M Karras",
        "image": BytesIO(encoded("blue")),
        "prompt_strength": 0.5,
        "output_format": "webp",
        "output_quality": 70,
    }
    client.predictions.create(version=MODEL, input=what, wait=60, file_encoding_strategy="base64")
    params = deployment.jobs()[0].params
    assert (params.width, params.height, params.num_inference_steps, params.guidance_scale) == (64, 128, 3, 2.5)
    assert (params.sampler, params.strength, params.format, params.quality) == ("dpmpp_2m_karras", 0.5, "webp", 70)
    assert params.init_image


def test_cancel(client: Client, deployment: Any) -> None:
    prediction = client.predictions.create(version=MODEL, input={"prompt": "wait:never"})
    prediction.cancel()
    assert prediction.status == "canceled"
    assert client.predictions.cancel(prediction.id).status == "canceled"
    assert client.predictions.get(prediction.id).status == "canceled"


def test_failed_prediction_raises(client: Client) -> None:
    with pytest.raises(ModelError, match="not a number"):
        client.run(REF, input={"prompt": "fail"})


def test_list_goes_on_page_by_page(client_with: Callable[[str], Client], deployment: Any) -> None:
    client = client_with(deployment.keys["bob"])
    made = [client.predictions.create(version=MODEL, input={"prompt": "wait:never"}).id for _ in range(51)]
    page = client.predictions.list()
    assert page.next
    rest = client.predictions.list(page.next)
    assert [each.id for each in [*page.results, *rest.results]] == made[::-1]
    assert (len(rest.results), rest.next) == (1, None)
    for each in made:
        client.predictions.cancel(each)


def test_refusals_are_told_in_the_clients_words(client: Client, client_with: Callable[[str], Client]) -> None:
    with pytest.raises(ReplicateError, match="num_outputs 9 is out of range"):
        client.run(REF, input={"prompt": "x", "num_outputs": 9})
    with pytest.raises(ReplicateError, match="There is no model 'some/model'"):
        client.run("some/model", input={"prompt": "x"})
    with pytest.raises(ReplicateError, match="This key is not known"):
        client_with("dk_wrong").run(REF, input={"prompt": "x"})
    with pytest.raises(ReplicateError, match="webhook is not taken"):
        client.predictions.create(version=MODEL, input={"prompt": "x"}, webhook="https://example.com/")


# What follows asks the application itself.


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    """An application that lets one wait."""
    app = create_app(settings.model_copy(update={"web_waiters": 1}))
    yield app
    app.extensions["darkroom"].background.stop()
    app.extensions["darkroom"].database.dispose()


def created(client: FlaskClient, *, headers: dict[str, str] | None = None, **body: Any) -> Any:
    return client.post(PREDICTIONS, json={"version": MODEL, "input": {"prompt": "a boat"}} | body, headers=headers)


def claim_when_it_comes(worker: Any) -> None:
    deadline = time.monotonic() + 30
    while not jobs.front_of_queue(worker.database, model="darkroom-seeded", limit=1):
        assert time.monotonic() < deadline
    worker.claim()


def test_wait_that_was_in_vain_is_starting_even_if_the_job_runs(app: Flask, worker: Any) -> None:
    client = app.test_client()
    claiming = threading.Thread(target=claim_when_it_comes, args=(worker,))
    claiming.start()
    response = created(client, headers={"Prefer": "wait=1"})
    claiming.join()
    assert (response.status_code, response.json["status"]) == (201, "starting")
    assert client.get(f"{PREDICTIONS}/{response.json['id']}").json["status"] == "processing"


def test_call_beyond_the_budget_stores_nothing(app: Flask) -> None:
    client = app.test_client()
    with app.extensions["darkroom"].waiting.place():
        response = created(client, headers={"Prefer": "wait"})
        assert created(client).status_code == 201
    assert response.status_code == 503
    assert response.headers["Retry-After"]
    assert len(client.get(PREDICTIONS).json["results"]) == 1


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("1s", 1), ("604800", 604800)]
)
def test_cancel_after_is_the_jobs_deadline(app: Flask, text: str, seconds: int) -> None:
    client = app.test_client()
    made = created(client, headers={"Cancel-After": text}).json
    job = client.get(f"/api/v1/jobs/{made['id']}").json
    left = datetime.fromisoformat(job["deadline_at"]) - datetime.fromisoformat(job["created_at"])
    assert left.total_seconds() == pytest.approx(seconds, abs=0.5)


@pytest.mark.parametrize("text", ["", "0", "soon", "-1", "1m1h", "604801", "169h"])
def test_cancel_after_that_is_no_time_is_refused(bare_client: FlaskClient, text: str) -> None:
    response = created(bare_client, headers={"Cancel-After": text})
    assert (response.status_code, response.json["errors"][0]["field"]) == (422, "Cancel-After")


def test_expired_prediction_is_canceled_in_the_clients_words(app: Flask, until: Callable[..., None]) -> None:
    client = app.test_client()
    made = created(client, headers={"Cancel-After": "1"}).json
    until(lambda: client.get(f"{PREDICTIONS}/{made['id']}").json["status"] == "canceled")
    assert client.get(f"{PREDICTIONS}/{made['id']}").json["error"]


def test_addresses_behind_tls_are_https_and_pictures_are_addresses(app: Flask, worker: Any) -> None:
    client = app.test_client()
    made = created(client).json
    worker.develop()
    path = f"{PREDICTIONS}/{made['id']}"
    [plain] = client.get(path).json["output"]
    assert plain.startswith("data:image/png;base64,")
    behind = client.get(path, headers={"X-Forwarded-Proto": "https"}).json
    assert behind["output"] == [f"https://localhost/api/v1/jobs/{made['id']}/images/0"]
    assert behind["urls"]["get"] == f"https://localhost{path}"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"version": None}, "version"),
        ({"version": 7}, "version"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": {}}, "prompt"),
        ({"input": {"prompt": "x", "aspect_ratio": "1:1"}}, "aspect_ratio"),
        ({"input": {"prompt": "x", "scheduler": "sideways"}}, "scheduler"),
        ({"input": {"prompt": "x", "num_outputs": 0}}, "num_outputs"),
        ({"input": {"prompt": "x", "image": "https://example.com/a.png"}}, "image"),
        ({"webhook_events_filter": ["completed"]}, "webhook_events_filter"),
    ],
)
def test_field_that_is_not_taken_is_refused_by_its_name(bare_client: FlaskClient, body: Any, field: str) -> None:
    response = created(bare_client, **body)
    assert (response.status_code, response.json["errors"][0]["field"]) == (422, field)
