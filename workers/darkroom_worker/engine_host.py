"""An engine in a process of its own, seen from the worker: it takes requests like an engine, and survives its death.

Knows processes and the link; knows no job, no model and no torch.
"""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Protocol

import structlog

from darkroom_engine import EngineError, EngineStopped, Handle, Request, Tally
from darkroom_engine.request import Preview, Progress
from darkroom_worker.engine_plan import EngineFacts
from darkroom_worker.errors import EngineAway, EngineLost
from darkroom_worker.link import Link, Message, error_of, read_output, send_request

logger = structlog.get_logger(__name__)

COMMAND = (sys.executable, "-P", "-m", "darkroom_worker.engine_process")
# A process that says nothing for so long hangs, for it says every half second that it lives.
SILENCE_SECONDS = 60
# An engine that is lost is opened again at once. One that is lost again before it has lived so long is waited for.
STEADY_SECONDS = 60.0
MAX_PAUSE_SECONDS = 30.0


class Listener(Protocol):
    """Who is told what becomes of the engine, on the host's thread."""

    def engine_lost(self, reason: str) -> None:
        """It died, with all that it held; requests are refused with EngineAway."""

    def engine_back(self) -> None:
        """It is there again."""

    def engine_gone(self) -> None:
        """It cannot be opened again."""


class RemoteHandle(Handle):
    """A request in the engine's process. The host's thread moves it on."""

    def __init__(self, request: Request, number: int, link: Link) -> None:
        super().__init__(request, request.num_inference_steps)
        self.taken: Future[None] = Future()
        self._number = number
        self._link = link

    def cancel(self) -> None:
        """Ask the engine to drop the request at its next step. Does nothing to a request that is done."""
        super().cancel()
        if not self.done:
            self._link.send("cancel", number=self._number)

    def watch(self, seconds: float) -> None:
        """Ask for previews from now on and for so long; the latest is in `preview`."""
        if not self.done:
            self._link.send("watch", number=self._number, seconds=seconds)

    def hear(self, message: Message) -> None:
        """Take in what the engine says of the request."""
        words = message.words
        if message.kind == "taken":
            self.progress = replace(self.progress, num_steps=words["num_steps"])
            self.taken.set_result(None)
        elif message.kind == "preview":
            [picture] = message.pictures
            self.preview = Preview(words["step"], lambda: picture)
        elif message.kind == "developed":
            self.move("done", self.progress.num_steps, time.monotonic())
            self._future.set_result(read_output(message))
        else:
            self.break_off(error_of(words))

    def move(self, stage: Any, step: int, changed_at: float) -> None:
        """Note how far the request is."""
        self.progress = Progress(stage, step, self.progress.num_steps, changed_at)

    def break_off(self, error: Exception) -> None:
        """End the request without a picture."""
        if not self.taken.done():
            self.taken.set_exception(error)
        self._future.set_exception(error)


