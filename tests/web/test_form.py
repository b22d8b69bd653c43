"""The form, as a browser without JavaScript has it, and the parts of it that htmx fetches."""

import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from darkroom import fleet
from darkroom.config import Settings
from darkroom.db import Database
from darkroom.fleet import WorkerFacts
from darkroom.params import cost, resolve
from darkroom.picture_metadata import PictureParameters, embedded
from darkroom.web import create_app
from darkroom.web.estimate import Outlook, interval_in_words, outlook_in_words
from darkroom.web.pace import FEWEST_DONE, Eta

MODELS = """
default = "darkroom-seeded"

[models.large]
title = "Large"
family = "sd"
source = "seeded:8"
example_prompts = ["a castle"]

[models.large.defaults]
width = 1024
height = 1024
num_inference_steps = 30
sampler = "ddim"

[models.large.loras]
ink = "ink.safetensors"
chalk = "chalk.safetensors"

[models.heedless]
title = "Heedless"
family = "flux"
source = "seeded:9"

[models.plain]
title = "Plain"
family = "pixart"
source = "seeded:10"
"""
SAME_ORIGIN = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
A1111 = """a boat, ink
Negative prompt: fog
Steps: 7, Sampler: DPM++ 2M Karras, CFG scale: 2.5, Seed: 99, Size: 200x320, Model: somebody-s"""


def a_picture(*, width: int = 40, height: int = 24, format: str = "PNG", **texts: str) -> tuple[BytesIO, str]:
    """A file that a person has, and what its file says."""
    said = PngInfo()
    for name, text in texts.items():
        said.add_text(name, text)
    body = BytesIO()
    Image.effect_noise((width, height), 60).save(body, format, **({"pnginfo": said} if texts else {}))
    body.seek(0)
    return body, f"picture.{format.lower()}"


@pytest.fixture
def shop(settings: Settings, tmp_path: Path, bucket: None) -> Iterator[Flask]:
    """An application with models of several kinds."""
    catalog = tmp_path / "models.toml"
    catalog.write_text(MODELS)
    app = create_app(settings.model_copy(update={"catalog": catalog}), with_background=False)
    yield app
    app.extensions["darkroom"].database.dispose()


@pytest.fixture
def shopper(shop: Flask, open_browser: Any) -> Any:
    """A browser in it."""
    return open_browser(shop.test_client())


@pytest.fixture
def register(app: Flask) -> Callable[..., None]:
    """Have a worker be there."""

    def register(slots: int = 2) -> None:
        database: Database = app.extensions["darkroom"].database
        facts = {"host": "gpu-1", "pid": 1, "device": "cpu", "device_memory_bytes": 1, "fingerprint": "f"}
        held = {"models": ["darkroom-seeded"], "slots": slots, "version": "1"}
        fleet.register(database, WorkerFacts(id=uuid4().hex, **facts, **held))

    return register


def params_of(client: FlaskClient, browser: Any) -> Any:
    """What the job asks for whose page the browser shows."""
    return client.get(f"/api/v1{browser.path}").json["params"]


def test_form_leads_to_the_page_of_a_job_ahead_of_bulk_work(browser: Any, client: FlaskClient) -> None:
    [form] = browser.open("/").forms
    page = browser.send(form, prompt="a red house", seed="7", num_images="2")

    assert browser.path.startswith("/jobs/")
    assert "a red house" in page.words
    assert "Next in the line." in page.words
    assert page.title == "Waiting · Darkroom"
    job = client.get("/api/v1" + browser.path).json
    assert job["priority"] == "interactive"
    assert (job["params"]["seed"], job["params"]["num_images"]) == (7, 2)
    assert (job["params"]["width"], job["params"]["sampler"]) == (128, "euler")


def test_empty_seed_draws_one(browser: Any, client: FlaskClient) -> None:
    [form] = browser.open("/").forms
    assert form.fields["seed"] == ""
    browser.send(form, prompt="a")
    first = client.get("/api/v1" + browser.path).json["params"]["seed"]
    browser.send(form, prompt="a")
    assert client.get("/api/v1" + browser.path).json["params"]["seed"] != first


