"""The page of a job, followed as a browser without JavaScript follows it, and the stream that changes it."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from darkroom import jobs
from darkroom.web.wording import shown_size


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
    downloads = [tag["href"] for tag in page.all("a") if "download" in tag and "format=" not in tag["href"]]
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
