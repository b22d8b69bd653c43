"""The pages, followed as a browser without JavaScript follows them."""

import json
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


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/gallery?q=" + "a" * 201, "q is not taken: words of the prompt, at most 200 characters."),
        ("/jobs/x", "No job has this id."),
    ],
)
def test_page_that_asks_for_a_part_of_itself_is_told_the_words_of_a_refusal(
    bare_client: FlaskClient, path: str, words: str
) -> None:
    refused = bare_client.get(path, headers={"HX-Request": "true"})
    assert json.loads(refused.headers["HX-Trigger"]) == {"refused": {"words": words}}
    assert "HX-Trigger" not in bare_client.get(path).headers


def test_wrong_method_on_a_page_is_405(client: FlaskClient) -> None:
    response = client.put("/gallery")
    assert response.status_code == 405
    assert response.content_type.startswith("text/html")
