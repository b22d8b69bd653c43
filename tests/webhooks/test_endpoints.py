"""Registered addresses: whose they are, how many, and their secrets. And what a request may say of one."""

import base64
from uuid import uuid4

import pytest

from darkroom.errors import InvalidParameters, TooManyWebhooks, WebhookNotFound
from darkroom.models import DeliveryState
from darkroom.webhooks import endpoints
from darkroom.webhooks.destinations import Destinations
from darkroom.webhooks.endpoints import MOST_ENDPOINTS
from darkroom.webhooks.subscriptions import DEFAULT_EVENTS, EVENTS, Subscription, read_subscription

URL = "https://example.org/hook"


def register(database, owner="ann"):
    return endpoints.register(database, Subscription(URL, EVENTS), owner=owner)


def test_registered_endpoint_is_listed_without_its_secret(database):
    first, secret = register(database)
    second, other_secret = register(database)
    assert endpoints.list_endpoints(database, owner="ann") == [first, second]
    assert (first.url, first.events, first.disabled_at) == (URL, EVENTS, None)
    assert secret != other_secret
    assert secret not in repr(first)
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32


def test_owner_has_a_limited_number_of_endpoints(database):
    for _ in range(MOST_ENDPOINTS - 1):
        register(database)
    last, _ = register(database)
    with pytest.raises(TooManyWebhooks):
        register(database)
    register(database, owner="bob")
    endpoints.remove(database, last.id, owner="ann")
    register(database)


def test_somebody_elses_endpoint_does_not_exist(database):
    endpoint, _ = register(database)
    for call in (endpoints.get_endpoint, endpoints.change, endpoints.rotate, endpoints.remove):
        with pytest.raises(WebhookNotFound):
            call(database, endpoint.id, owner="bob")
        with pytest.raises(WebhookNotFound):
            call(database, uuid4(), owner="ann")
    assert endpoints.list_endpoints(database, owner="bob") == []
    assert endpoints.get_endpoint(database, endpoint.id, owner="ann") == endpoint


def test_change_takes_what_it_names_and_leaves_the_rest(database):
    endpoint, _ = register(database)
    changed = endpoints.change(database, endpoint.id, owner="ann", events=("job.failed",))
    assert (changed.events, changed.disabled_at) == (("job.failed",), None)
    disabled = endpoints.change(database, endpoint.id, owner="ann", is_enabled=False)
    assert disabled.disabled_at
    assert disabled.events == ("job.failed",)
    assert endpoints.change(database, endpoint.id, owner="ann", is_enabled=False).disabled_at == disabled.disabled_at
    assert endpoints.change(database, endpoint.id, owner="ann").disabled_at == disabled.disabled_at
    assert endpoints.change(database, endpoint.id, owner="ann", is_enabled=True).disabled_at is None


def test_disabled_endpoint_is_told_nothing_more(post):
    endpoint, _ = endpoints.register(post.database, Subscription(post.receiver.url(), EVENTS), owner="ann")
    post.submit()
    post.plan()
    endpoints.change(post.database, endpoint.id, owner="ann", is_enabled=False)
    post.submit()
    assert post.carry() == 0
    (delivery,) = post.list()
    assert (delivery.state, delivery.last_error) == (DeliveryState.DEAD, "the endpoint was disabled")


def test_secret_of_jobs_stays_until_it_is_rotated(database):
    secret = endpoints.job_secret(database, owner="ann")
    assert endpoints.job_secret(database, owner="ann") == secret
    assert endpoints.job_secret(database, owner="bob") != secret
    rotated = endpoints.rotate_job_secret(database, owner="ann")
    assert rotated != secret
    assert endpoints.job_secret(database, owner="ann") == rotated


def test_subscription_without_events_hears_how_jobs_end():
    assert read_subscription({"url": URL}, Destinations()).events == DEFAULT_EVENTS
    assert read_subscription({"url": URL, "events": None}, Destinations()).events == DEFAULT_EVENTS


@pytest.mark.parametrize("event", EVENTS)
def test_subscription_takes_each_event(event):
    assert read_subscription({"url": URL, "events": [event]}, Destinations()).events == (event,)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (None, "webhook"),
        ("https://example.org", "webhook"),
        ([], "webhook"),
        ({}, "webhook.url"),
        ({"url": 7}, "webhook.url"),
        ({"url": "https://10.0.0.1/"}, "webhook.url"),
        ({"url": URL, "events": "job.failed"}, "webhook.events"),
        ({"url": URL, "events": []}, "webhook.events"),
        ({"url": URL, "events": ["job.started"]}, "webhook.events"),
        ({"url": URL, "events": [{}]}, "webhook.events"),
        ({"url": URL, "events": ["job.failed", "job.failed"]}, "webhook.events"),
        ({"url": URL, "secret": "mine"}, "webhook.secret"),
    ],
)
def test_subscription_that_is_not_understood_is_refused_by_name(body, field):
    with pytest.raises(InvalidParameters) as caught:
        read_subscription(body, Destinations(), field="webhook")
    assert [error.field for error in caught.value.errors] == [field]
    assert all(error.limit for error in caught.value.errors)
