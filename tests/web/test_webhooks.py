"""Webhooks over HTTP: registering, changing, listing, replaying; and what is refused."""

import pytest

from darkroom.webhooks import deliveries
from darkroom.webhooks.destinations import LONGEST_URL
from darkroom.webhooks.endpoints import MOST_ENDPOINTS
from darkroom.webhooks.subscriptions import DEFAULT_EVENTS

URL = "https://example.org/hook"
HOOKS = "/api/v1/webhooks"
NOBODY = "00000000-0000-0000-0000-000000000000"


def register(client, **fields):
    response = client.post(HOOKS, json={"url": URL} | fields)
    assert response.status_code == 201, response.text
    return response.json


def test_registered_webhook_shows_its_secret_once(client):
    response = client.post(HOOKS, json={"url": URL, "events": ["job.failed"]})
    assert response.status_code == 201
    assert response.json["secret"].startswith("whsec_")
    shown = client.get(response.headers["Location"]).json
    assert shown == {name: value for name, value in response.json.items() if name != "secret"}
    assert (shown["url"], shown["events"], shown["enabled"]) == (URL, ["job.failed"], True)
    assert client.get(HOOKS).json == {"webhooks": [shown]}


def test_webhook_is_told_how_jobs_end_unless_it_says_more(client):
    assert register(client)["events"] == list(DEFAULT_EVENTS)


def test_webhook_is_changed_and_removed(client):
    path = f"{HOOKS}/{register(client)['id']}"
    changed = client.patch(path, json={"events": ["job.running"], "enabled": False}).json
    assert (changed["events"], changed["enabled"]) == (["job.running"], False)
    assert changed["disabled_at"]
    assert client.patch(path, json={"enabled": True}).json["enabled"] is True
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404
    assert client.delete(path).json["code"] == "unknown_webhook"


def test_secrets_are_rotated(client):
    endpoint = register(client)
    rotated = client.post(f"{HOOKS}/{endpoint['id']}/rotate").json["secret"]
    assert rotated.startswith("whsec_")
    assert rotated != endpoint["secret"]
    of_jobs = client.get(f"{HOOKS}/secret").json["secret"]
    assert client.get(f"{HOOKS}/secret").json["secret"] == of_jobs
    rotated = client.post(f"{HOOKS}/secret/rotate").json["secret"]
    assert rotated != of_jobs
    assert client.get(f"{HOOKS}/secret").json["secret"] == rotated


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"url"}),
        ({"url": "http://10.0.0.1/"}, {"url"}),
        ({"url": "http://localhost:6379/", "events": ["x"]}, {"events"}),
        ({"url": "https://example.org/" + "x" * (LONGEST_URL - 19)}, {"url"}),
        ({"url": URL, "events": []}, {"events"}),
        ({"url": URL, "secret": "mine", "a" * 100: 1}, {"secret", "a" * 64}),
    ],
)
def test_webhook_that_is_not_taken_is_refused_by_name(client, body, fields):
    response = client.post(HOOKS, json=body)
    assert response.status_code == 422
    assert {error["field"] for error in response.json["errors"]} == fields


@pytest.mark.parametrize(
    ("body", "field"), [({"url": URL}, "url"), ({"enabled": 1}, "enabled"), ({"events": ["x"]}, "events")]
)
def test_change_that_is_not_taken_is_refused_by_name(client, body, field):
    response = client.patch(f"{HOOKS}/{register(client)['id']}", json=body)
    assert response.status_code == 422
    assert [error["field"] for error in response.json["errors"]] == [field]


def test_webhooks_are_limited_in_number(client):
    for _ in range(MOST_ENDPOINTS):
        register(client)
    response = client.post(HOOKS, json={"url": URL})
    assert (response.status_code, response.json["code"]) == (409, "too_many_webhooks")


@pytest.mark.parametrize("webhook_id", [NOBODY, "x", "0"])
def test_unknown_webhook_is_404(client, webhook_id):
    path = f"{HOOKS}/{webhook_id}"
    for response in (client.get(path), client.patch(path, json={}), client.delete(path), client.post(f"{path}/rotate")):
        assert (response.status_code, response.json["code"]) == (404, "unknown_webhook")


@pytest.mark.parametrize("delivery_id", [NOBODY, "x"])
def test_unknown_delivery_is_404(client, delivery_id):
    path = f"{HOOKS}/deliveries/{delivery_id}"
    for response in (client.get(path), client.post(f"{path}/replay")):
        assert (response.status_code, response.json["code"]) == (404, "unknown_delivery")


@pytest.fixture
def planned(app, client, submit):
    """Three deliveries, none of them tried."""
    endpoint = register(client, events=["job.queued"])
    for _ in range(3):
        submit()
    database = app.extensions["darkroom"].database
    while deliveries.plan(database):
        pass
    return endpoint


def test_deliveries_are_listed_a_page_at_a_time(client, planned):
    first = client.get(f"{HOOKS}/deliveries?limit=2").json
    rest = client.get(f"{HOOKS}/deliveries?limit=2&cursor={first['next_cursor']}").json
    found = first["deliveries"] + rest["deliveries"]
    assert len({delivery["id"] for delivery in found}) == 3
    assert rest["next_cursor"] is None
    assert {delivery["webhook_id"] for delivery in found} == {planned["id"]}
    assert {(delivery["state"], delivery["type"], delivery["num_tries"]) for delivery in found} == {
        ("pending", "job.queued", 0)
    }


def test_deliveries_are_filtered(client, planned):
    count = lambda query: len(client.get(f"{HOOKS}/deliveries?{query}").json["deliveries"])  # noqa: E731
    job = client.get(f"{HOOKS}/deliveries").json["deliveries"][0]["job_id"]
    assert count("state=pending") == 3
    assert count("state=dead") == 0
    assert count(f"webhook={planned['id']}") == 3
    assert count(f"webhook={NOBODY}") == 0
    assert count(f"job={job}") == 1


def test_delivery_is_shown_and_replayed(client, planned):
    delivery = client.get(f"{HOOKS}/deliveries").json["deliveries"][0]
    path = f"{HOOKS}/deliveries/{delivery['id']}"
    assert client.get(path).json == delivery
    response = client.post(f"{path}/replay")
    assert response.status_code == 202
    assert response.json["state"] == "pending"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("state=lost", "state"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=²", "limit"),
        ("webhook=x", "webhook"),
        ("job=x", "job"),
        ("cursor=x", "cursor"),
        ("owner=bob", "owner"),
    ],
)
def test_filter_that_is_not_understood_is_refused_by_name(bare_client, query, field):
    response = bare_client.get(f"{HOOKS}/deliveries?{query}")
    assert response.status_code == 422
    assert [error["field"] for error in response.json["errors"]] == [field]


@pytest.mark.parametrize("limit", [1, 100])
def test_limits_of_a_page_are_taken(bare_client, limit):
    assert bare_client.get(f"{HOOKS}/deliveries?limit={limit}").status_code == 200
