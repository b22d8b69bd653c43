"""One Darkroom over HTTP: its key, its refusals, its short outages. Knows no job."""

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from darkroom.addresses import is_loopback
from darkroom.client.documents import Document, ProblemDocument
from darkroom.errors import ClientError, RequestRefused

REQUEST_SECONDS = 30.0
# A connection that breaks is tried again so often, after pauses of about so many seconds.
PAUSES_SECONDS = (0.2, 0.6)
# Statuses that say "later", and for how long that is listened to.
LATER = frozenset({429, 502, 503, 504})
LONGEST_RETRY_AFTER_SECONDS = 10.0
BREAKS = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.TimeoutException)

AnyDocument = TypeVar("AnyDocument", bound=Document)


class Connection:
    """Sends requests and reads answers. Safe to share between threads.

    Every method raises ClientError when Darkroom cannot be reached, RequestRefused when it refuses. Every request is
    one that may be repeated: a submit carries a key of its own.
    """

    def __init__(self, url: str, *, api_key: str | None, timeout_seconds: float) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(
            timeout=timeout_seconds,
            headers=headers,
            # A proxy meant for the outside world has no business between us and this machine.
            trust_env=not is_loopback(urlsplit(self.url).hostname or ""),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back. Again is fine."""
        self._http.close()

    def ask(
        self,
        kind: type[AnyDocument],
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AnyDocument:
        """Send a request, and read the answer as a document."""
        answer = self.send(method, path, json=json, params=params, headers=headers)
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise ClientError(f"{self.url}{path} answered with something that is no {kind.__name__}") from error

    def send(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send a request until it is answered, a few times at most. A picture may lie at another address."""
        for pause in (*PAUSES_SECONDS, None):
            try:
                answer = self._http.request(
                    method, self.url + path, json=json, params=params, headers=headers, follow_redirects=method == "GET"
                )
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if pause is None or not isinstance(error, BREAKS):
                    raise ClientError(f"{self.url} cannot be reached: {error}") from error
            else:
                if answer.is_success:
                    return answer
                asked_for = _retry_after(answer)
                if pause is None or answer.status_code not in LATER or asked_for > LONGEST_RETRY_AFTER_SECONDS:
                    raise refusal(answer)
                pause = max(pause, asked_for)
            time.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311 - so that callers do not march in step
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def stream(self, path: str, *, headers: Mapping[str, str], read_seconds: float) -> Iterator[httpx.Response]:
        """Open an answer that comes bit by bit; no bit may take longer than `read_seconds`. Tried once."""
        timeout = httpx.Timeout(REQUEST_SECONDS, read=read_seconds)
        try:
            with self._http.stream("GET", self.url + path, headers=dict(headers), timeout=timeout) as answer:
                if not answer.is_success:
                    answer.read()
                    raise refusal(answer)
                yield answer
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClientError(f"{self.url} cannot be reached: {error}") from error


def _retry_after(answer: httpx.Response) -> float:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0.0


def refusal(answer: httpx.Response) -> RequestRefused:
    """What an answer says that is no success."""
    try:
        problem = ProblemDocument.model_validate_json(answer.content)
        document = answer.json()
    except ValidationError:
        problem = ProblemDocument(title=f"{answer.request.url} answered {answer.status_code} {answer.reason_phrase}")
        document = {}
    return RequestRefused(
        answer.status_code,
        title=problem.title,
        detail=problem.detail,
        code=problem.code,
        errors=problem.errors,
        document=document,
    )
