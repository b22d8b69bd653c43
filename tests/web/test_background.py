"""The loops of a web process: there from its start, and gone when told."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from darkroom.config import Settings
from darkroom.web import create_app

LOOPS = {"relay", "sweep", "chores", "crier", "webhooks"}


def living() -> set[str]:
    return LOOPS & {thread.name for thread in threading.enumerate()}


@pytest.fixture
def full_app(settings: Settings) -> Iterator[Flask]:
    """An application with its loops."""
    app = create_app(settings)
    yield app
    app.extensions["darkroom"].background.stop()
    app.extensions["darkroom"].database.dispose()


def test_loops_live_before_the_first_request_and_end_when_told(full_app: Flask) -> None:
    background = full_app.extensions["darkroom"].background
    assert living() == LOOPS
    background.stop()
    background.stop()
    assert living() == set()
    full_app.test_client().get("/healthz")
    assert living() == set()


def test_application_without_background_starts_no_thread(settings: Settings) -> None:
    create_app(settings, with_background=False).test_client().get("/healthz")
    assert living() == set()


def test_submitted_job_is_rung_for_at_once(settings: Settings, valkey: Any) -> None:
    app = create_app(settings.model_copy(update={"relay_seconds": 5}))
    job = app.test_client().post("/api/v1/jobs", json={"prompt": "a red house"}).json
    with valkey.client() as redis:
        _, message = redis.blpop("darkroom:develop.darkroom-seeded", timeout=4)
    app.extensions["darkroom"].background.stop()
    assert job["id"] in message


def test_cancel_tells_the_worker_by_redis(full_app: Flask, valkey: Any) -> None:
    client = full_app.test_client()
    job = client.post("/api/v1/jobs", json={"prompt": "a red house"}).json
    with valkey.client() as redis, redis.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe("darkroom:cancel")
        channel.get_message(timeout=1)
        client.post(job["urls"]["cancel"])
        message = channel.get_message(ignore_subscribe_messages=True, timeout=5)
    assert message["data"] == job["id"]
