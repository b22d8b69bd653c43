"""Several threads ask, and one asks for them all."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from darkroom_worker.together import Together

PATIENCE_SECONDS = 30


class Desk:
    """Serves as the test says, once it lets go; remembers who was served with whom."""

    def __init__(self, answers_of: Callable[[Sequence[int]], Sequence[str]]) -> None:
        self.groups: list[list[int]] = []
        self.together: Together[int, str] = Together(self._serve)
        self._answers_of = answers_of
        self._is_busy, self._may_go_on = threading.Event(), threading.Event()

    def _serve(self, asked: Sequence[int]) -> Sequence[str]:
        self.groups.append(list(asked))
        self._is_busy.set()
        assert self._may_go_on.wait(PATIENCE_SECONDS)
        return self._answers_of(asked)

    def ask(self, pool: ThreadPoolExecutor, *others: int) -> list[Future[str]]:
        """0 asks, and the others while it is being served."""
        first = pool.submit(self.together.ask, 0)
        assert self._is_busy.wait(PATIENCE_SECONDS)
        asking = []
        for n, other in enumerate(others, 1):
            asking.append(pool.submit(self.together.ask, other))
            while len(self.together._waiting) <= n:
                pass
        self._may_go_on.set()
        return [first, *asking]


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def words(asked: Sequence[int]) -> list[str]:
    return [f"answer {each}" for each in asked]


def test_who_ask_while_one_is_served_are_served_together_and_each_is_told_its_own(pool: ThreadPoolExecutor) -> None:
    desk = Desk(words)
    told = [asking.result(PATIENCE_SECONDS) for asking in desk.ask(pool, 1, 2, 3)]
    assert desk.groups == [[0], [1, 2, 3]]
    assert told == ["answer 0", "answer 1", "answer 2", "answer 3"]


def test_who_is_not_answered_with_the_others_is_asked_for_again(pool: ThreadPoolExecutor) -> None:
    desk = Desk(lambda asked: words(asked[:2]))
    told = [asking.result(PATIENCE_SECONDS) for asking in desk.ask(pool, 1, 2, 3)]
    assert desk.groups == [[0], [1, 2, 3], [3]]
    assert told == ["answer 0", "answer 1", "answer 2", "answer 3"]


def test_fault_is_told_to_the_whole_group_and_to_nobody_else(pool: ThreadPoolExecutor) -> None:
    def answers_of(asked: Sequence[int]) -> list[str]:
        if 1 in asked:
            raise LookupError("no")
        return words(asked)

    desk = Desk(answers_of)
    first, *others = desk.ask(pool, 1, 2)
    assert first.result(PATIENCE_SECONDS) == "answer 0"
    for asking in others:
        with pytest.raises(LookupError):
            asking.result(PATIENCE_SECONDS)
    assert desk.together.ask(4) == "answer 4"