class EngineHost:
    """Opens an engine in a process of its own, and again when that dies. All public methods suit any thread."""

    def __init__(
        self,
        plan: Mapping[str, Any],
        *,
        command: Sequence[str] = COMMAND,
        silence_seconds: int = SILENCE_SECONDS,
    ) -> None:
        self._plan = plan
        self._command = command
        self._silence_seconds = silence_seconds
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._handles: dict[int, RemoteHandle] = {}
        self._link: Link | None = None  # while there is an engine behind it
        self._process: subprocess.Popen[bytes] | None = None
        self._facts: Future[EngineFacts] = Future()
        self._listener: Listener | None = None
        self._tally = self._tally_before = Tally()
        self._stop = threading.Event()
        # The kernel kills the process with the thread that started it: this one lives as long as the worker.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def tally(self) -> Tally:
        """How many forwards were run, and how many rows they had, by all its processes together."""
        return self._tally

    def start(self) -> None:
        """Begin to open the engine."""
        self._thread.start()

    def wait_until_open(self) -> EngineFacts:
        """Wait until the engine is there. Raises EngineError, saying why it cannot be opened."""
        return self._facts.result()

    def listen(self, listener: Listener) -> None:
        """Have a listener told from now on, and of what it has missed."""
        with self._lock:
            self._listener = listener
            if self._link is None:
                listener.engine_lost("it is being opened again")
            if self._stop.is_set():
                listener.engine_gone()

    def submit(self, request: Request) -> Handle:
        """Have a request developed. Raises what the engine's `submit` does, EngineAway, or EngineLost."""
        with self._lock:
            if self._stop.is_set():
                raise EngineStopped
            if self._link is None:
                raise EngineAway
            number = next(self._numbers)
            handle = self._handles[number] = RemoteHandle(request, number, self._link)
            send_request(self._link, number, request)
        handle.taken.result()
        return handle

    def kill(self) -> None:
        """End a process that hangs; another takes its place."""
        if self._process:
            self._process.kill()

    def stop(self) -> None:
        """End the engine and its process; requests in flight get EngineStopped. Again is fine."""
        self._stop.set()
        self.kill()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        # Inherited from here: signals to the whole group are the worker's to act on, also while the process starts.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        pause = 0.0
        try:
            while not self._stop.wait(pause):
                opened_at = self._live()
                if opened_at is None:
                    break
                is_steady = time.monotonic() - opened_at >= STEADY_SECONDS
                pause = 0.0 if is_steady else min(max(1.0, 2 * pause), MAX_PAUSE_SECONDS)
        except Exception:
            logger.exception("engine_host_failed")
        self._end()

    def _live(self) -> float | None:
        """See a process through from its start to its end, and say when its engine was there."""
        process, link = self._spawn()
        opened_at, reason = None, ""
        try:
            for message in link.read():
                if message.kind == "ready":
                    opened_at = time.monotonic()
                    self._be_open(link, EngineFacts(**message.words))
                elif message.kind == "refused":
                    reason = message.words["reason"]
                else:
                    self._hear(message)
        except TimeoutError:
            reason = f"its process said nothing for {self._silence_seconds} s"
        finally:
            process.kill()
            exit_code = process.wait()
            link.close()
            self._lose(reason or f"its process {_ending(exit_code)}")
        return opened_at

    def _spawn(self) -> tuple[subprocess.Popen[bytes], Link]:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [*self._command, str(os.getpid()), str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)  # noqa: S603
        self._process = process
        if self._stop.is_set():  # it came too early to end this one
            process.kill()
        link = Link(ours)
        link.send("open", **self._plan)
        return process, link

    def _be_open(self, link: Link, facts: EngineFacts) -> None:
        link.expect_a_word_every(self._silence_seconds)
        with self._lock:
            self._link = link
            listener = self._listener
        if not self._facts.done():
            self._facts.set_result(facts)
        if listener:
            listener.engine_back()

    def _hear(self, message: Message) -> None:
        words = message.words
        if message.kind == "moved":
            before = self._tally_before
            self._tally = Tally(before.num_forwards + words["num_forwards"], before.num_rows + words["num_rows"])
            for number, stage, step, changed_at in words["requests"]:
                if handle := self._handles.get(number):
                    handle.move(stage, step, changed_at)
        elif handle := self._handles.get(words["number"]):
            if message.kind in {"developed", "ended"}:
                del self._handles[words["number"]]
            handle.hear(message)

    def _lose(self, reason: str) -> None:
        """Give up what the process held. Its jobs are told of before their requests end."""
        with self._lock:
            self._link = None
            lost, self._handles = list(self._handles.values()), {}
            listener = self._listener
        self._tally_before = self._tally
        is_stopped = self._stop.is_set()
        if not self._facts.done():
            self._facts.set_exception(EngineError(f"the engine cannot be opened: {reason}"))
        elif not is_stopped:
            logger.critical("engine_lost", reason=reason, num_requests=len(lost))
            if listener:
                listener.engine_lost(reason)
        for handle in lost:
            handle.break_off(EngineStopped() if is_stopped else EngineLost(reason))

    def _end(self) -> None:
        """Refuse requests for good."""
        with self._lock:
            is_first, listener = not self._stop.is_set(), self._listener
            self._stop.set()
        if not self._facts.done():
            self._facts.set_exception(EngineError("the engine's process cannot be started"))
        if is_first and listener:
            listener.engine_gone()


def _ending(exit_code: int) -> str:
    """Say how a process ended."""
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    return f"was ended by {signal.Signals(-exit_code).name}"
