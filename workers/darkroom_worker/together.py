"""What many threads ask for at once, asked in one go. Knows no job and no database."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Together(Generic[Asked, Answer]):
    """Serves one group at a time: whoever asks meanwhile is in the next one. Who is alone waits for no company.

    `serve` answers those whom it is given, in their order, or only the first of them: the others are asked for again,
    before all who came later. What it raises, everybody whom it was given is told.
    """

    def __init__(self, serve: Callable[[Sequence[Asked]], Sequence[Answer]]) -> None:
        self._serve = serve
        self._serving = threading.Lock()
        self._waiting: deque[tuple[Asked, Future[Answer]]] = deque()

    def ask(self, asked: Asked) -> Answer:
        """Ask, and wait for the answer."""
        answer: Future[Answer] = Future()
        self._waiting.append((asked, answer))
        while not answer.done():
            with self._serving:
                if not answer.done():
                    self._serve_who_waits()
        return answer.result()

    def _serve_who_waits(self) -> None:
        group = tuple(self._waiting)
        try:
            answers = self._serve([asked for asked, _ in group])
        except Exception as error:
            for _ in group:
                self._waiting.popleft()[1].set_exception(error)
            return
        for answer in answers:
            self._waiting.popleft()[1].set_result(answer)

    def settle(self, seconds: float) -> None:
        """Wait, at most so long, until nobody is being served who asked before now."""
        if self._serving.acquire(timeout=seconds):
            self._serving.release()
