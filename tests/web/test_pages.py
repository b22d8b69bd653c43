"""The pages, followed as a browser without JavaScript follows them."""

from typing import Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient


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
