"""The page of a job, followed as a browser without JavaScript follows it, and the stream that changes it."""

import ast
import json
import shlex
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from flask.testing import FlaskClient
from PIL import Image as Picture

from darkroom import jobs
from darkroom.config import Settings
from darkroom.jobs import Claim
from darkroom.picture_files import encode
from darkroom.picture_metadata import embedded, parameters_of, parse, read_file
from darkroom.previews import PreviewBoard
from darkroom.storage import image_key
from darkroom.web import create_app, snippets
from darkroom.web.wording import shown_size


def store_picture(worker: Any, claim: Claim) -> None:
    """Put a real picture in place of the worker's stand-in, with what a worker writes into it."""
    texts = embedded(parameters_of(claim.params, model=claim.model, seed=claim.params.seed))
    body = encode(Picture.new("RGB", (96, 64), "red"), "png", quality=90, texts=texts)
    worker.storage.put(image_key(claim.job_id, claim.attempt, 0, "png"), body, content_type="image/png")


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
    assert not [form for form in page.forms if form.action.endswith("/cancel")]


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
    assert page.all("progress") == [{"aria-label": "Steps developed", "max": "1"}]

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
    assert [(tag["width"], tag["height"]) for tag in before] == [("480", "640")]
    assert [(tag["width"], tag["height"]) for tag in after] == [("480", "640")]