def test_size_is_a_preset_or_one_s_own(browser: Any, client: FlaskClient) -> None:
    page = browser.open("/")
    presets = [tag["value"] for tag in page.all("input") if tag.get("type") == "radio"]
    assert presets == ["128x128", "112x144", "144x112", "96x168", "168x96", "own"]

    browser.send(page.forms[0], prompt="a", size="96x168")
    params = client.get("/api/v1" + browser.path).json["params"]
    assert (params["width"], params["height"]) == (96, 168)

    browser.send(page.forms[0], prompt="a", size="own", width="200", height="320")
    params = client.get("/api/v1" + browser.path).json["params"]
    assert (params["width"], params["height"]) == (200, 320)


def test_every_shape_fits_a_model_that_takes_no_larger_side_than_its_own(shopper: Any) -> None:
    page = shopper.open("/?model=large")
    presets = [tag["value"] for tag in page.all("input") if tag.get("type") == "radio"]
    assert presets == ["1024x1024", "768x1024", "1024x768", "576x1024", "1024x576", "own"]


def test_line_ends_of_a_browser_are_those_of_a_program(browser: Any, client: FlaskClient) -> None:
    browser.send(browser.open("/").forms[0], prompt="a house\r\nby the sea")
    assert client.get("/api/v1" + browser.path).json["params"]["prompt"] == "a house\nby the sea"


BAD_FIELDS = {
    "prompt": "",
    "negative_prompt": "x" * 2001,
    "width": "129",
    "height": "tall",
    "num_inference_steps": "0",
    "guidance_scale": "nan",
    "seed": "9" * 5000,
    "num_images": "1.5",
    "sampler": "fast",
    "format": "gif",
    "model": "nothing",
}


@pytest.mark.parametrize(("name", "text"), BAD_FIELDS.items())
def test_refused_field_says_why_beside_itself_and_keeps_what_was_typed(browser: Any, name: str, text: str) -> None:
    [form] = browser.open("/").forms
    typed = {"prompt": 'a <red> house & a "boat"', "size": "own", "width": "200", "height": "320", "seed": "11"}
    page = browser.send(form, **typed | {name: text})

    assert page.status_code == 422
    assert browser.path == "/"
    assert f'id="{name}-refused"' in page.html
    assert "It must be" in page.words
    kept = {field: value for field, value in typed.items() if field != name}
    assert page.forms[0].fields | kept == page.forms[0].fields
    if name not in {"sampler", "model", "format"}:
        assert page.forms[0].fields[name] == text
    assert browser.open("/gallery").status_code == 200


@pytest.mark.parametrize("text", ["much", "1_0", "1,5", "1e9", "-", "0x1", "٣", "inf", "1.", "1 2", "9" * 5000])
@pytest.mark.parametrize("name", ["guidance_scale", "num_inference_steps"])
def test_text_that_is_no_plain_number_is_refused(bare_browser: Any, name: str, text: str) -> None:
    page = bare_browser.send(bare_browser.open("/").forms[0], **{"prompt": "a", name: text})
    assert page.status_code == 422
    assert f'id="{name}-refused"' in page.html
    assert page.forms[0].fields[name] == text


def test_form_can_be_corrected_and_sent(browser: Any) -> None:
    [form] = browser.open("/").forms
    [refused] = browser.send(form, prompt="a red house", num_inference_steps="9999").forms
    browser.send(refused, num_inference_steps="5")
    assert browser.path.startswith("/jobs/")


def test_every_refused_field_is_listed_with_a_link_to_it(browser: Any) -> None:
    page = browser.send(browser.open("/").forms[0], prompt="", seed="-1", num_images="99")
    assert "3 fields were not taken" in page.words
    assert {"#prompt", "#seed", "#num_images"} <= {tag.get("href") for tag in page.all("a")}
    ids = {tag["id"] for _, tag in page.tags if "id" in tag}
    assert {"prompt", "seed", "num_images"} <= ids


def test_example_prompts_fill_the_form_by_plain_links(browser: Any) -> None:
    page = browser.open("/")
    links = [tag["href"] for tag in page.all("a") if "prompt=" in tag.get("href", "")]
    assert len(links) == 3
    assert browser.open(links[0]).forms[0].fields["prompt"] == "a red house by the sea at sunset"


