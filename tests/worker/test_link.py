"""Messages between a worker and its engine's process."""

import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from darkroom_engine import DeadlineExceeded, EngineError, InvalidRequest, RequestFailed, UnknownModel
from darkroom_worker.link import Link, error_of, words_of_error

MIB = 2**20


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    links = tuple(Link(each) for each in socket.socketpair())
    yield links  # type: ignore[misc]
    for link in links:
        link.close()


def test_words_and_pictures_arrive_in_order(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    pictures = [np.full((3, 5, 3), 7, np.uint8), np.arange(20, dtype=np.uint8).reshape(4, 5)[::2]]
    ours.send("one", *pictures, words="grün \ud800")
    ours.send("two", number=2**64 - 1)
    messages = theirs.read()
    first, second = next(messages), next(messages)
    assert (first.kind, first.words) == ("one", {"words": "grün \ud800"})
    for sent, read in zip(pictures, first.pictures, strict=True):
        assert np.array_equal(sent, read)
    assert (second.kind, second.words, list(second.pictures)) == ("two", {"number": 2**64 - 1}, [])


def test_whoever_waits_for_room_waits_until_the_other_end_has_read(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    picture = np.zeros((1, MIB), np.uint8)
    for _ in range(20):
        ours.send("picture", picture)
    num_read = 0

    def read() -> None:
        nonlocal num_read
        for _ in theirs.read():
            num_read += 1

    reader = threading.Thread(target=read)
    reader.start()
    ours.wait_until_below(4 * MIB)
    assert num_read >= 20 - 4 - 1  # one may be on its way
    ours.finish()
    ours.close()
    reader.join()
    assert num_read == 20


def test_reading_ends_with_the_other_end_and_what_is_sent_then_is_dropped(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    theirs.close()
    assert list(ours.read()) == []
    ours.send("picture", np.zeros((MIB, 4), np.uint8))
    ours.wait_until_below(1)


def test_closing_waits_for_nobody_who_does_not_read(ends: tuple[Link, Link]) -> None:
    ours, _ = ends
    ours.send("picture", np.zeros((MIB, 4), np.uint8))
    ours.close()


@pytest.mark.parametrize("error", [InvalidRequest("width", "is 3"), RequestFailed("it broke"), DeadlineExceeded()])
def test_an_error_is_the_same_at_the_other_end(error: EngineError) -> None:
    there = error_of(words_of_error(error))
    assert (type(there), str(there), vars(there)) == (type(error), str(error), vars(error))


def test_an_error_that_no_request_should_get_keeps_its_words() -> None:
    error = UnknownModel("mine", ("yours",))
    assert str(error_of(words_of_error(error))) == str(error)
