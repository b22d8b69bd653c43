"""The latest jobs as a strip of frames in the form: live while any of them lives, with a preview of one."""

from base64 import b64encode
from collections.abc import Iterator, Sequence

from flask import Blueprint, Response, render_template

from darkroom import jobs
from darkroom.jobs import JobRecord, JobState
from darkroom.models import LIVE_STATES
from darkroom.web.documents import image_path
from darkroom.web.hub import Mail, Mailbox
from darkroom.web.identity import asks, current
from darkroom.web.pages import live
from darkroom.web.services import Sight, services
from darkroom.web.wording import sentence_of

RECENT = 8
# How late the end of another job may show while one develops.
GLANCE_SECONDS = 1.0

blueprint = Blueprint("recent", __name__)


@blueprint.get("/recent/events")
@asks("read")
def follow() -> Response:
    """The strip, told anew whenever something happens to a job, until all of its jobs have ended."""
    return live.stream(services().waiting.hub.follow_owner(current().owner), tell)


def tell(happenings: Mailbox) -> Iterator[str]:
    """The strip as it is, then what changes."""
    while is_live(recent := recent_jobs()):
        yield strip(recent)
        yield from until_something_happens(happenings, developing(recent))
    yield strip(recent)


def until_something_happens(happenings: Mailbox, job: JobRecord | None) -> Iterator[str]:
    """How far the job is that develops, if one does, until any of the owner's jobs has moved."""
    if job is None:
        while not live.next_mail(happenings, seconds=services().settings.stream_heartbeat_seconds).events:
            yield ""
        return
    with services().waiting.hub.follow(job.id, num_images=1) as mailbox:
        while True:
            mail = live.next_mail(mailbox, seconds=GLANCE_SECONDS)
            is_news = any(event.seq > job.event_seq for event in mail.events)
            if is_news or live.next_mail(happenings, seconds=0).events:
                return
            yield frame(job, mail) if mail.progress or mail.previews else ""


def recent_jobs() -> list[JobRecord]:
    """The latest jobs of who asks."""
    return jobs.list_jobs(services().database, owner=current().owner, limit=RECENT)


def is_live(recent: Sequence[JobRecord]) -> bool:
    """Whether anything is still to happen to any of them."""
    return any(job.state in LIVE_STATES for job in recent)


def developing(recent: Sequence[JobRecord]) -> JobRecord | None:
    """Of the jobs that develop, the one that was asked for first: previews of all would slow the workers down."""
    return next((job for job in reversed(recent) if job.state is JobState.RUNNING), None)


def strip(recent: Sequence[JobRecord]) -> str:
    """All frames, for where they stand on the page."""
    return render_template("form_live.html", recent=recent, image_path=image_path)


def frame(job: JobRecord, mail: Mail) -> str:
    """The frame of the job that develops."""
    previews = [f"data:image/webp;base64,{b64encode(preview.body).decode()}" for preview in mail.previews]
    words = sentence_of(Sight(job, progress=mail.progress)).text if mail.progress else ""
    return render_template("form_live_frame.html", job=job, preview=previews[-1] if previews else "", words=words)
