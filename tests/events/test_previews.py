"""Previews reach those who watch, cost nothing where nobody does, and are believed only in their own shape."""

from typing import Any
from uuid import uuid4

import pytest

from darkroom.previews import MAX_PREVIEW_BYTES, PREVIEW_KEY, WATCH_KEY, WATCH_SECONDS, Preview, PreviewBoard

FRAME = b"RIFF\x08\x00\x00\x00WEBPVP8 \n"


def test_only_a_watched_job_is_watched(valkey: Any) -> None:
    board, watched, unwatched = PreviewBoard(valkey.url), uuid4(), uuid4()
    board.watch(watched)
    assert board.watched([unwatched, watched]) == {watched}


def test_a_watch_ends_by_itself(valkey: Any) -> None:
    board, job_id = PreviewBoard(valkey.url), uuid4()
    board.watch(job_id)
    with valkey.client() as client:
        assert 0 < client.ttl(WATCH_KEY.format(job_id=job_id)) <= WATCH_SECONDS


def test_the_latest_preview_of_each_picture_is_read_back(valkey: Any) -> None:
    board, job_id = PreviewBoard(valkey.url), uuid4()
    board.publish(job_id, 0, step=1, body=FRAME)
    board.publish(job_id, 0, step=4, body=FRAME + b"later")
    board.publish(job_id, 2, step=3, body=FRAME)
    assert board.read(job_id) == Preview(0, 4, FRAME + b"later")
    assert board.read(job_id, 2) == Preview(2, 3, FRAME)
    assert board.read(job_id, 1) is None


def test_a_preview_does_not_stay(valkey: Any) -> None:
    board, job_id = PreviewBoard(valkey.url), uuid4()
    board.publish(job_id, 0, step=1, body=FRAME)
    with valkey.client() as client:
        assert 0 < client.ttl(PREVIEW_KEY.format(job_id=job_id, n=0)) <= 60


@pytest.mark.parametrize(
    "rubbish",
    [
        b"{",
        b"\xff\n" + FRAME,
        b"[1]\n" + FRAME,
        b"[" * 100_000 + b"\n" + FRAME,
        b'{"n": 0}\n' + FRAME,
        b'{"n": true, "step": 1}\n' + FRAME,
        b'{"n": 0, "step": 1}\n<svg onload="alert(1)">',
        b'{"n": 0, "step": 1}\n' + FRAME + b"x" * MAX_PREVIEW_BYTES,
    ],
)
def test_what_is_no_preview_is_none(valkey: Any, rubbish: bytes) -> None:
    board, job_id = PreviewBoard(valkey.url), uuid4()
    with valkey.client() as client:
        client.set(PREVIEW_KEY.format(job_id=job_id, n=0), rubbish)
    assert board.read(job_id) is None


def test_a_redis_that_hung_is_left_alone_for_a_while(valkey: Any) -> None:
    board, job_id = PreviewBoard(valkey.url), uuid4()
    valkey.pause()
    board.watch(job_id)
    valkey.resume()
    board.watch(job_id)
    board.publish(job_id, 0, step=1, body=FRAME)
    assert (board.watched([job_id]), board.read(job_id)) == (set(), None)
    with valkey.client() as client:
        client.delete(WATCH_KEY.format(job_id=job_id))  # the first watch may have arrived, late
        assert client.keys("*") == []
