"""One POST to an address that somebody else chose. Knows HTTP, names and clocks; knows no job and no database.

A name is resolved here, once, and the connection goes to the very address that was checked: whoever answers the next
question for that name differently gains nothing. Nothing is followed, and no proxy of the environment is asked.
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import httpcore

from darkroom.addresses import address_of
from darkroom.webhooks.destinations import Address, Destinations

TOTAL_SECONDS = 15.0
CONNECT_SECONDS = 5.0
# Read so that the receiver can finish its answer, and thrown away: nobody is shown what it says.
MOST_ANSWER_BYTES = 16 * 1024
ANSWER_CHUNK_BYTES = 4096

Resolve = Callable[[str], Iterable[str]]


@dataclass(frozen=True)
class Answer:
    """What became of a POST: the status of the answer, or why there was none."""

    status: int | None
    error: str | None = None

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver has taken it. A redirect is a refusal."""
        return self.status is not None and 200 <= self.status < 300


class DestinationRefused(httpcore.ConnectError):
    """The name means an address that no webhook may go to."""


def resolve(host: str) -> list[str]:
    """Ask the system for a name's addresses, in its order of preference."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


class Sender:
    """Posts within a total time. One for a process; safe to share between threads."""

    def __init__(
        self, destinations: Destinations, *, resolve: Resolve = resolve, total_seconds: float = TOTAL_SECONDS
    ) -> None:
        self._destinations = destinations
        self._resolve = resolve
        self._total_seconds = total_seconds
        self._ssl_context = ssl.create_default_context()

    def post(self, url: str, body: bytes, *, headers: Mapping[str, str]) -> Answer:
        """Send a body; whatever goes wrong is in the answer."""
        # Judged anew: the rules may have changed since the URL was stored.
        if problem := self._destinations.problem_of(url):
            return Answer(None, f"the URL {problem}")
        deadline = time.monotonic() + self._total_seconds
        backend = _CheckedBackend(self._destinations, self._resolve, deadline)
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), self._total_seconds)
        sent = {"Host": _host_header(url), "Content-Length": str(len(body)), "Connection": "close", **headers}
        with httpcore.ConnectionPool(ssl_context=self._ssl_context, network_backend=backend, retries=0) as pool:
            try:
                with pool.stream(
                    "POST", url, headers=list(sent.items()), content=body, extensions={"timeout": timeouts}
                ) as response:
                    status = response.status
                    _drain(response)
                    return Answer(status)
            except httpcore.TimeoutException:
                return Answer(None, f"no answer within {self._total_seconds:g} seconds")
            except DestinationRefused as error:
                return Answer(None, str(error))
            except httpcore.ConnectError as error:
                return Answer(None, f"no connection: {error}"[:200])
            except (httpcore.NetworkError, httpcore.ProtocolError) as error:
                return Answer(None, f"the connection broke: {error}"[:200])


def _host_header(url: str) -> str:
    origin = httpcore.URL(url).origin
    host = origin.host.decode()
    host = f"[{host}]" if ":" in host else host
    default = {b"http": 80, b"https": 443}[origin.scheme]
    return host if origin.port == default else f"{host}:{origin.port}"


def _drain(response: httpcore.Response) -> None:
    """Read the answer as far as it is read. The status is known: what breaks from here on changes nothing."""
    num_bytes = 0
    try:
        for chunk in response.iter_stream():
            num_bytes += len(chunk)
            if num_bytes >= MOST_ANSWER_BYTES:
                return
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
        return


class _CheckedBackend(httpcore.NetworkBackend):
    """Connects to checked addresses only, all of it before a deadline."""

    def __init__(self, destinations: Destinations, resolve: Resolve, deadline: float) -> None:
        self._destinations = destinations
        self._resolve = resolve
        self._deadline = deadline
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        error: Exception = httpcore.ConnectError("the name has no address")
        for address in self._addresses(host):
            try:
                timeout = min(CONNECT_SECONDS, _left(self._deadline))
                stream = self._backend.connect_tcp(str(address), port, timeout, local_address, socket_options)
                return _TimedStream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as fault:
                error = fault
        raise error

    def _addresses(self, host: str) -> list[Address]:
        """The addresses of a host. Raises DestinationRefused if any of them is closed."""
        literal = address_of(host)
        found = [literal] if literal is not None else self._answers(host)
        if not self._destinations.takes_any_address(host) and not all(map(self._destinations.takes, found)):
            raise DestinationRefused("the host has an address that is not on the internet")
        return found

    def _answers(self, host: str) -> list[Address]:
        try:
            texts = _within(lambda: list(self._resolve(host)), _left(self._deadline))
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError("the name cannot be resolved") from error
        addresses = [address_of(text) for text in texts]
        if None in addresses:
            raise DestinationRefused("the name has an address that cannot be read")
        return [address for address in addresses if address is not None]


class _TimedStream(httpcore.NetworkStream):
    """A connection whose every wait ends with the whole exchange's time."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(min(max_bytes, ANSWER_CHUNK_BYTES), _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline))
        return _TimedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left


def _within(ask: Callable[[], list[str]], seconds: float) -> list[str]:
    """Wait so long for an answer and no longer: the system's resolver takes no time-out, and ends by its own limits."""
    answers: SimpleQueue[list[str] | Exception] = SimpleQueue()

    def work() -> None:
        try:
            answers.put(ask())
        except Exception as error:
            answers.put(error)

    threading.Thread(target=work, name="resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except Empty:
        raise httpcore.ConnectTimeout from None
    if isinstance(answer, Exception):
        raise answer
    return answer
