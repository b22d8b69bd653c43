"""The process that a worker's engine has to itself: requests come in, progress and pictures go out.

Its interpreter does nothing else, so that the steps wait for nobody's lock. Knows the link and an engine; knows no job.
It ends with the worker that started it, whatever it does then.
"""

import ctypes
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

from darkroom import logs
from darkroom.config import load_settings
from darkroom_engine import EngineError, EngineStopped, Handle, Request, Tally
from darkroom_worker.engine_plan import EngineFacts, EnginePlan, open_engine
from darkroom_worker.link import Link, Message, read_request, send_output, words_of_error

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
REFUSED_EXIT_CODE = 1
LOST_DEVICE_EXIT_CODE = 70
# How often the worker is told how far the requests are, and that this process lives where there is no other news.
TELL_SECONDS = 0.05
PULSE_SECONDS = 0.5
# While so much of pictures waits for the worker to take it, no further request is begun.
MAX_WAITING_BYTES = 64 * 2**20


class Develops(Protocol):
    """What is served; the tests' own engine has no more."""

    @property
    def tally(self) -> Tally: ...

    def submit(self, request: Request) -> Handle: ...


Opens = Callable[[Mapping[str, Any]], tuple[Develops, EngineFacts]]


def main(open_engine: Opens) -> None:
    """Serve an engine to the process whose id and connection are on the command line, until that ends."""
    worker, connection = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(connection, False)
    _end_with(worker)
    logs.configure(load_settings())
    Service(Link(socket.socket(fileno=connection))).run(open_engine)


def _end_with(worker: int) -> None:
    """Have the kernel kill this process when the worker ends. Elsewhere than on Linux the connection's end tells."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != worker:  # it died before the kernel was asked
            os._exit(0)


class Service:
    """An engine behind a link. The engine's thread never waits for the link, nor a cancel for anything."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._newcomers: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._handles: dict[int, Handle] = {}
        self._has_newcomer = threading.Event()
        self._told_at = 0.0
        self._told: dict[int, object] = {}
        self._shown: dict[int, int] = {}  # the step of the latest preview
        self._told_tally = Tally()

    def run(self, open_engine: Opens) -> None:
        """Open the engine that the first message says, and serve it. Never returns: the process ends with the link."""
        threading.Thread(target=self._read, name="read", daemon=True).start()
        try:
            self._engine, facts = open_engine(self._newcomers.get().words)
        except EngineError as error:
            self._link.send("refused", reason=str(error))
            self._link.finish()
            os._exit(REFUSED_EXIT_CODE)
        self._link.send("ready", **asdict(facts))
        threading.Thread(target=self._tell, name="tell", daemon=True).start()
        while True:
            self._take(self._newcomers.get())

    def _read(self) -> None:
        for message in self._link.read():
            handle = self._handles.get(message.words.get("number", 0))
            if message.kind in {"open", "submit"}:
                self._newcomers.put(message)
            elif handle and message.kind == "cancel":
                handle.cancel()
            elif handle and message.kind == "watch":
                handle.watch(message.words["seconds"])
        os._exit(0)  # the worker is gone, and what runs here is for nobody

    def _take(self, message: Message) -> None:
        """Submit a request, as soon as there is room for its picture, and say what came of it."""
        self._link.wait_until_below(MAX_WAITING_BYTES)
        number = message.words["number"]
        try:
            handle = self._engine.submit(read_request(message))
        except Exception as error:
            self._end(number, error)
            return
        self._handles[number] = handle
        self._link.send("taken", number=number, num_steps=handle.progress.num_steps)
        self._has_newcomer.set()
        handle.add_done_callback(partial(self._hand_over, number))

    def _hand_over(self, number: int, handle: Handle) -> None:
        del self._handles[number]
        try:
            send_output(self._link, number, handle.result())
        except Exception as error:
            self._end(number, error)

    def _end(self, number: int, error: Exception) -> None:
        """End a request without a picture. An engine that stopped by itself has lost its device."""
        if isinstance(error, EngineStopped):
            os._exit(LOST_DEVICE_EXIT_CODE)
        if not isinstance(error, EngineError):
            logger.error("a request broke", exc_info=error)
            error = EngineError(f"an unexpected {type(error).__name__}")
        self._link.send("ended", number=number, **words_of_error(error))

    def _tell(self) -> None:
        """Say how far the requests are, again and again."""
        while True:
            if self._handles:
                time.sleep(TELL_SECONDS)
            else:
                self._has_newcomer.wait(PULSE_SECONDS)
                self._has_newcomer.clear()
            self._tell_once(dict(self._handles))

    def _tell_once(self, handles: dict[int, Handle]) -> None:
        now = {number: _words_of_progress(handle) for number, handle in handles.items()}
        changed = [(number, *words) for number, words in now.items() if words != self._told.get(number)]
        tally = self._engine.tally
        if changed or tally != self._told_tally or time.monotonic() - self._told_at > PULSE_SECONDS:
            self._link.send("moved", requests=changed, num_forwards=tally.num_forwards, num_rows=tally.num_rows)
            self._told_at = time.monotonic()
        self._told, self._told_tally = dict(now), tally
        self._shown = {number: self._show(number, handle) for number, handle in handles.items()}

    def _show(self, number: int, handle: Handle) -> int:
        """Send the latest preview of a request unless it was sent, and give its step."""
        preview, shown = handle.preview, self._shown.get(number, -1)
        if preview is None or preview.step == shown:
            return shown
        try:
            self._link.send("preview", preview.paint(), number=number, step=preview.step)
        except Exception:
            logger.warning("a preview failed", exc_info=True)  # no picture is worse for it
        return preview.step


def _words_of_progress(handle: Handle) -> tuple[str, int, float]:
    progress = handle.progress
    return progress.stage, progress.step, progress.changed_at


if __name__ == "__main__":
    main(lambda words: open_engine(EnginePlan.read(words)))
