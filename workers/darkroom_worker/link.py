"""Messages between a worker and the process of its engine: words as JSON, pictures as raw bytes; never pickle.

Knows the shapes of requests, pictures and errors; knows no engine and no job.
"""

import json
import math
import queue
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from darkroom_engine import (
    DeadlineExceeded,
    EngineError,
    EngineStopped,
    InvalidRequest,
    Output,
    Request,
    RequestCanceled,
    RequestFailed,
)

Pixels = npt.NDArray[np.uint8]

LENGTH = struct.Struct("!I")
TIMEVAL = struct.Struct("ll")  # <sys/time.h>: seconds, microseconds
# Fields of a request or an output that are pixels, and cross beside the words.
INPUTS = ("image", "mask")
OUTPUTS = ("image", "walk")
# What an engine says to one request, by what it is made of.
ERRORS: Mapping[type[EngineError], tuple[str, ...]] = {
    DeadlineExceeded: (),
    EngineStopped: (),
    InvalidRequest: ("field", "problem"),
    RequestCanceled: (),
    RequestFailed: ("reason",),
}


@dataclass(frozen=True)
class Message:
    """What one end says to the other."""

    kind: str
    words: Mapping[str, Any]
    pictures: Sequence[Pixels]


class Link:
    """One end of the connection. Whoever sends never waits: a thread of the link's own writes, in order.

    `read` is for one thread. When the other end is gone, `read` ends and what is sent is dropped.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._outbox: queue.SimpleQueue[tuple[bytes, Sequence[Pixels]] | None] = queue.SimpleQueue()
        self._num_bytes = 0
        self._written = threading.Condition()  # guards the number
        self._thread = threading.Thread(target=self._write_all, name="link", daemon=True)
        self._thread.start()

    def send(self, kind: str, *pictures: Pixels, **words: Any) -> None:
        """Send a message, from any thread."""
        assert all(picture.dtype == np.uint8 for picture in pictures)
        shapes = [picture.shape for picture in pictures]
        said = json.dumps({"kind": kind, "words": words, "pictures": shapes}).encode()
        with self._written:
            self._num_bytes += _num_bytes(pictures)
        self._outbox.put((LENGTH.pack(len(said)) + said, pictures))

    def wait_until_below(self, num_bytes: int) -> None:
        """Wait until the pictures that are not yet written are fewer bytes than this."""
        with self._written:
            self._written.wait_for(lambda: self._num_bytes < num_bytes)

    def expect_a_word_every(self, seconds: int) -> None:
        """Have `read` raise TimeoutError when the other end is silent for so long."""
        # The kernel's limit, not Python's: that one would hold for what is written too.
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMEVAL.pack(seconds, 0))

    def read(self) -> Iterator[Message]:
        """Give what the other end says, until it is gone. Raises TimeoutError."""
        try:
            while True:
                [length] = LENGTH.unpack(self._read(LENGTH.size))
                said = json.loads(self._read(length))
                pictures = [self._read_picture(shape) for shape in said["pictures"]]
                yield Message(said["kind"], said["words"], pictures)
        except BlockingIOError as error:
            raise TimeoutError from error
        except (EOFError, OSError):
            return

    def finish(self) -> None:
        """Write all that was sent. What is sent afterwards is dropped."""
        self._outbox.put(None)
        self._thread.join()

    def close(self) -> None:
        """End it, whatever is not written yet; the other end hears of it at once."""
        with suppress(OSError):  # the other end was gone already
            self._connection.shutdown(socket.SHUT_RDWR)
        self.finish()
        self._connection.close()

    def _write_all(self) -> None:
        while message := self._outbox.get():
            said, pictures = message
            with suppress(OSError):  # the other end is gone, and whoever reads has heard of it
                self._connection.sendall(said)
                for picture in pictures:
                    self._connection.sendall(np.ascontiguousarray(picture).data)
            with self._written:
                self._num_bytes -= _num_bytes(pictures)
                self._written.notify_all()

    def _read_picture(self, shape: Sequence[int]) -> Pixels:
        return np.frombuffer(self._read(math.prod(shape)), np.uint8).reshape(shape)

    def _read(self, length: int) -> bytearray:
        """Read so many bytes in as few calls as can be. Raises EOFError when the other end is gone."""
        read = bytearray(length)
        left = memoryview(read)
        while left:
            count = self._connection.recv_into(left, flags=socket.MSG_WAITALL)
            if not count:
                raise EOFError
            left = left[count:]
        return read


def send_request(link: Link, number: int, request: Request) -> None:
    """Send a request, under a number that both ends know it by."""
    words, pictures = _apart(request, INPUTS)
    link.send("submit", *pictures, number=number, request=words)


def read_request(message: Message) -> Request:
    """Read what send_request sent."""
    words = _together(message, message.words["request"], INPUTS)
    return Request(**words | {"loras": tuple((name, weight) for name, weight in words["loras"])})


def send_output(link: Link, number: int, output: Output) -> None:
    """Send a request's picture."""
    words, pictures = _apart(output, OUTPUTS)
    link.send("developed", *pictures, number=number, output=words)


def read_output(message: Message) -> Output:
    """Read what send_output sent."""
    return Output(**_together(message, message.words["output"], OUTPUTS))


def words_of_error(error: EngineError) -> Mapping[str, Any]:
    """Say an error of one request so that `error_of` can raise it elsewhere."""
    for kind, names in ERRORS.items():
        if type(error) is kind:
            return {"error": kind.__name__, "arguments": [getattr(error, name) for name in names]}
    return {"error": EngineError.__name__, "arguments": [str(error)]}


def error_of(words: Mapping[str, Any]) -> EngineError:
    """Make the error that words_of_error said."""
    kinds: dict[str, type[EngineError]] = {kind.__name__: kind for kind in (*ERRORS, EngineError)}
    return kinds[words["error"]](*words["arguments"])


def _num_bytes(pictures: Sequence[Pixels]) -> int:
    return sum(picture.nbytes for picture in pictures)


def _apart(value: Request | Output, names: Sequence[str]) -> tuple[dict[str, Any], list[Pixels]]:
    """Take the pictures out of a value: its words say which of these it has."""
    words = {field.name: getattr(value, field.name) for field in fields(value)}
    pictures = {name: picture for name in names if (picture := words.pop(name)) is not None}
    return words | {"pictures": list(pictures)}, list(pictures.values())


def _together(message: Message, words: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    pictures = dict(zip(words["pictures"], message.pictures, strict=True))
    return {name: word for name, word in words.items() if name != "pictures"} | pictures
