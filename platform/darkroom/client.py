"""The native API from the caller's side. Knows HTTP and the API's documents; nothing of how jobs are stored or run."""

import random
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from darkroom.addresses import is_loopback
from darkroom.errors import ClientError, FieldError, JobUnfinished, RequestRefused

DEFAULT_URL = "http://127.0.0.1:8000"
REQUEST_SECONDS = 30.0
FIRST_POLL_SECONDS = 0.1
SLOWEST_POLL_SECONDS = 2.0
POLL_GROWTH = 1.3
OUTAGE_SECONDS = 30.0  # a web host may be restarted while somebody waits

LIVE_STATES = frozenset({"queued", "running"})


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Progress(_Document):
    """How far a running job is, as far as is known."""

    stage: str
    step: int = 0
    num_steps: int = 0


class Reason(_Document):
    """Why a job has failed."""

    code: str
    message: str


class Image(_Document):
    """A finished picture."""

    n: int
    url: str
    content_type: str
    width: int
    height: int
    num_bytes: int
    seed: int
    sha256: str


class Job(_Document):
    """A job as the API tells it."""

    id: UUID
    state: str
    model: str
    priority: str
    params: dict[str, Any]
    position: int | None = None
    progress: Progress | None = None
    attempt: int = 0
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: Reason | None = None
    timings: dict[str, float] = {}
    images: tuple[Image, ...] = ()
    urls: dict[str, str] = {}

    @property
    def is_live(self) -> bool:
        """Whether it can still change."""
        return self.state in LIVE_STATES


class Model(_Document):
    """A model on offer."""

    name: str
    title: str
    description: str = ""
    family: str
    license: str
    defaults: dict[str, Any]
    limits: dict[str, Any]
    example_prompts: tuple[str, ...] = ()


class _Jobs(_Document):
    jobs: tuple[Job, ...]


class _Models(_Document):
    models: tuple[Model, ...]


class _Problem(_Document):
    title: str
    detail: str = ""
    code: str = ""
    errors: tuple[FieldError, ...] = ()


AnyDocument = TypeVar("AnyDocument", bound=_Document)


class Client:
    """Speaks to one Darkroom. Use it in a `with` block, from one thread.

    Every method raises ClientError when it cannot be reached, RequestRefused when it refuses.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_seconds: float = REQUEST_SECONDS) -> None:
        self.url = url.rstrip("/")
        # A proxy meant for the outside world has no business between us and this machine.
        self._http = httpx.Client(timeout=timeout_seconds, trust_env=not is_loopback(urlsplit(self.url).hostname or ""))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back. Again is fine."""
        self._http.close()

    def submit(self, prompt: str, **fields: Any) -> Job:
        """Queue a job; a field that is None is left to the model's default."""
        given = {name: value for name, value in fields.items() if value is not None}
        return self._ask(Job, "POST", "/api/v1/jobs", json={"prompt": prompt, **given})

    def get(self, job_id: UUID | str) -> Job:
        """Read a job as it is now."""
        return self._ask(Job, "GET", f"/api/v1/jobs/{job_id}")

    def list_jobs(self, *, limit: int = 20) -> tuple[Job, ...]:
        """Read the newest jobs."""
        return self._ask(_Jobs, "GET", f"/api/v1/jobs?limit={limit}").jobs

    def cancel(self, job_id: UUID | str) -> Job:
        """Call a job off, queued or running; one that was called off before is no error."""
        return self._ask(Job, "POST", f"/api/v1/jobs/{job_id}/cancel")

    def models(self) -> tuple[Model, ...]:
        """Read the models on offer, the default first."""
        return self._ask(_Models, "GET", "/api/v1/models").models

    def download(self, image: Image) -> bytes:
        """Read a picture's bytes."""
        return self._send("GET", image.url).content

    def wait(self, job_id: UUID | str, *, seconds: float, on_change: Callable[[Job], None] = lambda job: None) -> Job:
        """Poll until the job has ended, ever more slowly while nothing changes. Rides out a short outage.

        Raises JobUnfinished when it has not ended in time; the job itself goes on.
        """
        deadline = time.monotonic() + seconds
        pause = FIRST_POLL_SECONDS
        job = self.get(job_id)
        on_change(job)
        while job.is_live:
            if time.monotonic() + pause > deadline:
                raise JobUnfinished(job_id, state=job.state, seconds=seconds)
            time.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311 - so that callers do not march in step
            fresh = self._get_patiently(job_id, deadline)
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

    def _ask(self, kind: type[AnyDocument], method: str, path: str, *, json: Any = None) -> AnyDocument:
        answer = self._send(method, path, json=json)
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise ClientError(f"{self.url}{path} answered with something that is no {kind.__name__}") from error

    def _send(self, method: str, path: str, *, json: Any = None) -> httpx.Response:
        try:
            answer = self._http.request(method, self.url + path, json=json)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClientError(f"{self.url} cannot be reached: {error}") from error
        if answer.is_success:
            return answer
        raise _refusal(answer)


def _refusal(answer: httpx.Response) -> RequestRefused:
    try:
        problem = _Problem.model_validate_json(answer.content)
    except ValidationError:
        problem = _Problem(title=f"{answer.request.url} answered {answer.status_code} {answer.reason_phrase}")
    return RequestRefused(
        answer.status_code, title=problem.title, detail=problem.detail, code=problem.code, errors=problem.errors
    )
