"""The queue page: followed as a browser without JavaScript follows it, and its stream as htmx reads it."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import update

from darkroom import jobs, keys
from darkroom.events import ProgressBoard
from darkroom.keys import Quotas
from darkroom.models import Job
from darkroom.web.board import FRONT, PAGE, age_in_words, words_of
from darkroom.web.pace import Eta
from darkroom.web.services import Sight

PROMPT = "a house that only Ann may see"


def ids_of(page: Any) -> list[str]:
    """Which jobs are listed, from the top."""
    return [tag["id"].removeprefix("job-") for tag in page.all("li") if tag.get("id", "").startswith("job-")]


def press(browser: Any, path: str, action: str) -> Any:
    """Open a page and press the button that goes to `action`."""
    page = browser.open(path)
    assert action in [tag.get("formaction") for tag in page.all("button")], "no such button"
    [form] = [form for form in page.forms if form.method == "post"]
    form.action = action
    return browser.send(form)


@pytest.fixture
def enter(app: Flask, open_browser: Any) -> Callable[..., Any]:
    """Log somebody in who has a key of their own."""

    def enter(name: str, *scopes: str) -> Any:
        database = app.extensions["darkroom"].database
        _, key = keys.create(database, name=name, owner=name, scopes=scopes or ("submit", "read"), quotas=Quotas())
        app.extensions["darkroom"].keys.forget()  # that there may have been no key until now
        client = app.test_client()
        browser = open_browser(client)
        client.post("/login", data=browser.open("/login").forms[0].fields | {"key": key})
        browser.client = client
        return browser

    return enter


def submit_as(browser: Any, prompt: str) -> str:
    """Submit by the form, and return the job."""
    browser.send(browser.open("/").forms[0], prompt=prompt)
    return str(browser.path.removeprefix("/jobs/"))


def test_queue_is_empty_at_first_and_leads_to_the_form(browser: Any) -> None:
    page = browser.open("/queue")
    assert "Nothing waits and nothing develops." in page.words
    assert "Develop one" in page.words
    assert not [tag for tag in page.all("meta") if tag.get("http-equiv") == "refresh"]


def test_queue_shows_what_develops_then_what_waits_then_what_has_ended(
    app: Flask, browser: Any, worker: Any, submit: Any
) -> None:
    done, failed, running, first, second = (submit(prompt=f"house no {n}")["id"] for n in range(5))
    worker.develop()
    worker.fail("no <memory>")
    claim = worker.claim()
    board: ProgressBoard = app.extensions["darkroom"].progress
    board.publish({claim.job_id: {"stage": "denoise", "step": 12, "num_steps": 20}})
    page = browser.open("/queue")
    assert ids_of(page) == [running, first, second, failed, done]
    for words in (
        "1 developing, 2 waiting.",
        "Developing house no 2 darkroom-seeded · 128 × 128 · 20 steps · bulk Developing step 12 of 20 just now",
        "Waiting next just now",
        "Waiting 1 ahead just now",
        "Failed no <memory> just now",
    ):
        assert words in page.words
    assert [(tag["value"], tag["max"]) for tag in page.all("progress")] == [("12", "20")]
    assert [tag["src"] for tag in page.all("img")] == [f"/api/v1/jobs/{done}/images/0?variant=thumb"]
    assert [tag for tag in page.all("meta") if tag.get("http-equiv") == "refresh"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "just now"), (59.9, "just now"), (60, "1 min ago"), (7200, "2 h ago"), (86400 * 3, "3 d ago")],
)
def test_age_is_told_no_finer_than_a_page_would_want_to_change(seconds: float, words: str) -> None:
    assert age_in_words(seconds) == words


@pytest.mark.parametrize(("position", "words"), [(0, "next"), (1, "1 ahead"), (None, "more than 100 ahead")])
def test_place_of_a_waiting_job_is_told_in_words(app: Flask, submit: Any, position: int | None, words: str) -> None:
    job = jobs.get(app.extensions["darkroom"].database, UUID(submit()["id"]))
    assert words_of(Sight(job, position)) == words
    assert words_of(Sight(job, position, eta=Eta(130.0, 300.0))) == f"{words} · 2 to 5 min left"


def test_one_state_can_be_looked_at_page_by_page(browser: Any, worker: Any, submit: Any) -> None:
    made = [submit()["id"] for _ in range(PAGE + 2)]
    now = browser.open("/queue")
    assert ids_of(now) == made[:PAGE]
    [more] = [tag["href"] for tag in now.all("a") if tag.get("rel") == "next"]
    assert ids_of(browser.open("/queue" + more)) == made[PAGE:]
    assert ids_of(browser.open("/queue?state=running")) == []
    for _ in made:
        worker.develop(is_stored=False)
    newest = browser.open("/queue?state=succeeded")
    assert ids_of(newest) == made[:1:-1]
    [more] = [tag["href"] for tag in newest.all("a") if tag.get("rel") == "next"]
    assert ids_of(browser.open("/queue" + more)) == [made[1], made[0]]


@pytest.mark.parametrize("query", ["state=gone", "cursor=x", "owner=ann"])
def test_query_that_is_none_is_refused(bare_browser: Any, query: str) -> None:
    assert bare_browser.open(f"/queue?{query}").status_code == 422


def test_one_is_canceled_and_the_page_stays_what_it_was(browser: Any, client: FlaskClient, submit: Any) -> None:
    job, other = submit(), submit()
    page = press(browser, "/queue?state=queued", f"/queue/{job['id']}/cancel")
    assert browser.path == "/queue"
    assert ids_of(page) == [other["id"]]
    assert client.get(job["urls"]["self"]).json["state"] == "canceled"


def test_button_pressed_too_late_does_no_harm(browser: Any, worker: Any, submit: Any) -> None:
    job = submit()
    page = browser.open("/queue")
    worker.develop()
    [form] = page.forms
    form.action = f"/queue/{job['id']}/cancel"
    assert ids_of(browser.send(form)) == [job["id"]]
    form.action = f"/queue/{job['id']}/retry"
    browser.send(form)
    form.action = f"/queue/{ids_of(browser.open('/queue'))[0]}/retry"
    assert browser.send(form).status_code == 200, "it waits already"


def test_buttons_without_the_token_do_nothing(client: FlaskClient, submit: Any) -> None:
    job = submit()
    for path in (f"/queue/{job['id']}/cancel", f"/queue/all/{job['id']}/cancel", "/queue/cancel", "/queue/retry"):
        assert client.post(path).status_code == 400
    assert client.get(job["urls"]["self"]).json["state"] == "queued"


def test_all_of_mine_are_canceled_and_nobody_else_s(enter: Any, app: Flask, worker: Any) -> None:
    ann, bob = enter("ann"), enter("bob")
    hers = [submit_as(ann, "hers") for _ in range(3)]
    his = submit_as(bob, "his")
    worker.claim()
    press(ann, "/queue", "/queue/cancel")
    database = app.extensions["darkroom"].database
    assert {jobs.get(database, UUID(job_id)).state for job_id in hers} == {"canceled"}
    assert jobs.get(database, UUID(his)).state == "queued"


def test_failed_job_is_retried_once(browser: Any, client: FlaskClient, worker: Any, submit: Any) -> None:
    failed = submit(metadata={"order": 7})
    worker.fail("no")
    page = press(browser, "/queue", f"/queue/{failed['id']}/retry")
    again, ended = ids_of(page)
    assert ended == failed["id"]
    assert "Retried" in page.words
    assert client.get(f"/api/v1/jobs/{again}").json["retry_of"] == failed["id"]
    assert f"/queue/{failed['id']}/retry" not in [tag.get("formaction") for tag in page.all("button")]


def test_all_that_failed_are_retried_as_one_batch_however_often_the_button_is_pressed(
    browser: Any, client: FlaskClient, worker: Any, submit: Any
) -> None:
    failed = [submit(seed=n, metadata={"n": n})["id"] for n in range(3)]
    for _ in failed:
        worker.fail("no")
    submit()
    worker.develop()
    for _ in range(2):
        press(browser, "/queue?state=failed", "/queue/retry")
    waiting = client.get("/api/v1/jobs?state=queued").json["jobs"]
    assert sorted(job["retry_of"] for job in waiting) == sorted(failed)
    assert sorted(job["metadata"]["n"] for job in waiting) == [0, 1, 2]
    assert len({job["batch_id"] for job in waiting}) == 1
    assert {job["priority"] for job in waiting} == {"bulk"}


def test_retry_of_what_its_model_does_not_take_any_more_says_why(
    app: Flask, browser: Any, client: FlaskClient, worker: Any, submit: Any
) -> None:
    job = submit()
    worker.fail("no")
    database = app.extensions["darkroom"].database
    with database.write() as session:
        session.execute(update(Job).where(Job.id == UUID(job["id"])).values(model="forgotten"))
    page = press(browser, "/queue", "/queue/retry")
    assert page.status_code == 422
    assert "forgotten" in page.words
    assert client.get("/api/v1/jobs?state=queued").json["jobs"] == []


def test_operator_sees_everybody_s_jobs_and_none_of_their_words(enter: Any, worker: Any) -> None:
    ann, root = enter("ann"), enter("root", "submit", "read", "admin")
    ended, running, waiting = (submit_as(ann, PROMPT) for _ in range(3))
    worker.develop(is_stored=False)
    worker.claim()
    own = submit_as(root, "the operator's own")
    page = root.open("/queue/all")
    assert ids_of(page) == [running, waiting, own, ended]
    assert PROMPT not in page.html
    assert "ann" in page.words
    assert "the operator's own" in page.words
    assert "Waiting for darkroom-seeded" in page.words
    assert [tag["href"] for tag in page.all("a") if tag.get("href", "").startswith("/jobs/")] == [f"/jobs/{own}"]
    assert page.all("img") == []
    assert ids_of(root.open("/queue")) == [own]
    for state, listed in {"running": [running], "queued": [waiting, own], "succeeded": [ended], "failed": []}.items():
        assert ids_of(root.open(f"/queue/all?state={state}")) == listed

    page = press(root, "/queue/all", f"/queue/all/{waiting}/cancel")
    assert root.path == "/queue/all"
    assert waiting not in ids_of(root.open("/queue/all?state=queued"))


def next_page(browser: Any, path: str, page: Any) -> Any:
    """Press the only button there is for more."""
    [more] = [tag["href"] for tag in page.all("a") if tag.get("rel") == "next"]
    return browser.open(path + more)


def test_operator_reads_every_state_to_its_end_and_each_line_by_itself(browser: Any, worker: Any, submit: Any) -> None:
    made = [submit()["id"] for _ in range(PAGE + 2)]
    now = browser.open("/queue/all")
    assert ids_of(now) == made[:FRONT]
    assert ids_of(next_page(browser, "/queue/all", now)) == made[FRONT:]
    waiting = browser.open("/queue/all?state=queued")
    assert ids_of(waiting) == made[:PAGE]
    rest = next_page(browser, "/queue/all", waiting)
    assert ids_of(rest) == made[PAGE:]
    assert "Waiting for darkroom-seeded" in rest.words
    assert "/queue/all?state=queued" in [tag.get("href") for tag in rest.all("a")], "the way back to the first"
    for _ in made:
        worker.claim()
    running = browser.open("/queue/all?state=running")
    assert ids_of(running) == made[:PAGE]
    assert ids_of(next_page(browser, "/queue/all", running)) == made[PAGE:]


def test_operator_reads_what_has_ended_to_its_end(browser: Any, worker: Any, submit: Any) -> None:
    made = [submit()["id"] for _ in range(PAGE + 2)]
    for _ in made:
        worker.develop(is_stored=False)
    newest = browser.open("/queue/all?state=succeeded")
    assert ids_of(newest) == made[:1:-1]
    assert ids_of(next_page(browser, "/queue/all", newest)) == [made[1], made[0]]


def test_stream_of_a_later_page_tells_of_that_page(browser: Any, client: FlaskClient, submit: Any) -> None:
    made = [submit()["id"] for _ in range(PAGE + 2)]
    page = next_page(browser, "/queue/all", browser.open("/queue/all?state=queued"))
    [stream] = [tag["hx-sse:connect"] for tag in page.all("div") if "hx-sse:connect" in tag]
    told = messages(client, stream)
    first = next(told)
    assert [job_id for job_id in made if f'id="job-{job_id}"' in first] == made[PAGE:]
    told.close()


def test_page_behind_a_job_that_is_gone_says_so(bare_browser: Any) -> None:
    page = bare_browser.open(f"/queue/all?state=failed&cursor={UUID(int=7)}")
    assert page.status_code == 404


def test_operator_is_led_to_what_became_of_anybody_s_job(enter: Any) -> None:
    ann, root = enter("ann"), enter("root", "submit", "read", "admin")
    job_id = submit_as(ann, PROMPT)
    page = root.open("/queue/all")
    assert f"/admin/jobs/{job_id}" in [tag.get("href") for tag in page.all("a")]
    assert root.open(f"/admin/jobs/{job_id}").status_code == 200


def test_only_operators_see_the_way_to_everybody_s(enter: Any) -> None:
    assert "/queue/all" in [tag.get("href") for tag in enter("root", "read", "admin").open("/queue").all("a")]
    ann = enter("ann")
    assert "/queue/all" not in [tag.get("href") for tag in ann.open("/queue").all("a")]
    assert ann.open("/queue/all").status_code == 403


def test_who_may_only_read_finds_no_buttons(enter: Any, worker: Any) -> None:
    ann = enter("ann")
    submit_as(ann, "a")
    guest = enter("guest", "read")
    assert ids_of(guest.open("/queue")) == []
    assert [tag for tag in guest.open("/queue").all("button") if tag.get("form") == "act"] == []


def messages(client: FlaskClient, path: str) -> Iterator[str]:
    """What the stream tells: the HTML of each message."""
    response = client.get(path, buffered=False)
    assert response.status_code == 200
    assert response.mimetype == "text/event-stream"
    try:
        for chunk in response.response:
            lines = bytes(chunk).decode().splitlines()
            if text := "\n".join(line.removeprefix("data: ") for line in lines if line.startswith("data: ")):
                yield text
    finally:
        response.close()


@pytest.mark.parametrize("path", ["/queue/events", "/queue/all/events"])
def test_stream_tells_the_board_at_once_and_anew_when_it_changes(
    app: Flask, client: FlaskClient, worker: Any, submit: Any, path: str
) -> None:
    job = submit()
    told = messages(client, path)
    first = next(told)
    assert first.startswith('<hx-partial hx-target="#board" hx-swap="innerMorph">')
    assert f'id="job-{job["id"]}" class="queued live"' in first
    assert "csrf_token" not in first
    worker.claim()
    assert f'id="job-{job["id"]}" class="running live"' in next(told)
    other = submit()
    assert f'id="job-{other["id"]}"' in next(told)
    told.close()


def test_stream_of_one_state_tells_only_of_that(client: FlaskClient, worker: Any, submit: Any) -> None:
    job = submit()
    told = messages(client, "/queue/events?state=failed")
    assert job["id"] not in next(told)
    worker.fail("no")
    assert f'id="job-{job["id"]}" class="failed"' in next(told)
    told.close()


def test_stream_of_everybody_s_jobs_ends_with_the_scope_that_opened_it(enter: Any, app: Flask, worker: Any) -> None:
    services = app.extensions["darkroom"]
    root = enter("root", "submit", "read", "admin")
    told = messages(root.client, "/queue/all/events")
    next(told)
    [key] = keys.list_keys(services.database)
    keys.revoke(services.database, key.id)
    services.keys.forget()
    assert list(told) == []