def test_address_of_a_form_for_an_unknown_model_says_so(browser: Any) -> None:
    page = browser.open("/?model=nothing&prompt=a+boat")
    assert page.status_code == 404
    assert "no such model" in page.words
    assert page.forms[0].fields["prompt"] == "a boat"


def test_form_without_its_token_does_nothing(client: FlaskClient, browser: Any) -> None:
    [form] = browser.open("/").forms
    for fields in ({"prompt": "a"}, {"prompt": "a", "csrf_token": "x"}):
        response = client.post(form.action, data=fields)
        assert response.status_code == 400
        assert response.content_type.startswith("text/html")
    assert client.get("/api/v1/jobs").json["jobs"] == []


def test_token_of_another_session_is_refused(app: Any, browser: Any) -> None:
    [form] = browser.open("/").forms
    stranger = app.test_client()
    stranger.get("/")
    assert stranger.post("/", data=form.fields | {"prompt": "a"}).status_code == 400


def test_earlier_job_can_be_edited_and_developed_again(
    browser: Any, client: FlaskClient, worker: Any, submit: Any
) -> None:
    asked = {"width": 96, "height": 168, "num_inference_steps": 7, "guidance_scale": 1.5, "sampler": "ddim", "seed": 3}
    job = submit(prompt="a\nboat", negative_prompt="fog", num_images=2, format="webp", quality=70, **asked)
    worker.develop()
    [again] = [tag["href"] for tag in browser.open(job["urls"]["page"]).all("a") if "again=" in tag.get("href", "")]
    browser.send(browser.open(again).forms[0])
    new = client.get("/api/v1" + browser.path).json
    assert new["id"] != job["id"]
    assert new["params"] == job["params"]


def test_latest_jobs_are_listed_below_the_form_whatever_their_state(browser: Any, worker: Any, submit: Any) -> None:
    submit(prompt="one that failed")
    worker.fail("no")
    submit(prompt="one that waits")
    page = browser.open("/")
    assert "one that waits Waiting" in page.words
    assert "one that failed Failed" in page.words


def test_model_can_be_changed_without_javascript_and_keeps_the_prompt(shop: Flask, shopper: Any) -> None:
    client, browser = shop.test_client(), shopper
    [form] = browser.open("/").forms
    assert form.fields["model"] == "darkroom-seeded"

    page = browser.send(form, model="large", prompt="a castle", seed="5", action="switch_model")
    assert browser.path == "/"
    fields = page.forms[0].fields
    assert (fields["model"], fields["prompt"], fields["seed"]) == ("large", "a castle", "5")
    assert (fields["size"], fields["num_inference_steps"], fields["sampler"]) == ("1024x1024", "30", "ddim")
    assert client.get("/api/v1/jobs").json["jobs"] == []
    browser.send(page.forms[0])
    assert client.get("/api/v1" + browser.path).json["model"] == "large"


# Pictures to begin from, and pictures that say how they were made.


def test_picture_sent_with_the_form_is_what_the_job_begins_from(
    browser: Any, client: FlaskClient, bucket: None
) -> None:
    [form] = browser.open("/").forms
    browser.send(form, prompt="the same in winter", strength="0.4", picture=a_picture(format="JPEG"))
    params = params_of(client, browser)
    assert params["init_image"].startswith("uploads/")
    assert params["strength"] == 0.4


def test_strength_means_nothing_without_a_picture(browser: Any, client: FlaskClient) -> None:
    browser.send(browser.open("/").forms[0], prompt="a", strength="0.4")
    assert params_of(client, browser)["strength"] is None


def test_picture_of_a_refused_form_need_not_be_sent_again(browser: Any, client: FlaskClient, bucket: None) -> None:
    [form] = browser.open("/").forms
    page = browser.send(form, prompt="", strength="0.4", picture=a_picture())
    assert page.status_code == 422
    [refused] = page.forms
    [shown] = [tag["src"] for tag in page.all("img")]
    assert shown == f"/uploads/{refused.fields['init_image']}"
    assert client.get(shown).content_type == "image/webp"

    browser.send(refused, prompt="a boat")
    assert refused.fields["init_image"] in params_of(client, browser)["init_image"]


