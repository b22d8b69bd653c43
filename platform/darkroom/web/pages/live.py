"""What changes on a page that lies open, told as HTML over one stream, which htmx puts into place.

Knows HTTP and how a message is written; each page knows what there is to say. The markup told here has no attributes
of htmx: they would need the nonce of the page, which a stream does not know. So the last thing a stream tells may be
that all is told, and the page fetches itself anew.

A page holds `<div hx-sse:connect="..." hx-sse:close="ended" hx-swap="none" data-insists hx-nonce="{{ nonce() }}">`.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar
from uuid import UUID

from flask import Response, stream_with_context

from darkroom.errors import DatabaseUnavailable, JobNotFound
from darkroom.web.hub import Mail, Mailbox, Mailboxes
from darkroom.web.identity import current, is_still_let_in
from darkroom.web.services import services
from darkroom.web.streams import FAREWELL, HEADERS, OPENING

# How often the place of a waiting job is looked up for whoever watches it: the line moves slowly where it is long.
NEAR_SECONDS, FAR_SECONDS = 2.0, 5.0
LINE_END = re.compile("\r\n|\r|\n")
# Heard by the page, which a comment is not: it knows that all is well.
HEARTBEAT = b"event: heartbeat\ndata: \n\n"
# Which event closes a stream for good: hx-sse:close names it, and what is to be fetched then waits for it.
ENDED = b"event: ended\ndata: \n\n"

T = TypeVar("T")


class SentAway(Exception):
    """Nothing more will come by this stream; who comes back is told how things are then."""


def stream(following: AbstractContextManager[T], tell: Callable[[T], Iterator[str]]) -> Response:
    """Answer with a stream of the HTML that `tell` yields; an empty piece only keeps the connection open.

    `tell` follows from before it looks for the first time, and runs in the context of this request. When it returns,
    the page is told `ended`. When it raises SentAway, or the job or the database is gone, the page comes back and asks
    again. Raises NoPlaceToWait.
    """
    give_back = services().waiting.take_place()
    frames = stream_with_context(_frames(following, tell))
    response = Response(frames, content_type="text/event-stream", headers=HEADERS)
    response.call_on_close(give_back)
    return response


def _frames(following: AbstractContextManager[T], tell: Callable[[T], Iterator[str]]) -> Iterator[bytes]:
    yield OPENING
    try:
        with following as mailbox:
            for html in tell(mailbox):
                yield message(html) if html else HEARTBEAT
    except (DatabaseUnavailable, JobNotFound, SentAway):
        yield FAREWELL
    else:
        yield ENDED


def next_mail(mailbox: Mailbox, *, seconds: float) -> Mail:
    """Wait at most so long for mail. Raises SentAway when none will come, or who asked is not let in any more."""
    mail = mailbox.take(seconds=seconds)
    _check([mail])
    return mail


def next_mails(mailboxes: Mailboxes, *, seconds: float) -> dict[UUID, Mail]:
    """The same for several jobs, by job."""
    mails = mailboxes.take(seconds=seconds)
    _check(mails.values())
    return mails


def _check(mails: Iterable[Mail]) -> None:
    if any(mail.is_last and not mail.events for mail in mails):
        raise SentAway
    if not is_still_let_in(current(), services().keys, "read"):
        raise SentAway


def message(html: str) -> bytes:
    """One message: each <hx-partial> goes where it says, and a <title>, if there is one, becomes the page's."""
    return "".join(f"data: {line}\n" for line in LINE_END.split(html)).encode() + b"\n"
