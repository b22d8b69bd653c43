"""The pages, followed as a browser without JavaScript follows them."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient

from darkroom import jobs
from darkroom.config import Settings
from darkroom.web import create_app
from darkroom.web.wording import shown_size

TWO_MODELS = """
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
"""


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


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "]]>"])
def test_prompt_is_text_on_every_page(browser: Any, worker: Any, text: str) -> None:
    page = browser.send(browser.open("/").forms[0], prompt=text)
    worker.develop()
    for path in (browser.path, "/", "/gallery"):
        page = browser.open(path)
        assert "<script>alert" not in page.html
        assert "onerror" not in {name for _, tag in page.tags for name in tag}
        assert "49" not in page.title
    assert browser.open("/?prompt=<script>alert(1)</script>").forms[0].fields["prompt"] == "<script>alert(1)</script>"


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


def test_cancel_button_without_its_token_does_nothing(client: FlaskClient, submit: Any) -> None:
    job = submit()
    assert client.post(f"/jobs/{job['id']}/cancel").status_code == 400
    assert client.get(job["urls"]["self"]).json["state"] == "queued"


def test_job_page_without_javascript_asks_again_only_while_the_job_lives(browser: Any, submit: Any) -> None:
    job = submit()
    refresh = [tag for tag in browser.open(job["urls"]["page"]).all("meta") if tag.get("http-equiv") == "refresh"]
    assert refresh
    page = browser.send(browser.open(job["urls"]["page"]).forms[0])
    assert browser.path == job["urls"]["page"]
    assert "Canceled" in page.words
    assert not [tag for tag in page.all("meta") if tag.get("http-equiv") == "refresh"]
    assert page.forms == []


def test_cancel_of_a_job_that_has_ended_meanwhile_shows_how_it_ended(browser: Any, worker: Any, submit: Any) -> None:
    job = submit()
    page = browser.open(job["urls"]["page"])
    worker.develop()
    page = browser.send(page.forms[0])
    assert page.status_code == 200
    assert page.title == "Developed · Darkroom"


def test_waiting_job_says_how_many_are_ahead_and_that_no_worker_runs(browser: Any, submit: Any) -> None:
    submit()
    submit()
    page = browser.open(submit()["urls"]["page"])
    assert "2 jobs ahead of it." in page.words
    assert "No worker that holds this model is running." in page.words


def test_running_job_shows_its_step_in_words_bar_and_title(app: Any, browser: Any, worker: Any, submit: Any) -> None:
    job = submit()
    claim = worker.claim()
    board = app.extensions["darkroom"].progress
    page = browser.open(job["urls"]["page"])
    assert page.all("progress") == [{"id": "steps", "aria-label": "Steps developed", "max": "1"}]

    board.publish({claim.job_id: {"stage": "denoise", "step": 12, "num_steps": 20}})
    page = browser.open(job["urls"]["page"])
    assert "Step 12 of 20." in page.words
    assert page.title == "12/20 Developing · Darkroom"
    [bar] = page.all("progress")
    assert (bar["value"], bar["max"]) == ("12", "20")


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("waiting", "A worker has it."),
        ("fetch", "Fetching the picture that it begins from."),
        ("encode", "Reading the prompt."),
        ("denoise", "Step 20 of 20."),
        ("decode", "Fixing the picture."),
        ("upload", "Storing the picture."),
        ("a stage of tomorrow", "A worker has it."),
    ],
)
def test_every_stage_of_a_running_job_has_its_words(
    app: Any, browser: Any, worker: Any, submit: Any, stage: str, words: str
) -> None:
    job = submit()
    progress = {"stage": stage, "step": 20, "num_steps": 20}
    app.extensions["darkroom"].progress.publish({worker.claim().job_id: progress})
    assert words in browser.open(job["urls"]["page"]).words


def test_finished_job_shows_its_pictures_and_how_they_came_about(
    browser: Any, client: FlaskClient, worker: Any, submit: Any
) -> None:
    job = submit(num_images=2, seed=41, negative_prompt="fog")
    worker.develop()
    page = browser.open(job["urls"]["page"])
    pictures = [tag["src"] for tag in page.all("img")]
    assert pictures == [f"/api/v1/jobs/{job['id']}/images/{n}" for n in (0, 1)]
    downloads = [tag["href"] for tag in page.all("a") if "download" in tag]
    for address in pictures + downloads:
        assert client.get(address).status_code == 200
    for words in (
        "Developed in",
        "41",
        "42",
        "euler",
        "128 × 128",
        "fog",
        "Denoising 2.5 s",
        "Reading the prompt 100 ms",
    ):
        assert words in page.words


def test_box_of_a_picture_has_one_size_before_and_after_it_is_there(browser: Any, worker: Any, submit: Any) -> None:
    job = submit(width=96, height=128)
    before = [tag for tag in browser.open(job["urls"]["page"]).all("svg")]
    worker.develop()
    after = browser.open(job["urls"]["page"]).all("img")
    assert [(tag["width"], tag["height"]) for tag in before] == [("432", "576")]
    assert [(tag["width"], tag["height"]) for tag in after] == [("432", "576")]


@pytest.mark.parametrize(
    ("size", "shown"),
    [((96, 128), (432, 576)), ((700, 600), (700, 600)), ((512, 640), (512, 640)), ((512, 1024), (416, 832))],
)
def test_lone_picture_is_shown_large_but_fits_a_screen(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert shown_size(*size) == shown


def test_failed_job_shows_its_reason_and_no_picture(browser: Any, worker: Any, submit: Any) -> None:
    job = submit()
    worker.fail("The device ran out of memory <here>.")
    page = browser.open(job["urls"]["page"])
    assert page.title == "Failed · Darkroom"
    assert "The device ran out of memory <here>." in page.words
    assert "out_of_memory" in page.words
    assert page.all("img") == []


def test_expired_job_says_so(app: Any, browser: Any, submit: Any) -> None:
    job = submit(deadline_seconds=1e-6)
    jobs.expire_overdue(app.extensions["darkroom"].database)
    page = browser.open(job["urls"]["page"])
    assert page.title == "Expired · Darkroom"
    assert "Its deadline passed before it was done." in page.words
    assert page.all("img") == page.all("svg") == page.forms == []


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


@pytest.mark.parametrize("path", ["/jobs/{id}", "/jobs/x", "/?again={id}", "/gallery?cursor=x", "/nothing", "/jobs/"])
def test_what_does_not_exist_is_a_404_page(browser: Any, path: str) -> None:
    page = browser.open(path.format(id=uuid4()))
    assert page.status_code == 404
    assert page.title == "Not Found · Darkroom"


def test_wrong_method_on_a_page_is_405(client: FlaskClient) -> None:
    response = client.put("/gallery")
    assert response.status_code == 405
    assert response.content_type.startswith("text/html")


def test_gallery_begins_empty_with_examples(browser: Any) -> None:
    page = browser.open("/gallery")
    assert "Nothing hangs here yet." in page.words
    assert [tag for tag in page.all("a") if "prompt=" in tag.get("href", "")]


def test_gallery_shows_pictures_only_newest_first_in_fixed_boxes(browser: Any, worker: Any, submit: Any) -> None:
    first = submit(num_images=2)
    worker.develop()
    second = submit()
    worker.develop()
    submit()
    images = browser.open("/gallery").all("img")
    thumbs = [f"/api/v1/jobs/{job['id']}/images/{n}?variant=thumb" for job, n in ((second, 0), (first, 0), (first, 1))]
    assert [tag["src"] for tag in images] == thumbs
    assert all((tag["width"], tag["height"], tag["loading"]) == ("256", "256", "lazy") for tag in images)
    assert all(tag["alt"] == "a red house" for tag in images)


def test_gallery_pages_through_every_picture_once(browser: Any, worker: Any, submit: Any) -> None:
    made = [submit()["id"] for _ in range(50)]
    for _ in made:
        worker.develop(is_stored=False)
    submit()
    assert len(browser.open("/gallery").all("img")) == 48, "a job without pictures takes no place on the wall"
    seen: list[str] = []
    path = "/gallery"
    while path:
        page = browser.open(path)
        seen += [tag["src"].split("/")[4] for tag in page.all("img")]
        path = next((tag["href"] for tag in page.all("a") if tag.get("rel") == "next"), "")
    assert seen == made[::-1]


def test_latest_jobs_are_listed_below_the_form_whatever_their_state(browser: Any, worker: Any, submit: Any) -> None:
    submit(prompt="one that failed")
    worker.fail("no")
    submit(prompt="one that waits")
    page = browser.open("/")
    assert "one that waits Waiting" in page.words
    assert "one that failed Failed" in page.words


def test_model_can_be_changed_without_javascript_and_keeps_the_prompt(
    settings: Settings, tmp_path: Path, open_browser: Any
) -> None:
    catalog = tmp_path / "models.toml"
    catalog.write_text(TWO_MODELS)
    client = create_app(settings.model_copy(update={"catalog": catalog}), with_background=False).test_client()
    browser = open_browser(client)
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
