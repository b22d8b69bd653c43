"""Everything in this process that waits for a job: one budget of places, one end. Knows no SSE and no view.

A place is a thread that a client holds. There are fewer places than threads, so that however many wait, plain requests
are answered. Who waits holds no connection to the database.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from flask import request

from darkroom import jobs
from darkroom.db import Database
from darkroom.errors import FieldError, InvalidParameters, NoPlaceToWait
from darkroom.jobs import JobRecord
from darkroom.models import FINAL_STATES
from darkroom.web.hub import Hub, Mailbox

LONGEST_WAIT_SECONDS = 60
PREFERENCE = re.compile(r'\s*wait\s*(?:=\s*"?([^";]*)"?\s*)?(?:;.*)?', re.IGNORECASE)


class Waiting:
    """The places of this process."""

    def __init__(self, hub: Hub, *, database: Database, num_places: int) -> None:
        self.hub = hub
        self._database = database
        self._num_places = num_places
        self._num_taken = 0
        self._lock = threading.Lock()

    @property
    def num_taken(self) -> int:
        """How many wait now."""
        return self._num_taken

    def take_place(self) -> Callable[[], None]:
        """Take a place; call what is returned to give it back, once or more often. Raises NoPlaceToWait."""
        with self._lock:
            if self._num_taken >= self._num_places:
                raise NoPlaceToWait
            self._num_taken += 1
        is_taken = threading.Lock()

        def give_back() -> None:
            if is_taken.acquire(blocking=False):
                with self._lock:
                    self._num_taken -= 1

        return give_back

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place. Raises NoPlaceToWait."""
        give_back = self.take_place()
        try:
            yield
        finally:
            give_back()

    def wait_for(self, job_id: UUID, seconds: float) -> JobRecord:
        """Wait at most so long for a job to end, and return it as it is then. Raises NoPlaceToWait or JobNotFound."""
        with self.place():
            return self.wait_in_place(job_id, seconds)

    def wait_in_place(self, job_id: UUID, seconds: float) -> JobRecord:
        """The same, for who holds a place already."""
        deadline = time.monotonic() + seconds
        with self.hub.follow(job_id) as mailbox:
            job = jobs.get(self._database, job_id)
            if job.state in FINAL_STATES or not _has_ended(mailbox, deadline):
                return job
        return jobs.get(self._database, job_id)

    def submit_and_wait(self, submit: Callable[[], JobRecord]) -> tuple[JobRecord, dict[str, str]]:
        """Submit, and wait as long as this request prefers to (RFC 7240): the job, and headers for the answer.

        Raises InvalidParameters or NoPlaceToWait, and then nothing was submitted, or what `submit` raises.
        """
        seconds = preferred_wait(request.headers.getlist("Prefer"))
        if seconds is None:
            return submit(), {}
        with self.place():
            job = self.wait_in_place(submit().id, seconds)
        return job, {"Preference-Applied": f"wait={seconds}"}


def _has_ended(mailbox: Mailbox, deadline: float) -> bool:
    """Wait for the job's last event: False when the time is up, or nothing more will come."""
    while (seconds := deadline - time.monotonic()) > 0:
        mail = mailbox.take(seconds=seconds)
        if any(event.type in FINAL_STATES for event in mail.events):
            return True
        if mail.is_last:
            return False
    return False


def preferred_wait(headers: list[str]) -> int | None:
    """The seconds that a request prefers to wait; the first `wait` counts, and without a number it is the longest.

    Raises InvalidParameters.
    """
    for preference in ",".join(headers).split(","):
        if found := PREFERENCE.fullmatch(preference):
            return _seconds(found[1])
    return None


def _seconds(text: str | None) -> int:
    if text is None:
        return LONGEST_WAIT_SECONDS
    if not re.fullmatch("[0-9]{1,9}", text.strip()) or int(text) > LONGEST_WAIT_SECONDS:
        limit = f"wait, or wait= and a whole number of seconds from 0 to {LONGEST_WAIT_SECONDS}"
        raise InvalidParameters([FieldError("Prefer", "is out of range", limit)])
    return int(text)