def test_picture_larger_than_any_other_body_is_taken_by_the_form_alone(
    browser: Any, client: FlaskClient, bucket: None
) -> None:
    [form] = browser.open("/").forms
    picture = FileStorage(*a_picture(width=1400, height=1400))
    assert picture.stream.getbuffer().nbytes > 1024 * 1024
    boundary, body = encode_multipart(form.fields | {"action": "begin", "picture": picture})
    sent = {"data": body, "content_type": f'multipart/form-data; boundary="{boundary}"', "headers": SAME_ORIGIN}
    [shown] = re.findall(r'<img src="(/uploads/[^"]+)"', client.post("/", **sent).text)
    assert max(Image.open(BytesIO(client.get(shown).data)).size) == 256
    assert client.post("/theme", **sent).status_code == 413


def test_what_is_no_picture_is_refused_beside_the_file(browser: Any, bucket: None) -> None:
    for action in ("", "begin", "read_picture"):
        sent = {"prompt": "a", "picture": (BytesIO(b"GIF89a"), "x.gif"), "action": action}
        page = browser.send(browser.open("/").forms[0], **sent)
        assert page.status_code == 422
        assert "Cannot be read as a picture." in page.words
        assert 'id="init_image-refused"' in page.html


def test_beginning_without_a_picture_says_that_one_is_missing(bare_browser: Any) -> None:
    page = bare_browser.send(bare_browser.open("/").forms[0], action="begin")
    assert page.status_code == 422
    assert "Is missing." in page.words


def test_picture_can_be_taken_back(browser: Any, client: FlaskClient, bucket: None) -> None:
    [begun] = browser.send(browser.open("/").forms[0], prompt="a", action="begin", picture=a_picture()).forms
    assert begun.fields["init_image"]
    [forgotten] = browser.send(begun, action="forget_picture").forms
    assert "init_image" not in forgotten.fields
    browser.send(forgotten)
    assert params_of(client, browser)["init_image"] is None


def test_use_this_picture_begins_from_it_with_its_words_and_another_seed(
    browser: Any, client: FlaskClient, worker: Any, submit: Any
) -> None:
    job = submit(prompt="a boat", num_images=2, num_inference_steps=7, seed=3, width=96, height=168)
    claim = worker.develop()
    [form] = browser.open(f"/?init={job['id']}/1").forms
    assert form.fields["init_image"] == f"job:{job['id']}/1"
    assert (form.fields["seed"], form.fields["strength"]) == ("", "0.75")
    browser.send(form)
    params = params_of(client, browser)
    assert params["init_image"] == f"jobs/{job['id']}/{claim.attempt}/1.png"
    assert (params["prompt"], params["num_inference_steps"], params["width"]) == ("a boat", 7, 96)
    for nothing in (f"/?init={job['id']}/2", f"/?init={job['id']}", f"/?init={uuid4()}/0", "/?init=x"):
        assert browser.open(nothing).status_code == 404


def test_job_that_begins_from_a_picture_can_be_edited_with_it(
    browser: Any, client: FlaskClient, worker: Any, submit: Any
) -> None:
    source = submit()
    worker.develop()
    body = a_picture()[0].getvalue()
    upload = client.post("/api/v1/uploads", data=body, content_type="image/png").json["id"]
    for picture in (f"job:{source['id']}/0", upload):
        job = submit(init_image=picture, mask=upload, strength=0.35, exact=True, embed_metadata=False, walk=True)
        browser.send(browser.open(f"/?again={job['id']}").forms[0])
        assert params_of(client, browser) == job["params"]


