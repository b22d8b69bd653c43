"""The native API from the caller's side. Knows HTTP and the API's documents; nothing of how jobs are stored or run."""

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from pydantic import ValidationError

from darkroom.client.connection import REQUEST_SECONDS, Connection
from darkroom.client.documents import Event, Image, Job, JobPage, Model, Models, Picture, Progress
from darkroom.client.frames import Frame, read_frames
from darkroom.errors import ClientError, JobFailed, JobUnfinished, RequestRefused

DEFAULT_URL = "http://127.0.0.1:8000"
WAIT_SECONDS = 3600.0
# Three heartbeats: a stream that says nothing for so long is dead.
SILENCE_SECONDS = 45.0
RECONNECT_SECONDS = 1.0
FIRST_POLL_SECONDS = 0.1
SLOWEST_POLL_SECONDS = 2.0
POLL_GROWTH = 1.3
OUTAGE_SECONDS = 30.0  # a web host may be restarted while somebody waits


class Darkroom:
    """Speaks to one Darkroom. Safe to share between threads; use it in a `with` block, or close it.

    Without an address and a key it takes DARKROOM_URL and DARKROOM_API_KEY. Every method raises ClientError when
    Darkroom cannot be reached, and RequestRefused, with the problem it told, when it refuses.
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout_seconds: float = REQUEST_SECONDS
    ) -> None:
        url = url or os.environ.get("DARKROOM_URL") or DEFAULT_URL
        api_key = api_key or os.environ.get("DARKROOM_API_KEY")
        self._connection = Connection(url, api_key=api_key, timeout_seconds=timeout_seconds)
        self.url = self._connection.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back. Again is fine."""
        self._connection.close()

    def generate(self, prompt: str, *, wait_seconds: float = WAIT_SECONDS, **fields: Any) -> list[Picture]:
        """Submit a job, wait for it, and fetch its pictures.

        Raises JobFailed when it ends without any, JobUnfinished when it has not ended in time.
        """
        job = self.wait(self.submit(prompt, **fields).id, seconds=wait_seconds)
        if job.state != "succeeded":
            raise JobFailed(job.id, state=job.state, message=job.error.message if job.error else "")
        return self.pictures(job)

    def submit(self, prompt: str, *, idempotency_key: str | None = None, **fields: Any) -> Job:
        """Queue a job; a field that is None is left to the model's default.

        However often the network breaks meanwhile, one job is made: the request carries a key of its own, or yours.
        """
        given = {name: value for name, value in fields.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
        return self._connection.ask(Job, "POST", "/api/v1/jobs", json={"prompt": prompt, **given}, headers=headers)

    def get(self, job_id: UUID | str) -> Job:
        """Read a job as it is now."""
        return self._connection.ask(Job, "GET", f"/api/v1/jobs/{job_id}")

    def jobs(self, *, limit: int = 20, **filters: Any) -> tuple[Job, ...]:
        """Read the newest jobs; filters are `state`, `model`, `q` (words of the prompt), `batch`, `cursor`."""
        given = {name: str(value) for name, value in filters.items() if value is not None}
        return self._connection.ask(JobPage, "GET", "/api/v1/jobs", params={"limit": limit, **given}).jobs

    def cancel(self, job_id: UUID | str) -> Job:
        """Call a job off, queued or running; one that was called off before is no error."""
        return self._connection.ask(Job, "POST", f"/api/v1/jobs/{job_id}/cancel")

    def models(self) -> tuple[Model, ...]:
        """Read the models on offer, the default first."""
        return self._connection.ask(Models, "GET", "/api/v1/models").models

    def pictures(self, job: Job) -> list[Picture]:
        """Fetch every picture of a job that has succeeded."""
        return [self.picture(image) for image in job.images]

    def picture(self, image: Image) -> Picture:
        """Fetch one picture."""
        body = self._connection.send("GET", image.url).content
        return Picture(image.n, body, image.content_type, image.width, image.height, image.seed)

    def stream(self, job_id: UUID | str) -> Iterator[Event]:
        """Read what happens to a job, from its beginning to its end, riding out short outages on the way."""
        for frame in self._frames(job_id, seconds=float("inf")):
            if event := _event(frame):
                yield event

    def wait(
        self,
        job_id: UUID | str,
        *,
        seconds: float = WAIT_SECONDS,
        on_change: Callable[[Job], None] = lambda job: None,
    ) -> Job:
        """Wait until the job has ended: by its stream, and where there is none by asking again and again.

        Raises JobUnfinished when it has not ended in time; the job itself goes on.
        """
        deadline = time.monotonic() + seconds
        job = self.get(job_id)
        on_change(job)
        with suppress(RequestRefused):  # whoever does not stream may still be asked, and says what is wrong
            for fresh in self._followed(job, deadline):
                if fresh != job:
                    on_change(fresh)
                job = fresh
        return self._poll(job, deadline, seconds, on_change)

    def _followed(self, job: Job, deadline: float) -> Iterator[Job]:
        """A job as its stream tells it, until it has ended or the time is up."""
        if not job.is_live:
            return
        for frame in self._frames(job.id, seconds=deadline - time.monotonic()):
            event = _event(frame)
            if event is None:  # a heartbeat: time to ask how many are still ahead
                job = self.get(job.id) if job.state == "queued" else job
            elif event.name == "done":
                job = _job(event) or self.get(job.id)
            elif event.name == "state" and event.document.get("state") != job.state:
                job = self.get(job.id)
            elif event.name == "progress":
                job = job.model_copy(update={"progress": _progress(event)})
            yield job
            if not job.is_live:
                return

    def _frames(self, job_id: UUID | str, *, seconds: float) -> Iterator[Frame]:
        """The frames of a job's stream, taken up again after the last one that had an id, for at most so long.

        Raises RequestRefused, or ClientError when nobody answers for a while.
        """
        deadline = time.monotonic() + seconds
        give_up_at = time.monotonic() + OUTAGE_SECONDS
        last_id, pause = None, RECONNECT_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
            try:
                with self._connection.stream(
                    f"/api/v1/jobs/{job_id}/events", headers=headers, read_seconds=min(SILENCE_SECONDS, left)
                ) as answer:
                    if answer.status_code == 204:
                        return
                    for frame in read_frames(answer.iter_bytes()):
                        give_up_at = time.monotonic() + OUTAGE_SECONDS
                        last_id = frame.id or last_id
                        pause = pause if frame.retry_seconds is None else frame.retry_seconds
                        yield frame
                        if frame.name == "done" or time.monotonic() > deadline:
                            return
            except RequestRefused as refused:
                if refused.status < 500 or time.monotonic() > give_up_at or last_id is None:
                    raise
            except ClientError:
                if time.monotonic() >= deadline:
                    return
                if time.monotonic() > give_up_at:
                    raise
            except ValueError as error:
                raise ClientError(f"{self.url} answered with something that is no stream of events") from error
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))

    def _poll(self, job: Job, deadline: float, seconds: float, on_change: Callable[[Job], None]) -> Job:
        pause = FIRST_POLL_SECONDS
        while job.is_live:
            if time.monotonic() + pause > deadline:
                raise JobUnfinished(job.id, state=job.state, seconds=seconds)
            time.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311 - so that callers do not march in step
            fresh = self._get_patiently(job.id, deadline)
            pause = FIRST_POLL_SECONDS if fresh != job else min(pause * POLL_GROWTH, SLOWEST_POLL_SECONDS)
            if fresh != job:
                on_change(fresh)
            job = fresh
        return job

    def _get_patiently(self, job_id: UUID | str, deadline: float) -> Job:
        give_up_at = min(deadline, time.monotonic() + OUTAGE_SECONDS)
        while True:
            try:
                return self.get(job_id)
            except RequestRefused as refusal:
                if refusal.status < 500 or time.monotonic() > give_up_at:
                    raise
            except ClientError:
                if time.monotonic() > give_up_at:
                    raise
            time.sleep(SLOWEST_POLL_SECONDS)


def _event(frame: Frame) -> Event | None:
    if not frame.data:
        return None
    try:
        document = json.loads(frame.data)
    except ValueError as error:
        raise ClientError(f"an event {frame.name!r} came that is no JSON") from error
    if not isinstance(document, dict):
        raise ClientError(f"an event {frame.name!r} came that is no object")
    return Event(frame.name, document, frame.id)


def _progress(event: Event) -> Progress | None:
    try:
        return Progress.model_validate(event.document)
    except ValidationError:  # it is lossy anyway
        return None


def _job(event: Event) -> Job | None:
    try:
        return Job.model_validate(event.document)
    except ValidationError:  # one that was deleted meanwhile is told by its id and state only
        return None
