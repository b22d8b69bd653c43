"""What happens to a job, or to all of somebody's jobs, as server-sent events. Knows HTTP and the event's shapes.

What SQL has recorded carries an id and is told again to who comes back with it; progress and previews are told to who
is there. A line of the history may become several events: only the last of them carries the id, so that who was lost
in their midst is told all of them again. A stream ends with the key that opened it, by its next heartbeat.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from flask import Response, json, request

from darkroom import events, jobs
from darkroom.errors import DatabaseUnavailable, FieldError, InvalidParameters
from darkroom.events import Cursor, EventRecord
from darkroom.jobs import JobRecord, JobState
from darkroom.models import FINAL_STATES
from darkroom.previews import Preview
from darkroom.web import schemas
from darkroom.web.documents import data_url, image_document, job_document, timestamp
from darkroom.web.hub import Mail, Mailbox
from darkroom.web.identity import asks, current, is_still_let_in
from darkroom.web.openapi import ApiBlueprint, problems, takes
from darkroom.web.services import Services, job_uuid, services

LAST_EVENT_ID = "Last-Event-ID"
MOST_BIGINT = 2**63 - 1
# What of an event's payload is told: the rest, as the worker's name, is the operator's business.
TOLD = ("attempt", "reason", "code", "message")
OPENING = b"retry: 2000\n\n"
HEARTBEAT = b": still here\n\n"
FAREWELL = b": the stream ends here, come back\nretry: 1000\n\n"
PAGE = 500
HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would keep events until its buffer is full
}

EVENTS = {
    "description": "Server-sent events: state, progress, preview, image, done",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}

blueprint = ApiBlueprint("streams", __name__)


@blueprint.get("/api/v1/jobs/<job_id>/events", responses={200: EVENTS, 204: None, **problems(404)})
@asks("read")
@takes(header=schemas.StreamHeaders)
def stream_job(job_id: str) -> Response:
    """A job's events from its first line, or from the one after Last-Event-ID, until it has ended."""
    after = _read_seq(request.headers.get(LAST_EVENT_ID))
    job = jobs.get(services().database, job_uuid(job_id), owner=current().owner)
    if job.state in FINAL_STATES and not events.read(services().database, job.id, after=after):
        return Response(status=204)  # nothing is left to tell: an EventSource that hears this comes back no more
    return _stream(_Teller(services()).tell_of_job(job, after))


@blueprint.get("/api/v1/events", responses={200: EVENTS})
@asks("read")
@takes(header=schemas.StreamHeaders)
def stream_all() -> Response:
    """The events of all jobs of who asks, from now on, or from the one after Last-Event-ID."""
    after = _read_cursor(request.headers.get(LAST_EVENT_ID))
    return _stream(_Teller(services()).tell_of_owner(current().owner, after))


def _stream(frames: Iterator[bytes]) -> Response:
    give_back = services().waiting.take_place()
    response = Response(frames, content_type="text/event-stream", headers=HEADERS)
    response.call_on_close(give_back)  # the server closes what it has begun to answer, however that ends
    return response


def _read_seq(text: str | None) -> int:
    if not text:
        return 0
    if not re.fullmatch("[0-9]{1,9}", text):
        raise InvalidParameters([FieldError(LAST_EVENT_ID, "is not taken", "the id of an event of this stream")])
    return int(text)


def _read_cursor(text: str | None) -> Cursor | None:
    if not text:
        return None
    found = re.fullmatch("([0-9]{1,19})-([0-9]{1,19})", text)
    if not found or max(int(found[1]), int(found[2])) > MOST_BIGINT:
        raise InvalidParameters([FieldError(LAST_EVENT_ID, "is not taken", "the id of an event of this stream")])
    return Cursor(int(found[1]), int(found[2]))