def test_form_drops_a_picture_that_is_not_kept_any_more_and_says_so(
    browser: Any, client: FlaskClient, submit: Any, bucket: None
) -> None:
    def upload() -> str:
        body = a_picture()[0].getvalue()
        return str(client.post("/api/v1/uploads", data=body, content_type="image/png").json["id"])

    kept, gone = upload(), upload()
    [plain] = browser.open("/").forms
    job = submit(init_image=kept, mask=gone, strength=0.4)
    client.delete(f"/api/v1/uploads/{gone}")
    for page in (
        browser.send(plain, action="begin", init_image=gone),  # as a draft asks for it
        browser.open(f"/?again={job['id']}"),
        browser.open(f"/?init_image=job:{uuid4()}/0"),
        browser.open("/?init_image=nonsense"),
    ):
        assert "The picture to begin from is not kept any more." in page.words
        assert "init_image" not in page.forms[0].fields
        assert not [tag for tag in page.all("img") if "/uploads/" in tag["src"]]
    assert browser.send(plain, action="begin", init_image=kept).forms[0].fields["init_image"] == kept


def test_settings_in_a_picture_s_file_fill_the_form(shopper: Any) -> None:
    told = PictureParameters(
        prompt="a boat", width=192, height=320, num_inference_steps=7, guidance_scale=2.5, sampler="euler_a", seed=99
    )
    typed = {"prompt": "old words", "negative_prompt": "old", "num_images": "2"}
    file = a_picture(**embedded(told.model_copy(update={"model": "large"})))
    page = shopper.send(shopper.open("/").forms[0], **typed, action="read_picture", picture=file)
    wanted = {"prompt": "a boat", "negative_prompt": "", "width": "192", "height": "320", "size": "own", "seed": "99"}
    wanted |= {"num_inference_steps": "7", "guidance_scale": "2.5", "sampler": "euler_a", "num_images": "2"}
    fields = page.forms[0].fields
    assert fields | wanted | {"model": "large"} == fields
    assert "Filled in" in page.words
    assert "not taken" not in page.words


def test_what_the_model_does_not_take_of_a_file_s_settings_stands_refused_beside_its_field(shopper: Any) -> None:
    page = shopper.send(shopper.open("/").forms[0], action="read_picture", picture=a_picture(parameters=A1111))
    fields = page.forms[0].fields
    assert (fields["prompt"], fields["negative_prompt"], fields["seed"]) == ("a boat, ink", "fog", "99")
    assert fields["sampler"] == "dpmpp_2m_karras"
    assert "Its model, somebody-s, is not here." in page.words
    assert "not taken" not in page.words, "200x320 suits the seeded model"

    absurd = A1111.replace("200x320", "201x320").replace("Steps: 7", "Steps: 900")
    page = shopper.send(shopper.open("/").forms[0], action="read_picture", picture=a_picture(parameters=absurd))
    assert 'id="width-refused"' in page.html
    assert 'id="num_inference_steps-refused"' in page.html
    assert (page.forms[0].fields["width"], page.forms[0].fields["num_inference_steps"]) == ("201", "900")


def test_picture_that_does_not_say_how_it_was_made_is_begun_from_where_the_model_can(shopper: Any) -> None:
    [form] = shopper.open("/").forms
    page = shopper.send(form, prompt="mine", action="read_picture", picture=a_picture())
    assert "does not say how it was made" in page.words
    assert page.forms[0].fields["init_image"]
    assert page.forms[0].fields["prompt"] == "mine"

    [form] = shopper.open("/?model=plain").forms
    page = shopper.send(form, prompt="mine", action="read_picture", picture=a_picture())
    assert page.status_code == 422
    assert "init_image" not in page.forms[0].fields


# What a model has of its own.


def test_settings_go_back_to_the_model_s_own_and_words_stay(browser: Any) -> None:
    typed = {"prompt": "a boat", "seed": "5", "num_inference_steps": "99999", "size": "own", "width": "64"}
    fields = browser.send(browser.open("/").forms[0], **typed, sampler="ddim", action="reset").forms[0].fields
    assert (fields["prompt"], fields["seed"]) == ("a boat", "5")
    assert (fields["num_inference_steps"], fields["size"], fields["sampler"]) == ("20", "128x128", "euler")


def test_model_that_heeds_no_negative_prompt_is_not_asked_for_one(shopper: Any) -> None:
    assert "negative_prompt" not in shopper.open("/?model=heedless").forms[0].fields
    page = shopper.open("/?model=large")
    assert "negative_prompt" in page.forms[0].fields
    folds = [tag for tag in page.all("details") if tag.get("class") == "fold"]
    assert all("open" not in tag for tag in folds)


