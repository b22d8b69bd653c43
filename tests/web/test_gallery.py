"""The gallery, followed as a browser without JavaScript follows it."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import Flask
from sqlalchemy import insert, select
from uuid_utils.compat import uuid7

from darkroom import keys
from darkroom.jobs.reading import SEARCHED_JOBS
from darkroom.keys import Quotas
from darkroom.models import Job


def thumbs_of(page: Any) -> list[str]:
    """Whose pictures hang there: of each its job."""
    return [tag["src"].split("/")[4] for tag in page.all("img") if tag.get("src")]


def sheets(browser: Any, path: str) -> Iterator[Any]:
    """Every page of the gallery from here on, as its links lead."""
    while path:
        page = browser.open(path)
        yield page
        path = next((tag["href"] for tag in page.all("a") if tag.get("rel") == "next"), "")


def choosing(page: Any) -> Any:
    """The form around the wall."""
    return next(form for form in page.forms if form.action == "/gallery/delete")


def test_gallery_begins_empty_with_examples(browser: Any) -> None:
    page = browser.open("/gallery")
    assert "Nothing hangs here yet." in page.words
    examples = [tag["href"] for tag in page.all("a") if "prompt=" in tag.get("href", "")]
    assert browser.open(examples[0]).forms[0].fields["prompt"] == "a red house by the sea at sunset"


def test_gallery_shows_pictures_only_newest_first_in_fixed_boxes(browser: Any, worker: Any, submit: Any) -> None:
    first = submit(num_images=2)
    worker.develop()
    second = submit()
    worker.develop()
    submit()
    images = [tag for tag in browser.open("/gallery").all("img") if "src" in tag]
    thumbs = [f"/api/v1/jobs/{job['id']}/images/{n}?variant=thumb" for job, n in ((second, 0), (first, 0), (first, 1))]
    assert [tag["src"] for tag in images] == thumbs
    assert all((tag["width"], tag["height"], tag["loading"]) == ("256", "256", "lazy") for tag in images)
    assert all(tag["alt"] == "a red house" for tag in images)


def test_gallery_pages_through_every_picture_once(browser: Any, worker: Any, submit: Any) -> None:
    made = [submit()["id"] for _ in range(50)]
    for _ in made:
        worker.develop(is_stored=False)
    submit()
    pages = list(sheets(browser, "/gallery"))
    assert [len(thumbs_of(page)) for page in pages] == [48, 2], "a job without pictures takes no place on the wall"
    assert [each for page in pages for each in thumbs_of(page)] == made[::-1]
    assert "To the newest" not in pages[0].words
    assert "To the newest" in pages[1].words


def test_address_behind_the_last_picture_says_so(browser: Any, worker: Any, submit: Any) -> None:
    oldest = submit()["id"]
    worker.develop(is_stored=False)
    assert "No older pictures." in browser.open(f"/gallery?cursor={oldest}").words


def test_search_finds_all_the_words_and_keeps_them_from_page_to_page(browser: Any, worker: Any, submit: Any) -> None:
    wanted = [submit(prompt=f"a RED house no {n}")["id"] for n in range(50)]
    submit(prompt="a red boat")
    submit(prompt="a house")
    for _ in range(52):
        worker.develop(is_stored=False)
    pages = list(sheets(browser, "/gallery?q=red+house"))
    assert [each for page in pages for each in thumbs_of(page)] == wanted[::-1]
    assert all("Pictures with “red house” in their prompt." in page.words for page in pages)
    assert all(page.forms[0].fields["q"] == "red house" for page in pages)


def test_search_that_finds_nothing_says_so_and_leads_back(browser: Any, worker: Any, submit: Any) -> None:
    submit()
    worker.develop(is_stored=False)
    page = browser.open("/gallery?q=submarine")
    assert "No picture with “submarine” in their prompt." in page.words
    assert thumbs_of(page) == []
    assert "/gallery" in [tag["href"] for tag in page.all("a") if "href" in tag and tag.get("class") is None]


def test_search_that_has_not_looked_at_everything_offers_to_go_on(
    app: Flask, browser: Any, worker: Any, submit: Any
) -> None:
    submit(prompt="a submarine")
    submit(prompt="a house")
    worker.develop(is_stored=False)
    copy(app, str(worker.develop(is_stored=False).job_id), count=SEARCHED_JOBS)
    pages = list(sheets(browser, "/gallery?q=submarine"))
    assert "No picture so far with" in pages[0].words
    assert "Look further back" in pages[0].words
    assert [len(thumbs_of(page)) for page in pages] == [0, 1]


def copy(app: Flask, job_id: str, *, count: int) -> None:
    """Store so many jobs more that are as this one is."""
    database = app.extensions["darkroom"].database
    with database.write() as session:
        row = session.execute(select(Job.__table__).where(Job.id == UUID(job_id))).mappings().one()
        session.execute(insert(Job), [{**row, "id": uuid7()} for _ in range(count)])


@pytest.mark.parametrize("q", ["x" * 201, "a%00b"])
def test_search_for_what_no_prompt_can_have_is_refused(browser: Any, q: str) -> None:
    page = browser.open(f"/gallery?q={q}")
    assert page.status_code == 422
    assert "words of the prompt, at most 200 characters" in page.words


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "]]>"])
def test_what_is_searched_for_is_text(browser: Any, text: str) -> None:
    page = browser.open("/gallery?" + f"q={text}".replace("+", "%2B"))
    assert page.forms[0].fields["q"] == text
    assert "<script>alert" not in page.html
    assert "onerror" not in {name for _, tag in page.tags for name in tag}


def test_chosen_pictures_go_only_after_it_was_asked(browser: Any, client: Any, worker: Any, submit: Any) -> None:
    pair, other, kept = submit(num_images=2), submit(prompt="a boat"), submit()
    for _ in range(3):
        worker.develop()
    wall = browser.open("/gallery?q=a")
    question = browser.send(choosing(wall), job=[pair["id"], other["id"], pair["id"]])
    assert "Delete these 3 pictures?" in question.words
    assert thumbs_of(question) == [pair["id"], pair["id"], other["id"]]
    assert len(thumbs_of(browser.open("/gallery"))) == 4, "a question takes nothing away"
    assert "/gallery?q=a" in [tag.get("href") for tag in question.all("a")]

    [form] = [form for form in question.forms if form.fields.get("sure")]
    page = browser.send(form, job=[pair["id"], other["id"]])
    assert browser.path == "/gallery"
    assert page.forms[0].fields["q"] == "a"
    assert thumbs_of(page) == [kept["id"]]
    assert client.get(pair["urls"]["self"]).status_code == 404


def test_one_picture_is_asked_for_as_one(browser: Any, worker: Any, submit: Any) -> None:
    job = submit()
    worker.develop()
    question = browser.send(choosing(browser.open("/gallery")), job=job["id"])
    assert "Delete this picture?" in question.words


def test_nothing_chosen_is_said(browser: Any, worker: Any, submit: Any) -> None:
    submit()
    worker.develop()
    page = browser.send(choosing(browser.open("/gallery")))
    assert "Nothing is selected" in page.words
    assert page.status_code == 200


def test_deletion_without_its_token_or_for_what_is_no_job_does_nothing(
    browser: Any, client: Any, worker: Any, submit: Any
) -> None:
    job = submit()
    worker.develop()
    assert client.post("/gallery/delete", data={"job": job["id"], "sure": "yes"}).status_code == 400
    form = choosing(browser.open("/gallery"))
    assert browser.send(form, job=[job["id"], "x"], sure="yes").status_code == 404
    many = [str(uuid4()) for _ in range(1001)]
    assert "at most 1000 at once" in browser.send(form, job=many, sure="yes").words
    assert thumbs_of(browser.open("/gallery")) == [job["id"]]


def test_way_back_leads_nowhere_else(browser: Any, worker: Any, submit: Any) -> None:
    job = submit()
    worker.develop()
    form = choosing(browser.open("/gallery"))
    browser.send(form, job=job["id"], sure="yes", back="https://elsewhere.example/")
    assert browser.path == "/"


def test_somebody_else_s_picture_is_neither_shown_nor_deleted(app: Flask, worker: Any, open_browser: Any) -> None:
    database = app.extensions["darkroom"].database
    people = {}
    for name in ("ann", "bob"):
        _, key = keys.create(database, name=name, owner=name, scopes=("submit", "read"), quotas=Quotas())
        people[name] = app.test_client()
        page = open_browser(people[name]).open("/login")
        people[name].post("/login", data=page.forms[0].fields | {"key": key})
    form = open_browser(people["ann"]).open("/").forms[0]
    open_browser(people["ann"]).send(form, prompt="only Ann's")
    hers = str(worker.develop().job_id)
    form = open_browser(people["bob"]).open("/").forms[0]
    open_browser(people["bob"]).send(form, prompt="Bob's")
    worker.develop()

    bob = open_browser(people["bob"])
    wall = bob.open("/gallery")
    assert "only Ann's" not in wall.html
    assert "Nothing is selected" in bob.send(choosing(wall), job=hers).words
    bob.send(choosing(wall), job=hers, sure="yes")
    assert thumbs_of(open_browser(people["ann"]).open("/gallery")) == [hers]


def test_who_may_only_read_finds_nothing_to_select(app: Flask, open_browser: Any, worker: Any, submit: Any) -> None:
    submit()
    worker.develop()
    _, key = keys.create(
        app.extensions["darkroom"].database, name="guest", owner="local", scopes=("read",), quotas=Quotas()
    )
    app.extensions["darkroom"].keys.forget()  # that there was no key until now
    client = app.test_client()
    client.post("/login", data=open_browser(client).open("/login").forms[0].fields | {"key": key})
    page = open_browser(client).open("/gallery")
    assert len(thumbs_of(page)) == 1
    assert [tag for tag in page.all("input") if tag.get("type") == "checkbox"] == []
    assert "Delete" not in page.words
