"""Many jobs in one request, over HTTP: lists, matrices, and what is refused of them."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from darkroom.errors import InvalidParameters
from darkroom.web.batches import MOST_JOBS, multiply, num_prompts, prompts

BATCH = "/api/v1/jobs/batch"


def errors_of(response: Any) -> dict[str, str]:
    assert response.status_code == 422, response.text
    return {error["field"]: error["problem"] for error in response.json["errors"]}


def test_list_of_jobs_becomes_a_batch_with_an_id_and_progress(client: FlaskClient, worker: Any) -> None:
    jobs = [{"prompt": f"house {n}", "seed": n} for n in range(3)]
    response = client.post(BATCH, json={"jobs": jobs})
    assert response.status_code == 202, response.text
    made = response.json
    assert response.headers["Location"] == made["urls"]["self"]
    assert (made["num_jobs"], made["states"], made["done"]) == (3, {"queued": 3}, False)
    told = [client.get(f"/api/v1/jobs/{job_id}").json for job_id in made["job_ids"]]
    assert [job["params"]["prompt"] for job in told] == ["house 0", "house 1", "house 2"]
    assert {job["batch_id"] for job in told} == {made["id"]}

    worker.develop()
    assert client.get(made["urls"]["self"]).json["states"] == {"queued": 2, "succeeded": 1}
    canceled = client.post(made["urls"]["cancel"]).json
    assert (canceled["states"], canceled["done"]) == ({"canceled": 2, "succeeded": 1}, True)
    assert len(client.get(made["urls"]["jobs"]).json["jobs"]) == 3


def test_same_noise_different_words_is_one_seed_for_all_prompts(client: FlaskClient) -> None:
    made = client.post(BATCH, json={"matrix": {"prompt": ["a house", "a {red|blue} boat"]}}).json
    params = [client.get(f"/api/v1/jobs/{job_id}").json["params"] for job_id in made["job_ids"]]
    assert [each["prompt"] for each in params] == ["a house", "a red boat", "a blue boat"]
    assert len({each["seed"] for each in params}) == 1


def test_matrix_is_prompts_times_lists(client: FlaskClient) -> None:
    matrix = {"prompt": "a {red|blue} house", "seed": [1, 2], "num_inference_steps": [5, 9], "priority": "bulk"}
    made = client.post(BATCH, json={"matrix": matrix}).json
    params = [client.get(f"/api/v1/jobs/{job_id}").json["params"] for job_id in made["job_ids"]]
    rows = [(each["prompt"], each["seed"], each["num_inference_steps"]) for each in params]
    assert rows[:3] == [("a red house", 1, 5), ("a red house", 2, 5), ("a red house", 1, 9)]
    assert len(set(rows)) == len(rows) == 8


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a house", ["a house"]),
        ("{a|b}", ["a", "b"]),
        ("{a|b} {c|d}", ["a c", "a d", "b c", "b d"]),
        ("a{ very|} red house", ["a very red house", "a red house"]),
        ("{plain} {} {", ["{plain} {} {"]),
        ("{{a|b}}", ["{a}", "{b}"]),
        ("a|b", ["a|b"]),
    ],
)
def test_pattern_stands_for_these_prompts(pattern: str, expected: list[str]) -> None:
    assert list(prompts(pattern)) == expected
    assert num_prompts(pattern) == len(expected)


def test_lists_of_loras_are_one_value() -> None:
    rows = list(multiply({"prompt": "a", "seed": 1, "loras": [{"name": "ink"}, {"name": "oil"}]}))
    assert rows == [{"prompt": "a", "seed": 1, "loras": [{"name": "ink"}, {"name": "oil"}]}]


def test_matrix_of_millions_is_refused_before_it_is_multiplied_out() -> None:
    with pytest.raises(InvalidParameters, match=f"stands for {2**40 * 1000} jobs"):
        multiply({"prompt": "{a|b}" * 40, "seed": list(range(1000))})


@pytest.mark.parametrize(("num_jobs", "status"), [(1, 202), (MOST_JOBS, 202), (MOST_JOBS + 1, 422), (0, 422)])
def test_batch_holds_one_to_a_thousand_jobs(client: FlaskClient, num_jobs: int, status: int) -> None:
    response = client.post(BATCH, json={"jobs": [{"prompt": "a"}] * num_jobs})
    assert response.status_code == status
    matrix = client.post(BATCH, json={"matrix": {"prompt": "a", "seed": list(range(num_jobs))}})
    assert matrix.status_code == status
    queued = sum(line["queued"] for line in client.get("/api/v1/queue").json["lines"])
    assert queued == (2 * num_jobs if status == 202 else 0)


def test_wrong_job_is_named_by_its_number_and_nothing_is_stored(client: FlaskClient) -> None:
    errors = errors_of(client.post(BATCH, json={"jobs": [{"prompt": "a"}, {"prompt": "", "width": 1}, 7]}))
    assert set(errors) == {"jobs[1].prompt", "jobs[1].width", "jobs[2].body"}
    assert client.get("/api/v1/jobs").json["jobs"] == []


def test_errors_of_a_wholly_wrong_batch_are_bounded(bare_client: FlaskClient) -> None:
    assert len(errors_of(bare_client.post(BATCH, json={"jobs": [{}] * 1000}))) == 50


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"),
        ({"jobs": [], "matrix": {}}, "body"),
        ({"jobs": {}}, "jobs"),
        ({"matrix": []}, "matrix"),
        ({"matrix": {}}, "prompt"),
        ({"matrix": {"prompt": []}}, "matrix"),
        ({"matrix": {"prompt": "a", "width": [64, 65]}}, "width"),
        ({"prompts": ["a"]}, "prompts"),
    ],
)
def test_what_is_no_batch_is_refused_by_field(bare_client: FlaskClient, body: Any, field: str) -> None:
    assert field in errors_of(bare_client.post(BATCH, json=body))


def test_batch_may_be_repeated_and_a_job_is_never_the_same_request(client: FlaskClient) -> None:
    key = {"Idempotency-Key": "k"}
    first = client.post(BATCH, json={"jobs": [{"prompt": "a"}]}, headers=key).json
    again = client.post(BATCH, json={"jobs": [{"prompt": "a"}]}, headers=key).json
    assert (again["id"], again["job_ids"]) == (first["id"], first["job_ids"])
    assert client.post("/api/v1/jobs", json={"prompt": "a"}, headers=key).status_code == 409


@pytest.mark.parametrize("batch_id", ["x", "01a2045d-65c5-7697-ac09-40880b426809"])
def test_unknown_batch_is_404(bare_client: FlaskClient, batch_id: str) -> None:
    for response in (
        bare_client.get(f"/api/v1/batches/{batch_id}"),
        bare_client.post(f"/api/v1/batches/{batch_id}/cancel"),
    ):
        assert (response.status_code, response.json["code"]) == (404, "unknown_batch")
