"""Server-sent events, from bytes to frames (WHATWG HTML, 9.2.6). Knows no connection."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# A preview is some tens of kilobytes; whoever sends a longer line sends no event of ours.
MOST_LINE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Frame:
    """One event as it was sent. One without a name and data is a heartbeat."""

    name: str = ""
    data: str = ""
    id: str | None = None
    retry_seconds: float | None = None


def read_frames(chunks: Iterable[bytes]) -> Iterator[Frame]:
    """Read frames as they come. One that was cut off is no frame. Raises ValueError for what is no stream of events."""
    fields: dict[str, str] = {}
    data: list[str] = []
    for line in _lines(chunks):
        if not line:
            if fields or data:
                yield _frame(fields, data)
            fields, data = {}, []
        elif line.startswith(":"):
            yield Frame()
        else:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            else:
                fields[name] = value


def _frame(fields: dict[str, str], data: list[str]) -> Frame:
    retry = fields.get("retry", "")
    seconds = int(retry) / 1000 if retry.isascii() and retry.isdigit() and len(retry) < 9 else None
    return Frame(fields.get("event", ""), "\n".join(data), fields.get("id"), seconds)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MOST_LINE_BYTES:
            raise ValueError("a line without end")
        for line in lines:
            yield line.removesuffix(b"\r").decode()