def test_loras_act_with_the_weight_beside_their_name(shop: Flask, shopper: Any) -> None:
    [form] = shopper.open("/?model=large").forms
    assert (form.fields["lora.ink"], form.fields["lora.chalk"]) == ("", "")
    shopper.send(form, prompt="a", **{"lora.ink": "0.8", "lora.chalk": " "})
    assert params_of(shop.test_client(), shopper)["loras"] == [{"name": "ink", "weight": 0.8}]
    edited = shopper.open(f"/?again={shopper.path.rpartition('/')[2]}").forms[0]
    assert edited.fields["lora.ink"] == "0.8"
    for wrong in ({"lora.ink": "heavy"}, {"lora.ink": "9"}, {"lora.oil": "1"}):
        page = shopper.send(form, prompt="a", **wrong)
        assert page.status_code == 422
        assert 'id="loras-refused"' in page.html
        assert page.forms[0].fields | wrong == page.forms[0].fields


def test_form_asks_for_the_walk_unless_told_otherwise(browser: Any, client: FlaskClient) -> None:
    [form] = browser.open("/").forms
    browser.send(form, prompt="a", exact="on", unmarked="on")
    params = params_of(client, browser)
    assert (params["walk"], params["exact"], params["embed_metadata"]) == (True, True, False)
    browser.send(form, prompt="a", walk="")
    params = params_of(client, browser)
    assert (params["walk"], params["exact"], params["embed_metadata"]) == (False, False, True)


def test_unticked_box_of_a_refused_form_stays_unticked(bare_browser: Any) -> None:
    [form] = bare_browser.open("/").forms
    del form.fields["walk"]
    assert "walk" not in bare_browser.send(form, prompt="").forms[0].fields


def test_page_begins_with_the_model_and_the_fold_that_this_browser_used_last(shop: Flask, open_browser: Any) -> None:
    client = shop.test_client()
    client.set_cookie("model", "large")
    client.set_cookie("advanced", "open")
    page = open_browser(client).open("/")
    assert page.forms[0].fields["model"] == "large"
    assert "open" in next(tag for tag in page.all("details") if tag.get("id") == "advanced")
    client.set_cookie("model", "one that is gone")
    client.set_cookie("advanced", "")
    page = open_browser(client).open("/")
    assert (page.status_code, page.forms[0].fields["model"]) == (200, "darkroom-seeded")
    assert "open" not in next(tag for tag in page.all("details") if tag.get("id") == "advanced")


# The estimate.


def estimate(client: FlaskClient, **typed: str) -> str:
    response = client.get("/estimate", query_string=typed)
    assert response.status_code == 200
    assert response.content_type.startswith("text/html")
    return response.text


def test_estimate_says_that_no_worker_is_there_and_who_is_ahead(client: FlaskClient, submit: Any) -> None:
    assert estimate(client) == "No worker that holds this model is running: it would wait for one."
    submit(priority="interactive")
    submit(priority="bulk")
    assert estimate(client).endswith("it would wait for one. 1 job is ahead of it."), "bulk work comes after the form"


def test_estimate_says_when_nobody_can_tell(client: FlaskClient, register: Any) -> None:
    register()
    assert estimate(client) == "Next in the line. How long it takes, nobody can tell yet."


def test_estimate_grows_with_the_work_and_with_the_line(
    app: Flask, worker: Any, submit: Any, register: Any, open_browser: Any
) -> None:
    register()
    for _ in range(FEWEST_DONE):
        submit()
        worker.develop(is_stored=False)
    # A process that has only now begun to measure: the other remembers for some seconds that nobody could tell.
    fresh = create_app(app.extensions["darkroom"].settings, with_background=False)
    pace = fresh.extensions["darkroom"].pace
    own = cost(resolve(fresh.extensions["darkroom"].catalog.default, {"prompt": "a", "num_inference_steps": 100}))
    # A million times the work: a worker that develops nothing is so quick that less would be rounded away.
    eta, later = (pace.foresee("darkroom-seeded", each, num_ahead=0) for each in (own, own * 1e6))
    assert eta.max_seconds < later.max_seconds
    client = fresh.test_client()
    assert estimate(client, num_inference_steps="100") == f"{interval_in_words(eta)}. Next in the line."
    submit(priority="interactive")
    assert estimate(client).endswith(". 1 job is ahead of it.")
    assert estimate(client) in open_browser(client).open("/").words
    fresh.extensions["darkroom"].database.dispose()