@pytest.mark.parametrize(
    ("size", "shown"),
    [((96, 128), (480, 640)), ((700, 600), (700, 600)), ((512, 640), (512, 640)), ((512, 1024), (416, 832))],
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
    assert page.all("img") == page.all("svg") == []


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


def test_running_job_shows_what_it_looks_like_to_a_page_that_was_only_opened(
    settings: Settings, browser: Any, worker: Any, submit: Any
) -> None:
    job = submit(num_images=2)
    claim = worker.claim()
    assert browser.open(job["urls"]["page"]).all("img") == []
    board = PreviewBoard(settings.redis_url)
    assert board.watched([claim.job_id]) == {claim.job_id}, "opening the page asks for previews"
    board.publish(claim.job_id, 1, step=4, body=b"RIFF\x04\x00\x00\x00WEBP")
    [image] = browser.open(job["urls"]["page"]).all("img")
    assert image["id"] == "picture-1"
    assert image["src"].startswith("data:image/webp;base64,")


def test_walk_is_shown_where_there_is_one(browser: Any, worker: Any, submit: Any) -> None:
    walked, plain = submit(walk=True), submit()
    worker.develop(has_walk=True)
    worker.develop()
    [strip] = [tag for tag in browser.open(walked["urls"]["page"]).all("img") if "data-walk" in tag]
    assert strip["src"] == f"{walked['urls']['self']}/images/0?variant=walk"
    assert (strip["width"], strip["height"]) == ("1024", "128")
    assert not [tag for tag in browser.open(plain["urls"]["page"]).all("img") if "data-walk" in tag]


def test_job_is_developed_again_as_it_was_with_another_seed_or_with_the_next_seeds(
    browser: Any, client: FlaskClient, worker: Any, submit: Any
) -> None:
    job = submit(seed=2**32 - 2, num_images=2, negative_prompt="fog")
    worker.develop()

    def again(**changes: str) -> Any:
        page = browser.open(job["urls"]["page"])
        form = next(
            form for form in page.forms if form.action.endswith("/again") and ("n" in changes) == ("n" in form.fields)
        )
        assert browser.send(form, **changes).title == "Waiting · Darkroom"
        return client.get("/api/v1" + browser.path).json

    same, other, varied = again(how="same"), again(how="new_seed"), again(how="vary", n="1")
    assert (same["params"], same["retry_of"], same["priority"]) == (job["params"], job["id"], "interactive")
    assert other["params"] == job["params"] | {"seed": other["params"]["seed"]}
    assert other["params"]["seed"] != job["params"]["seed"]
    assert other["retry_of"] is None
    assert varied["params"] == job["params"] | {"seed": 0, "num_images": 4}, "after picture 1's seed, the greatest"


def test_job_is_deleted_with_what_belongs_to_it(browser: Any, client: FlaskClient, worker: Any, submit: Any) -> None:
    job = submit()
    worker.develop()
    [form] = [form for form in browser.open(job["urls"]["page"]).forms if form.action.endswith("/delete")]
    browser.send(form)
    assert browser.path == "/gallery"
    assert client.get(job["urls"]["self"]).status_code == 404


@pytest.mark.parametrize(("format", "name"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_picture_is_converted_and_still_says_how_it_was_made(
    client: FlaskClient, worker: Any, submit: Any, format: str, name: str
) -> None:
    job = submit(seed=7)
    claim = worker.develop()
    store_picture(worker, claim)
    response = client.get(f"{job['urls']['page']}/pictures/0?format={format}")
    assert response.content_type == f"image/{format}"
    assert f'attachment; filename="darkroom-{job["id"]}-0.' in response.headers["Content-Disposition"]
    with Picture.open(BytesIO(response.data)) as picture:
        assert (picture.format, picture.size) == (name, (96, 64))
    assert read_file(response.data).parameters.seed == 7


def test_conversion_to_what_is_no_format_is_refused(client: FlaskClient, worker: Any, submit: Any) -> None:
    job = submit()
    worker.develop()
    assert client.get(f"{job['urls']['page']}/pictures/0?format=gif").status_code == 422
    assert client.get(f"{job['urls']['page']}/pictures/1?format=png").status_code == 404


def test_file_that_cannot_be_read_is_a_502_page(client: FlaskClient, worker: Any, submit: Any) -> None:
    job = submit()
    claim = worker.develop()
    worker.storage.put(image_key(claim.job_id, claim.attempt, 0, "png"), b"\x89PNG, not", content_type="image/png")
    response = client.get(f"{job['urls']['page']}/pictures/0?format=jpeg")
    assert (response.status_code, response.mimetype) == (502, "text/html")


AWKWARD = {
    "prompt": 'it\'s "a" $HOME\n`boat` \\ é',
    "negative_prompt": "fog",
    "walk": True,
    "format": "webp",
    "seed": 5,
}


def test_copied_line_and_program_make_the_same_picture(client: FlaskClient, app: Any, submit: Any) -> None:
    job = submit(**AWKWARD)
    record = jobs.get(app.extensions["darkroom"].database, UUID(job["id"]))
    line = shlex.split(snippets.curl_text(record, url="http://here", has_keys=True))
    assert line[:2] == ["curl", "http://here/api/v1/jobs"]
    assert f"Authorization: Bearer ${snippets.KEY_VARIABLE}" in line
    again = client.post("/api/v1/jobs", json=json.loads(line[line.index("-d") + 1])).json
    assert again["params"] == job["params"]

    program = ast.parse(snippets.python_text(record, url="http://here"))
    [call] = [
        node
        for node in ast.walk(program)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "generate"
    ]
    fields = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    again = client.post("/api/v1/jobs", json={"prompt": ast.literal_eval(call.args[0]), **fields}).json
    assert again["params"] == job["params"]
    assert parse(snippets.parameters_text(record)).seed == 5


def test_model_that_is_gone_offers_nothing_that_needs_it(
    settings: Settings, worker: Any, open_browser: Any, tmp_path: Path
) -> None:
    catalog = tmp_path / "models.toml"
    catalog.write_text('[models.gone]\nfamily = "sd"\nsource = "seeded:8"\n')
    client = create_app(settings.model_copy(update={"catalog": catalog}), with_background=False).test_client()
    job = client.post("/api/v1/jobs", json={"prompt": "a", "model": "gone"}).json
    claim = worker.claim("gone")
    jobs.fail(worker.database, claim.job_id, attempt=claim.attempt, code="x", message="no")
    assert "Try again" in open_browser(client).open(job["urls"]["page"]).words
    without = create_app(settings, with_background=False).test_client()
    page = open_browser(without).open(job["urls"]["page"])
    assert page.title == "Failed · Darkroom"
    assert "Try again" not in page.words
