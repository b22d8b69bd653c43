"""AUTOMATIC1111's API, by requests shaped as Open WebUI, LibreChat and SillyTavern send them."""

import json
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image as Picture

from darkroom import jobs, keys, picture_metadata
from darkroom.config import Settings
from darkroom.events import ProgressBoard
from darkroom.jobs import JobState
from darkroom.keys import Quotas
from darkroom.web import create_app

MODEL = "darkroom-seeded"
LISTS = (
    *("upscalers", "latent-upscale-modes", "sd-vae", "sd-modules", "loras", "hypernetworks", "face-restorers"),
    *("realesrgan-models", "prompt-styles", "extensions", "script-info"),
)


def client_of(deployment: Any, owner: str = "ann") -> httpx.Client:
    """What the web UI's clients have: user and password. The password is the key."""
    url = f"{deployment.url}/sdapi/v1/"
    return httpx.Client(base_url=url, auth=("anybody", deployment.keys[owner]), timeout=60)


@pytest.fixture
def client(deployment: Any) -> Iterator[httpx.Client]:
    with client_of(deployment) as client:
        yield client


def opened(text: str) -> Picture.Image:
    return Picture.open(BytesIO(b64decode(text)))


def librechat(prompt: str) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "negative_prompt": "fog",
        "cfg_scale": 4.5,
        "steps": 22,
        "sampler_name": "DPM++ 2M Karras",
        "width": 128,
        "height": 128,
    }


def sillytavern(prompt: str, **fields: Any) -> dict[str, Any]:
    """Everything it sends, its own address and password too."""
    form = {
        "url": "http://127.0.0.1:8000",
        "auth": "anybody:dk_secret",
        "prompt": prompt,
        "negative_prompt": "",
        "sampler_name": "Euler",
        "scheduler": "karras",
        "steps": 5,
        "cfg_scale": 7,
        "width": 128,
        "height": 64,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 2,
        "hr_additional_modules": [],
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "seed": -1,
        "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
    }
    return form | fields


def test_request_of_librechat_gets_what_it_parses(client: httpx.Client, deployment: Any) -> None:
    answer = client.post("txt2img", json=librechat("a red house")).json()
    info = json.loads(answer["info"])
    assert opened(answer["images"][0]).size == (128, 128)
    assert info["seed"] == info["all_seeds"][0] == deployment.jobs()[0].params.seed
    read = picture_metadata.parse(info["infotexts"][0])
    assert (read.prompt, read.negative_prompt, read.seed) == ("a red house", "fog", info["seed"])
    assert deployment.jobs()[0].params.sampler == "dpmpp_2m_karras"


def test_request_of_sillytavern_is_taken(client: httpx.Client, deployment: Any) -> None:
    answer = client.post("txt2img", json=sillytavern("a boat")).json()
    assert opened(answer["images"][0]).size == (128, 64)
    params = deployment.jobs()[0].params
    assert (params.sampler, params.num_inference_steps, params.strength) == ("euler_karras", 5, None)


def test_requests_of_open_webui_are_taken(client: httpx.Client, deployment: Any) -> None:
    options = client.get("options").json()
    assert options["sd_model_checkpoint"] == MODEL
    assert [model["title"] for model in client.get("sd-models").json()] == [MODEL, "darkroom-128"]
    body = {"prompt": "a red house", "batch_size": 2, "width": 64, "height": 64, "seed": 30}
    answer = client.post("txt2img", json=body).json()
    assert [opened(each).convert("L").getpixel((0, 0)) for each in answer["images"]] == [30, 31]
    info = json.loads(answer["info"])
    assert info["all_seeds"] == [30, 31]
    assert [picture_metadata.parse(text).seed for text in info["infotexts"]] == [30, 31]
    assert answer["parameters"] == body


def test_random_seed_is_another_each_time(client: httpx.Client, deployment: Any) -> None:
    for _ in range(2):
        client.post("txt2img", json={"prompt": "x", "seed": -1, "steps": 1})
    first, second = deployment.jobs()[:2]
    assert first.params.seed != second.params.seed


