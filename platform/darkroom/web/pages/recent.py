"""The latest jobs as a strip of frames in the form: live while any of them lives, with previews."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from uuid import UUID

from flask import Blueprint, Response, render_template

from darkroom import jobs
from darkroom.jobs import JobRecord
from darkroom.models import LIVE_STATES
from darkroom.web.documents import data_url, image_path
from darkroom.web.hub import Mail, Mailboxes
from darkroom.web.identity import asks, current
from darkroom.web.pages import live
from darkroom.web.services import Sight, services
from darkroom.web.wording import sentence_of

RECENT = 8

blueprint = Blueprint("recent", __name__)


@blueprint.get("/recent/events")
@asks("read")
def follow() -> Response:
    """The strip, told anew whenever something happens to one of its jobs, until all of them have ended."""
    return live.stream(nullcontext(), tell)


def tell(_: None) -> Iterator[str]:
    """The strip as it is, then what changes. What is followed is read once more, for it may just have moved."""
    while is_live(recent := recent_jobs()):
        with services().waiting.hub.follow_together(
            [job.id for job in recent if job.state in LIVE_STATES]
        ) as mailboxes:
            followed = recent_jobs()
            yield strip(followed)
            if _places(followed) == _places(recent):
                yield from until_one_moves(mailboxes, {job.id: job for job in followed})
    yield strip(recent)


def _places(recent: Sequence[JobRecord]) -> list[tuple[UUID, int]]:
    return [(job.id, job.event_seq) for job in recent]


def until_one_moves(mailboxes: Mailboxes, followed: Mapping[UUID, JobRecord]) -> Iterator[str]:
    """How far the jobs are that develop, until one of those that are followed has moved."""
    while True:
        mails = live.next_mails(mailboxes, seconds=services().settings.stream_heartbeat_seconds)
        if not mails:
            return  # nothing was heard for long: SQL is the truth
        if any(event.seq > followed[job_id].event_seq for job_id, mail in mails.items() for event in mail.events):
            return
        yield "".join(frame(followed[job_id], mail) for job_id, mail in mails.items()).strip()


def recent_jobs() -> list[JobRecord]:
    """The latest jobs of who asks."""
    return jobs.list_jobs(services().database, owner=current().owner, limit=RECENT)


def is_live(recent: Sequence[JobRecord]) -> bool:
    """Whether anything is still to happen to any of them."""
    return any(job.state in LIVE_STATES for job in recent)


def strip(recent: Sequence[JobRecord]) -> str:
    """All frames, for where they stand on the page."""
    return render_template("form_live.html", recent=recent, image_path=image_path)


def frame(job: JobRecord, mail: Mail) -> str:
    """What is new in the frame of a job: how it looks by now, and how far it is."""
    preview = data_url(mail.previews[-1]) if mail.previews else ""
    words = sentence_of(Sight(job, progress=mail.progress)).text if mail.progress else ""
    return render_template("form_live_frame.html", job=job, preview=preview, words=words)
