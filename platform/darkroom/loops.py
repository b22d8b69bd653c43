"""A loop that runs in a thread until it is stopped, and goes on after a fault. Knows not what it does."""

import random
import threading
import time
from collections.abc import Callable

import structlog

from darkroom.errors import DarkroomError

logger = structlog.get_logger(__name__)

JITTER = 0.2
MAX_PAUSE_SECONDS = 5.0


class Loop:
    """Calls `turn` again and again, `pause_seconds` apart (jittered; doubled after each fault, up to a limit)."""

    def __init__(self, name: str, turn: Callable[[], None], *, pause_seconds: float) -> None:
        self._name = name
        self._turn = turn
        self._pause_seconds = pause_seconds
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._last_turn = time.monotonic()

    def ensure_alive(self) -> None:
        """Start the thread unless it runs or the loop was stopped. To be called after a fork, never before."""
        with self._lock:
            if self._stop.is_set() or (self._thread and self._thread.is_alive()):
                return
            self._last_turn = time.monotonic()
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread  # a signal's exception may come before: what `stop` joins has been started

    def stop(self, *, timeout: float = 5) -> None:
        """End the thread. Again is fine, and so is before it was started, and from inside a turn."""
        self._stop.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    @property
    def age_seconds(self) -> float:
        """How long ago the last turn began: small while the loop lives and its turns end."""
        return time.monotonic() - self._last_turn

    def _run(self) -> None:
        pause = self._pause_seconds
        while not self._stop.is_set():
            self._last_turn = time.monotonic()
            try:
                self._turn()
                pause = self._pause_seconds
            except DarkroomError as error:
                pause = _longer(pause)
                logger.warning("loop_waits", loop=self._name, reason=str(error), seconds=round(pause, 1))
            except Exception:
                pause = _longer(pause)
                logger.exception("loop_failed", loop=self._name, seconds=round(pause, 1))
            self._stop.wait(pause * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311 - jitter


def _longer(pause: float) -> float:
    return min(max(pause, 0.5) * 2, MAX_PAUSE_SECONDS)
