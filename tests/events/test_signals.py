"""The lossy signals in Redis against what nobody of ours wrote there: whoever can write to Redis has no power."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest

from darkroom import events
from darkroom.events import ProgressBoard

WAIT_SECONDS = 20


@pytest.mark.parametrize("rubbish", [b"", b"{", b"3", b"[1]", b"null", b'"step"', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_object_is_no_progress(valkey: Any, rubbish: bytes) -> None:
    board, job_id = ProgressBoard(valkey.url), uuid4()
    with valkey.client() as client:
        client.set(events.PROGRESS_KEY.format(job_id=job_id), rubbish)
    assert board.read(job_id) is None


@pytest.mark.parametrize(
    "rubbish",
    [b"{}", b'{"stage": [], "step": 1, "num_steps": 2}', b'{"stage": "denoise", "step": NaN, "num_steps": 2}'],
)
def test_object_of_another_shape_is_no_progress(valkey: Any, rubbish: bytes) -> None:
    board, job_id = ProgressBoard(valkey.url), uuid4()
    with valkey.client() as client:
        client.set(events.PROGRESS_KEY.format(job_id=job_id), rubbish)
    assert board.read(job_id) is None


def test_progress_of_another_type_of_key_is_none(valkey: Any) -> None:
    board, job_id = ProgressBoard(valkey.url), uuid4()
    with valkey.client() as client:
        client.rpush(events.PROGRESS_KEY.format(job_id=job_id), "a list")
    assert board.read(job_id) is None


@dataclass
class Ear:
    """Listens; the first thing it hears breaks it."""

    heard: list[UUID] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def note(self, job_id: UUID) -> None:
        with self.news:
            self.heard.append(job_id)
            self.news.notify_all()
            if len(self.heard) == 1:
                raise RuntimeError("the callback has a bug")

    def wait_for(self, job_id: UUID) -> bool:
        with self.news:
            return self.news.wait_for(lambda: job_id in self.heard, WAIT_SECONDS)


@pytest.fixture
def ear(valkey: Any) -> Iterator[Ear]:
    ear, stop = Ear(), threading.Event()
    listener = threading.Thread(
        target=events.listen_for_cancels, args=(valkey.url,), kwargs={"on_cancel": ear.note, "stop": stop}
    )
    listener.start()
    with valkey.client() as client:
        while not client.pubsub_numsub(events.CANCEL_CHANNEL)[0][1]:
            stop.wait(0.01)
    yield ear
    stop.set()
    listener.join(WAIT_SECONDS)


def test_listener_outlives_a_callback_that_fails(valkey: Any, ear: Ear) -> None:
    first, second = uuid4(), uuid4()
    for job_id in (first, second):
        ProgressBoard(valkey.url).announce_cancel(job_id)
        assert ear.wait_for(job_id)
    assert ear.heard == [first, second]