def test_estimate_of_what_is_not_taken_is_silent(client: FlaskClient) -> None:
    for wrong in ({"width": "129"}, {"num_inference_steps": "many"}, {"lora.ink": "1"}):
        assert estimate(client, **wrong) == ""
    assert estimate(client, model="<b>nothing</b>", init_image="<b>", strength="0.5").startswith("No worker")


@pytest.mark.parametrize(
    ("eta", "words"),
    [
        ((0.2, 0.7), "Less than a second"),
        ((0.2, 1.4), "About 1 s"),
        ((3.6, 4.4), "About 4 s"),
        ((3.6, 40.2), "4 to 40 s"),
        ((80, 119), "80 to 119 s"),
        ((80, 150), "1 to 2 min"),
        ((3000, 7100), "50 to 118 min"),
        ((3000, 20000), "1 to 6 h"),
    ],
)
def test_interval_is_as_precise_as_matters(eta: tuple[float, float], words: str) -> None:
    assert interval_in_words(Eta(*eta)) == words


def test_line_beyond_what_is_counted_is_told_as_such() -> None:
    assert outlook_in_words(Outlook(101, has_worker=True, eta=None)) == (
        "More than 100 jobs are ahead of it. How long it takes, nobody can tell yet."
    )


# What htmx asks for.


def test_form_that_stays_open_gets_the_strip_and_no_page(browser: Any, client: FlaskClient) -> None:
    [form] = browser.open("/").forms
    response = client.post("/", data=form.fields | {"prompt": "a boat"}, headers=SAME_ORIGIN | {"HX-Request": "true"})
    assert response.status_code == 200
    assert (response.headers["HX-Trigger"], response.headers["HX-Retarget"]) == ("submitted", "#recent")
    assert response.text.strip().startswith('<section class="recent" id="recent"')
    assert "a boat" in response.text


def test_everything_htmx_acts_upon_carries_the_nonce(shopper: Any) -> None:
    shopper.send(shopper.open("/").forms[0], prompt="one that waits")
    page = shopper.open("/?model=large")
    powered = [tag for _, tag in page.tags if any(name.startswith("hx-") for name in tag)]
    assert len(powered) > 5
    assert {tag.get("hx-nonce") for tag in powered} == set(re.findall(r'script nonce="([^"]+)"', page.html))


def test_strip_is_told_anew_until_all_of_its_jobs_have_ended(
    app: Flask, client: FlaskClient, worker: Any, submit: Any
) -> None:
    job = submit(prompt="a boat")
    with client.get("/recent/events", buffered=False) as response:
        told = iter(response.response)
        assert "Waiting" in _next_partial(told)
        worker.develop()
        assert f"/api/v1/jobs/{job['id']}/images/0?variant=thumb" in _next_partial(told)
        assert any(b"event: ended" in chunk for chunk in told)
    assert client.get("/recent/events").text.count("hx-partial") == 2, "once, and the end"


def test_frame_of_the_job_that_develops_shows_how_far_it_is(
    app: Flask, client: FlaskClient, worker: Any, submit: Any
) -> None:
    submit()
    claim = worker.claim()
    app.extensions["darkroom"].progress.publish({claim.job_id: {"stage": "denoise", "step": 3, "num_steps": 20}})
    with client.get("/recent/events", buffered=False) as response:
        told = iter(response.response)
        assert "Developing" in _next_partial(told)
        frame = _next_partial(told)
        assert f"#state-{claim.job_id}" in frame
        assert "Step 3 of 20." in frame


def _next_partial(chunks: Iterator[bytes]) -> str:
    return next(text for chunk in chunks if "<hx-partial" in (text := chunk.decode()))
