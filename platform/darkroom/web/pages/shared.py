"""What somebody who has a link may see of a job: its prompt and its pictures, until a day. Nothing of whose it is.

The link itself says which job and until when, signed with the application's key: nothing is stored, and nothing but the
deletion of the job, or a new key, ends it before its day. The pictures come through here, because their files say how
they were made, and their addresses in the storage whose job they are of; no picture is decoded for that.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from flask import Blueprint, Response, current_app, make_response, render_template, url_for
from itsdangerous import BadSignature, URLSafeSerializer

from darkroom import jobs
from darkroom.errors import ImageNotFound, JobNotFound
from darkroom.jobs import ImageRecord, JobRecord, JobState
from darkroom.picture_files import without_texts
from darkroom.web.answers import unchanged
from darkroom.web.api.images import EXTENSIONS
from darkroom.web.identity import asks
from darkroom.web.problems import Refused
from darkroom.web.services import services
from darkroom.web.wording import moment, shown_size

SALT = "shared job"
SECONDS_PER_DAY = 86400
DAYS = (1, 7, 30)
LONGEST_CACHED_SECONDS = 3600

blueprint = Blueprint("shared", __name__)


@dataclass(frozen=True)
class Share:
    """A link to a job's pictures, and when it ends."""

    job_id: UUID
    ends_at: datetime

    @property
    def token(self) -> str:
        """What stands for it in an address."""
        return _serializer().dumps([self.job_id.hex, int(self.ends_at.timestamp())])

    @property
    def url(self) -> str:
        """Where it leads, from anywhere."""
        return url_for("shared.show", token=self.token, _external=True)

    @property
    def seconds_left(self) -> int:
        """How long it is good for, still."""
        return int(self.ends_at.timestamp() - time.time())


def share(job: JobRecord, *, days: int) -> Share:
    """Make a link that is good for so many days from now."""
    return Share(job.id, datetime.fromtimestamp(int(time.time()) + days * SECONDS_PER_DAY, UTC))


def read_share(token: str) -> Share:
    """Read what somebody came with. Raises Refused: 404 for no link of ours, 410 for one that has ended."""
    try:
        job_id, ends_at = _serializer().loads(token)
    except BadSignature as error:
        raise Refused(404, "unknown_link", "This is no link of this Darkroom, or it has lost a part.") from error
    found = Share(UUID(job_id), datetime.fromtimestamp(ends_at, UTC))
    if found.seconds_left <= 0:
        raise Refused(410, "link_ended", "This link was good for a while, and that is over.")
    return found


def _serializer() -> URLSafeSerializer:
    key = current_app.secret_key
    assert key, "create_app sets it"
    return URLSafeSerializer(key, salt=SALT)


def _job_of(share: Share) -> JobRecord:
    job = jobs.get(services().database, share.job_id)
    if job.state is not JobState.SUCCEEDED or job.owner == jobs.NOBODY:  # it was deleted, and waits to be swept away
        raise JobNotFound(share.job_id)
    return job


@blueprint.get("/shared/<token>")
@asks("public")
def show(token: str) -> Response:
    """The pictures and the prompt."""
    share = read_share(token)
    job = _job_of(share)
    page = render_template("shared.html", job=job, share=share, shown_size=shown_size, moment=moment)
    response = make_response(page)
    response.headers["X-Robots-Tag"] = "noindex"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@blueprint.get("/shared/<token>/<int:n>")
@asks("public")
def show_picture(token: str, n: int) -> Response:
    """One of the pictures, without a word in its file. Who has it already is told so, as long as the link is good."""
    share = read_share(token)
    image = _image_of(_job_of(share), n)
    # Below this address nothing ever changes, and the picture's hash would say more than the picture.
    etag = f"{token.rpartition('.')[2]}-{n}"
    headers = {
        "ETag": f'"{etag}"',
        "Cache-Control": f"private, max-age={min(share.seconds_left, LONGEST_CACHED_SECONDS)}",
        "Content-Disposition": f'inline; filename="picture-{n + 1}.{EXTENSIONS[image.content_type]}"',
        "X-Robots-Tag": "noindex",
    }
    if not_modified := unchanged(etag, headers):
        return not_modified
    body = without_texts(services().storage.get(image.key))
    return Response(body, headers=headers, content_type=image.content_type)


def _image_of(job: JobRecord, n: int) -> ImageRecord:
    for image in job.images:
        if image.n == n:
            return image
    raise ImageNotFound(job.id, n)