def test_picture_is_developed_anew(client: httpx.Client, encoded: Callable[..., bytes], deployment: Any) -> None:
    picture, mask = (b64encode(encoded(color)).decode() for color in ("blue", "white"))
    sent = {"init_images": [f"data:image/png;base64,{picture}"], "mask": mask, "denoising_strength": 0.4, "n_iter": 2}
    answer = client.post("img2img", json=sillytavern("a boat", **sent)).json()
    assert [opened(each).convert("RGB").getpixel((0, 0)) for each in answer["images"]] == [(0, 0, 255)] * 2
    assert "init_images" not in answer["parameters"]
    params = deployment.jobs()[0].params
    assert params.strength == 0.4
    assert params.init_image
    assert params.mask


def test_progress_and_interrupt_are_about_the_callers_jobs_by_this_api(
    client: httpx.Client, deployment: Any, until: Callable[..., None]
) -> None:
    answers: list[Any] = []
    call = threading.Thread(target=lambda: answers.append(client.post("txt2img", json=librechat("wait:never"))))
    call.start()
    with client_of(deployment, "bob") as bob, deployment.client("ann") as native:
        other = native.post("/api/v1/jobs", json={"prompt": "wait:never"}).json()["id"]
        until(lambda: client.get("progress").json()["progress"] > 0)
        told = client.get("progress").json()
        assert (told["state"]["job_count"], told["state"]["sampling_steps"]) == (1, 22)
        assert 0 < told["progress"] <= 1
        assert bob.get("progress").json()["state"]["job_count"] == 0
        assert bob.post("interrupt").status_code == 200
        assert client.get("progress").json()["state"]["job_count"] == 1
        assert client.post("interrupt").status_code == 200
        call.join(30)
        assert native.get(f"/api/v1/jobs/{other}").json()["state"] in {"queued", "running"}
        native.post(f"/api/v1/jobs/{other}/cancel")
    assert (answers[0].status_code, answers[0].json()["images"]) == (200, [])
    assert client.get("progress").json()["progress"] == 0


def test_failed_job_is_an_error(client: httpx.Client) -> None:
    response = client.post("txt2img", json=librechat("fail"))
    assert response.status_code == 500
    assert "not a number" in response.json()["detail"]


def test_metadata_of_a_picture_is_read(client: httpx.Client) -> None:
    [picture] = client.post("txt2img", json=librechat("a red house")).json()["images"]
    for image in (picture, f"data:image/png;base64,{picture}"):
        told = client.post("png-info", json={"image": image}).json()
        assert told["info"].startswith("a red house\nNegative prompt: fog\n")
        assert told["items"] == {"parameters": told["info"]}
        assert told["parameters"]["prompt"] == "a red house"


def test_picture_that_tells_nothing_has_no_metadata(client: httpx.Client, encoded: Callable[..., bytes]) -> None:
    told = client.post("png-info", json={"image": b64encode(encoded()).decode()}).json()
    assert told == {"info": "", "items": {}, "parameters": {}}


def test_samplers_and_schedulers_are_offered_by_their_titles(client: httpx.Client) -> None:
    names = [each["name"] for each in client.get("samplers").json()]
    assert {"Euler", "Euler a", "DPM++ 2M"} <= set(names)
    assert len(names) == len(set(names))
    assert not [name for name in names if "Karras" in name]
    schedulers = client.get("schedulers").json()
    assert [each["name"] for each in schedulers] == ["automatic", "karras", "exponential", "beta"]
    assert [each["label"] for each in schedulers] == ["Automatic", "Karras", "Exponential", "Beta"]


@pytest.mark.parametrize("name", LISTS)
def test_list_of_what_is_not_there_is_empty(client: httpx.Client, name: str) -> None:
    assert client.get(name).json() == []


def test_wrong_password_is_told_so(deployment: Any) -> None:
    with httpx.Client(base_url=f"{deployment.url}/sdapi/v1/", auth=("ann", "dk_wrong")) as stranger:
        response = stranger.get("options")
    assert response.status_code == 401
    assert response.json()["detail"]


# What follows asks the application itself.