class _Teller:
    """Writes streams. Lives longer than the request's context, and holds no connection while it waits."""

    def __init__(self, services: Services) -> None:
        self._database = services.database
        self._hub = services.waiting.hub
        self._heartbeat_seconds = services.settings.stream_heartbeat_seconds
        self._may_stay = partial(is_still_let_in, current(), services.keys, "read")

    def tell_of_job(self, job: JobRecord, after: int) -> Iterator[bytes]:
        yield OPENING
        try:
            with self._hub.follow(job.id, num_images=job.params.num_images) as mailbox:
                yield from self._of_job(job, after, mailbox)
        except DatabaseUnavailable:
            yield FAREWELL

    def _of_job(self, job: JobRecord, seq: int, mailbox: Mailbox) -> Iterator[bytes]:
        news: Iterable[EventRecord] = events.read(self._database, job.id, after=seq)
        while True:
            for event in news:
                if event.seq > seq:
                    seq = event.seq
                    yield from _frames(event, str(seq), self._ended([event]))
                    if event.type in FINAL_STATES:
                        return
            mail = mailbox.take(seconds=self._heartbeat_seconds)
            if not self._may_stay():
                yield FAREWELL
                return
            news = mail.events
            yield from _lossy_frames(job, mail)
            if mail.is_last and not news:
                yield FAREWELL
                return

    def tell_of_owner(self, owner: str, after: Cursor | None) -> Iterator[bytes]:
        yield OPENING
        try:
            with self._hub.follow_owner(owner, catches_up=True) as mailbox:
                yield from self._of_owner(owner, after or events.end(self._database), mailbox)
        except DatabaseUnavailable:
            yield FAREWELL

    def _of_owner(self, owner: str, cursor: Cursor, mailbox: Mailbox) -> Iterator[bytes]:
        is_behind = True
        while True:
            while is_behind:
                found, cursor = events.read_all(self._database, after=cursor, owner=owner, limit=PAGE)
                ended = self._ended(found)
                for event in found:
                    yield from _frames(event, _id_of(event.cursor), ended)
                is_behind = len(found) == PAGE
            mail = mailbox.take(seconds=self._heartbeat_seconds)
            if not self._may_stay():
                yield FAREWELL
                return
            ended = self._ended(mail.events)
            for event in mail.events:
                if event.cursor > cursor:
                    cursor = event.cursor
                    yield from _frames(event, _id_of(cursor), ended)
            if mail.is_last:
                yield FAREWELL
                return
            is_behind = mail.is_behind
            if not mail.events:
                yield HEARTBEAT

    def _ended(self, told: Iterable[EventRecord]) -> Mapping[UUID, JobRecord]:
        """The jobs whose end is told."""
        return jobs.get_many(self._database, {event.job_id for event in told if event.type in FINAL_STATES})


def _frames(event: EventRecord, event_id: str, ended: Mapping[UUID, JobRecord]) -> Iterator[bytes]:
    """The frames of one line of the history; the last carries the id."""
    if event.type not in FINAL_STATES:
        yield _frame("state", state_document(event), event_id)
        return
    yield _frame("state", state_document(event))
    job = ended.get(event.job_id)  # not there if it was deleted meanwhile
    for image in job.images if job else ():
        yield _frame("image", {"job_id": str(event.job_id), **image_document(event.job_id, image)})
    done = job_document(job) if job else {"id": str(event.job_id), "state": event.type}
    yield _frame("done", done, event_id)


def state_document(event: EventRecord) -> dict[str, Any]:
    """A line of a job's history, as `state` events tell it."""
    state = JobState.QUEUED if event.type == "requeued" else event.type
    told = {name: event.payload[name] for name in TOLD if name in event.payload}
    return {"job_id": str(event.job_id), "state": str(state), "at": timestamp(event.created_at), **told}


def _lossy_frames(job: JobRecord, mail: Mail) -> Iterator[bytes]:
    """Progress and previews; a heartbeat when there was nothing at all."""
    if mail.progress:
        yield _frame("progress", {"job_id": str(job.id), **mail.progress})
    for preview in mail.previews:
        yield _frame("preview", preview_document(job, preview))
    if not mail.events and not mail.progress and not mail.previews and not mail.is_last:
        yield HEARTBEAT


def preview_document(job: JobRecord, preview: Preview) -> dict[str, Any]:
    """What one picture looks like by now, small enough to travel inside the event."""
    return {
        "job_id": str(job.id),
        "n": preview.n,
        "step": preview.step,
        "num_steps": job.params.num_inference_steps,
        "image": data_url(preview),
    }


def _id_of(cursor: Cursor) -> str:
    return f"{cursor.xid}-{cursor.position}"


def _frame(name: str, document: Mapping[str, Any], event_id: str | None = None) -> bytes:
    lines = [f"event: {name}", f"data: {json.dumps(document)}"]
    if event_id is not None:
        lines.insert(0, f"id: {event_id}")
    return "\n".join([*lines, "", ""]).encode()
