"""Same noise, different words: several prompts with one seed, asked for and shown together."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from darkroom.web.comparison import words_of

PROMPTS = ["a red house by the sea", "a blue house by the sea.", "a red house, by the Sea"]


@pytest.fixture
def compare(client: FlaskClient, browser: Any) -> Any:
    """Send the form with these prompts; return the answer."""
    fields = browser.open("/compare").forms[0].fields

    def compare(prompts: list[str], **changes: str) -> Any:
        return client.post("/compare", data={**fields, "prompt": prompts, **changes})

    return compare


def jobs_of(client: FlaskClient, response: Any) -> Any:
    assert response.status_code == 303, response.text
    batch_id = response.headers["Location"].rpartition("/")[2]
    return client.get(f"/api/v1/jobs?batch={batch_id}").json["jobs"][::-1]


def test_each_prompt_becomes_a_job_with_one_seed_and_its_walk(client: FlaskClient, compare: Any) -> None:
    made = jobs_of(client, compare([*PROMPTS, " "]))
    assert [job["params"]["prompt"] for job in made] == PROMPTS
    assert len({job["params"]["seed"] for job in made}) == 1
    assert {(job["params"]["walk"], job["params"]["num_images"], job["priority"]) for job in made} == {
        (True, 1, "interactive")
    }
    chosen = jobs_of(client, compare(PROMPTS, seed="7", num_inference_steps="9"))
    assert {(job["params"]["seed"], job["params"]["num_inference_steps"]) for job in chosen} == {(7, 9)}


def test_one_prompt_alone_or_too_many_are_refused_beside_a_field(client: FlaskClient, compare: Any) -> None:
    for prompts, name in ((["a", "", "", ""], "prompt-2"), (["", "", "", ""], "prompt-1"), (["a"] * 5, "prompt-4")):
        response = compare(prompts)
        assert response.status_code == 422
        assert f'id="{name}-refused"' in response.text
    assert client.get("/api/v1/jobs").json["jobs"] == []


def test_refusals_stand_beside_their_fields_and_what_was_typed_stays(client: FlaskClient, compare: Any) -> None:
    response = compare(["a" * 3000, "kept as it was"], num_inference_steps="1000", seed="-1")
    assert response.status_code == 422
    for name in ("prompt-1", "num_inference_steps", "seed"):
        assert response.text.count(f'id="{name}-refused"') == 1
    assert "prompt-2-refused" not in response.text
    assert "kept as it was" in response.text
    assert client.get("/api/v1/jobs").json["jobs"] == []


def test_refused_form_leads_to_what_was_refused(compare: Any, page_of: Any) -> None:
    page = page_of(compare(["a" * 3000, "kept"]))
    [summary] = [tag for tag in page.all("div") if tag.get("class") == "summary"]
    assert {"role": "alert", "tabindex": "-1", "autofocus": ""}.items() <= summary.items()
    assert "#prompt-1" in [tag.get("href") for tag in page.all("a")]
    assert "Prompt 1" in page.words


def test_words_that_not_all_prompts_have_are_marked() -> None:
    own = [[word.text for word in words if word.is_own] for words in words_of(PROMPTS)]
    assert own == [["red"], ["blue"], ["red"]], "a comma, a full stop or a capital makes no other word"


def test_pictures_stand_side_by_side_and_their_walks_below(
    client: FlaskClient, browser: Any, compare: Any, worker: Any
) -> None:
    response = compare(PROMPTS)
    made = jobs_of(client, response)
    worker.develop(has_walk=True)
    page = browser.open(response.headers["Location"])
    assert page.title == "1 of 3 done · Darkroom"
    sources = [tag["src"] for tag in page.all("img")]
    assert sources == [made[0]["urls"]["self"] + "/images/0", made[0]["urls"]["self"] + "/images/0?variant=walk"]
    frames = [tag["href"] for tag in page.all("a") if tag.get("class") == "frame"]
    assert frames == [job["urls"]["page"] for job in made]
    assert [tag for tag in page.all("meta") if tag.get("http-equiv") == "refresh"], "without JavaScript it asks again"

    page = browser.send(next(form for form in page.forms if form.action.endswith("/cancel")))
    assert page.title == "3 of 3 done · Darkroom"
    assert not [tag for tag in page.all("meta") if tag.get("http-equiv") == "refresh"]


def test_same_words_are_developed_on_other_noise(client: FlaskClient, browser: Any, compare: Any, worker: Any) -> None:
    response = compare(PROMPTS, num_inference_steps="9")
    for _ in PROMPTS:
        worker.develop(is_stored=False)
    page = browser.open(response.headers["Location"])
    browser.send(next(form for form in page.forms if form.action.endswith("/again")))
    before = jobs_of(client, response)
    after = client.get(f"/api/v1/jobs?batch={browser.path.rpartition('/')[2]}").json["jobs"][::-1]
    seed = after[0]["params"]["seed"]
    assert seed != before[0]["params"]["seed"]
    assert [job["params"] for job in after] == [job["params"] | {"seed": seed} for job in before]


def test_words_can_be_changed_with_seed_and_settings_kept(browser: Any, compare: Any) -> None:
    response = compare(PROMPTS, seed="7", num_inference_steps="9", width="96")
    page = browser.open(response.headers["Location"])
    [change] = [tag["href"] for tag in page.all("a") if "again=" in tag.get("href", "")]
    page = browser.open(change)
    fields = page.forms[0].fields
    assert (fields["seed"], fields["num_inference_steps"], fields["width"]) == ("7", "9", "96")
    assert all(prompt in page.html for prompt in PROMPTS)


def test_settings_of_another_model_than_the_chosen_are_left_out(client: FlaskClient, compare: Any) -> None:
    made = jobs_of(client, compare(PROMPTS, settings_of="large", width="1024", height="1024", sampler="lcm"))
    assert {(job["params"]["width"], job["params"]["sampler"]) for job in made} == {(128, "euler")}


def test_page_of_a_job_leads_to_those_it_was_asked_for_with(browser: Any, client: FlaskClient, compare: Any) -> None:
    response = compare(PROMPTS)
    page = browser.open(jobs_of(client, response)[0]["urls"]["page"])
    assert response.headers["Location"] in [tag.get("href") for tag in page.all("a")]


def test_comparison_whose_jobs_are_deleted_is_gone_with_them(client: FlaskClient, compare: Any) -> None:
    response = compare(PROMPTS[:2])
    path = response.headers["Location"]
    first, second = jobs_of(client, response)
    client.delete(first["urls"]["self"])
    assert client.get(path).text.count('class="print"') == 1
    client.delete(second["urls"]["self"])
    assert client.get(path).status_code == 404
    assert client.get(f"{path}/live").status_code == 404
    assert client.get(f"/compare?again={path.rpartition('/')[2]}").status_code == 404