TWO_MODELS = """
default = "darkroom-seeded"
[models.other]
family = "sd"
source = "seeded:8"
[models.other.limits]
samplers = ["euler"]
[models.other.defaults]
sampler = "euler"
"""


@pytest.fixture
def app(settings: Settings, tmp_path: Any) -> Iterator[Flask]:
    """An application with two models that lets one wait, and not for long."""
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(TWO_MODELS)
    app = create_app(
        settings.model_copy(update={"web_waiters": 1, "compat_wait_seconds": 0.1, "catalog": catalog}),
        with_background=False,
    )
    yield app
    app.extensions["darkroom"].background.stop()
    app.extensions["darkroom"].database.dispose()


def post(client: FlaskClient, path: str, body: Any, **how: Any) -> Any:
    return client.post(f"/sdapi/v1/{path}", json=body, **how)


def test_chosen_model_is_its_owners_alone(app: Flask, settings: Settings) -> None:
    client = app.test_client()
    assert post(client, "options", {"sd_model_checkpoint": "other", "samples_format": "webp"}).json is None
    assert client.get("/sdapi/v1/options").json["sd_model_checkpoint"] == "other"
    post(client, "txt2img", {"prompt": "x"})
    post(client, "txt2img", {"prompt": "x", "override_settings": {"sd_model_checkpoint": MODEL}})
    database = app.extensions["darkroom"].database
    assert [job.model for job in jobs.list_jobs(database, owner="local")] == [MODEL, "other"]
    key = {"Authorization": f"Bearer {key_of(app)}"}
    assert client.get("/sdapi/v1/options", headers=key).json["sd_model_checkpoint"] == MODEL
    assert client.get("/api/v1/models", headers=key).json["default"] == MODEL


def key_of(app: Flask) -> str:
    made = keys.create(
        app.extensions["darkroom"].database, name="bob", owner="bob", scopes=("read", "submit"), quotas=Quotas()
    )
    app.extensions["darkroom"].keys.forget()
    return made[1]


def test_chosen_model_that_is_gone_gives_way_to_the_default(app: Flask, settings: Settings) -> None:
    post(app.test_client(), "options", {"sd_model_checkpoint": "other"})
    bare = create_app(settings, with_background=False)
    assert bare.test_client().get("/sdapi/v1/options").json["sd_model_checkpoint"] == MODEL
    bare.extensions["darkroom"].database.dispose()


def test_unknown_model_is_not_chosen(app: Flask) -> None:
    client = app.test_client()
    assert post(client, "options", {"sd_model_checkpoint": "tent"}).status_code == 404
    body = {"prompt": "x", "override_settings": {"sd_model_checkpoint": "tent"}}
    assert post(client, "txt2img", body).status_code == 404
    assert client.get("/sdapi/v1/options").json["sd_model_checkpoint"] == MODEL


def test_picture_that_is_late_is_told_of_and_its_job_goes_on(app: Flask) -> None:
    client = app.test_client()
    response = post(client, "txt2img", {"prompt": "x"})
    assert (response.status_code, response.json["error"]) == (504, "not_in_time")
    [job] = client.get("/api/v1/jobs").json["jobs"]
    assert job["id"] in response.json["detail"]
    assert client.get("/sdapi/v1/progress").json["state"]["job_count"] == 1


def test_call_beyond_the_budget_stores_nothing(app: Flask) -> None:
    client = app.test_client()
    with app.extensions["darkroom"].waiting.place():
        response = post(client, "txt2img", {"prompt": "x"})
    assert response.status_code == 503
    assert response.headers["Retry-After"]
    assert client.get("/api/v1/jobs").json["jobs"] == []


def test_progress_is_that_of_the_oldest_job_that_runs(app: Flask, worker: Any, settings: Settings) -> None:
    client = app.test_client()
    for _ in range(2):
        post(client, "txt2img", {"prompt": "x"})
    first, second = worker.claim().job_id, worker.claim().job_id
    board = ProgressBoard(settings.redis_url)
    board.publish({first: {"stage": "denoise", "step": 5, "num_steps": 20}})
    board.publish({second: {"stage": "denoise", "step": 15, "num_steps": 20}})
    told = client.get("/sdapi/v1/progress").json
    assert (told["progress"], told["state"]["job"], told["state"]["job_count"]) == (0.25, str(first), 2)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"steps": 0}, "steps"),
        ({"steps": 101}, "steps"),
        ({"cfg_scale": 31}, "cfg_scale"),
        ({"width": 56}, "width"),
        ({"seed": -2}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": -1, "n_iter": -1}, "batch_size"),
        ({"n_iter": 0}, "n_iter"),
        ({"n_iter": "2"}, "n_iter"),
        ({"batch_size": 3, "n_iter": 3}, "batch_size"),
        ({"sampler_name": "Euler Sideways"}, "sampler_name"),
        ({"sampler_name": 7}, "sampler_name"),
        ({"sampler_name": "Euler a", "scheduler": "Karras"}, "sampler_name"),
        ({"scheduler": "SGM Uniform"}, "scheduler"),
        ({"scheduler": 7}, "scheduler"),
        *(({name: True}, name) for name in ("enable_hr", "restore_faces", "tiling")),
        ({"alwayson_scripts": {"ADetailer": {}}}, "alwayson_scripts"),
        ({"script_name": "X/Y/Z plot"}, "script_name"),
        ({"subseed_strength": 0.1}, "subseed_strength"),
        ({"styles": ["noir"]}, "styles"),
    ],
)
def test_field_that_is_not_taken_is_refused_by_its_name(bare_client: FlaskClient, body: Any, field: str) -> None:
    response = post(bare_client, "txt2img", {"prompt": "x"} | body)
    assert response.status_code == 422
    assert response.json["detail"].startswith(f"{field} ")


@pytest.mark.parametrize(
    "body",
    [
        {"steps": 1},
        {"steps": 100},
        {"seed": 0},
        {"seed": 2**32 - 1},
        {"seed": None},
        {"batch_size": 2, "n_iter": 4},
        {"sampler_name": "", "scheduler": ""},
        {"sampler_index": "Euler a", "scheduler": "Automatic"},
        {"alwayson_scripts": {}, "styles": [], "script_name": None, "subseed": -1, "eta": 0},
        {"override_settings": None},
    ],
)
def test_field_within_its_limits_is_taken(app: Flask, body: Any) -> None:
    assert post(app.test_client(), "txt2img", {"prompt": "x"} | body).status_code == 504


@pytest.mark.parametrize("sources", [None, [], ["a", "b"], [7], "text", ["no base64!"], [b64encode(b"x").decode()]])
def test_picture_to_begin_from_that_is_none_is_refused(bare_client: FlaskClient, sources: Any) -> None:
    response = post(bare_client, "img2img", {"prompt": "x", "init_images": sources})
    assert response.status_code == 422
    assert response.json["detail"].startswith("init_images ")


def test_mask_that_is_none_is_refused(bare_client: FlaskClient, encoded: Callable[..., bytes]) -> None:
    body = {"prompt": "x", "init_images": [b64encode(encoded()).decode()], "mask": 7}
    assert post(bare_client, "img2img", body).json["detail"].startswith("mask ")


@pytest.mark.parametrize("image", [None, 7, "no base64!", b64encode(b"x").decode()])
def test_metadata_of_what_is_no_picture_is_refused(bare_client: FlaskClient, image: Any) -> None:
    response = post(bare_client, "png-info", {"image": image})
    assert (response.status_code, response.json["detail"][:6]) == (422, "image ")


def test_bodies_with_pictures_may_be_larger_than_others(bare_client: FlaskClient) -> None:
    large = {"prompt": "x", "init_images": ["A" * 2_000_000]}
    assert post(bare_client, "txt2img", large).status_code == 413
    assert post(bare_client, "img2img", large).status_code == 422


def test_interrupt_calls_off_what_waits_too(app: Flask) -> None:
    client = app.test_client()
    post(client, "txt2img", {"prompt": "x"})
    assert client.post("/sdapi/v1/interrupt").json == {}
    [job] = jobs.list_jobs(app.extensions["darkroom"].database, owner="local")
    assert job.state is JobState.CANCELED
