"""Pictures over HTTP: from the storage through this server, or by a signed address where the storage is public."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from flask import Response, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from darkroom.errors import ImageNotFound
from darkroom.jobs import ImageRecord, JobRecord
from darkroom.storage import CONTENT_TYPES, SIGNED_SECONDS, ByteRange, content_type
from darkroom.web import schemas
from darkroom.web.answers import unchanged
from darkroom.web.identity import asks
from darkroom.web.openapi import ApiBlueprint, pictures, problem, problems, takes
from darkroom.web.problems import Refused
from darkroom.web.queries import one_of, read_query
from darkroom.web.services import services

EXTENSIONS = {content_type: "jpg" if name == "jpeg" else name for name, content_type in CONTENT_TYPES.items()}
QUERY = {"variant": one_of("original", "thumb", "walk", default="original"), "download": one_of("0", "1", default="0")}
ANSWERS = {
    200: pictures(*CONTENT_TYPES.values()),
    206: pictures(*CONTENT_TYPES.values()),
    302: {"description": "Where the picture is, for a while"},
    304: None,
    416: problem(416),
    502: problem(502),
    **problems(404),
}
KEPT = "private, max-age=31536000, immutable"

blueprint = ApiBlueprint("api_images", __name__)


@dataclass(frozen=True)
class Stored:
    """One file of a picture. `num_bytes` is None where nobody noted it."""

    key: str
    etag: str
    num_bytes: int | None


@blueprint.get("/api/v1/jobs/<job_id>/images/<n>", responses=ANSWERS)
@asks("read")
@takes(query=schemas.ImageQuery)
def show_image(job_id: str, n: str) -> AnyResponse:
    """A picture. It never changes, so a browser may keep it."""
    query = read_query(request.args, QUERY)
    image, job = services().image_and_job(job_id, n)
    stored = stored_as(job, image, query["variant"])
    headers = headers_of(job, image, stored, as_download=query["download"] == "1")
    if not_modified := unchanged(stored.etag, headers):
        return not_modified
    if services().storage.is_public:
        link = services().storage.signed_url(stored.key, disposition=headers["Content-Disposition"])
        response = redirect(link, 302)
        response.headers["Cache-Control"] = f"private, max-age={SIGNED_SECONDS // 2}"
        return response
    return stream(stored, headers)


def stored_as(job: JobRecord, image: ImageRecord, variant: str) -> Stored:
    """Which file is meant. Raises ImageNotFound where there is no walk."""
    match variant:
        case "thumb":
            return Stored(image.thumb_key, f"{image.sha256}-thumb", None)
        case "walk":
            if image.n != 0 or job.walk_key is None:
                raise ImageNotFound(job.id, image.n)
            return Stored(job.walk_key, f"{image.sha256}-walk", None)
        case _:
            return Stored(image.key, image.sha256, image.num_bytes)


def headers_of(job: JobRecord, image: ImageRecord, stored: Stored, *, as_download: bool) -> dict[str, str]:
    """What a browser may do with a picture: show it, keep it, and nothing else."""
    name = f"darkroom-{job.id}-{image.n}.{EXTENSIONS.get(content_type(stored.key), 'bin')}"
    return {
        "ETag": f'"{stored.etag}"',
        "Accept-Ranges": "bytes" if stored.num_bytes else "none",
        "Cache-Control": KEPT,
        "Content-Disposition": f'{"attachment" if as_download else "inline"}; filename="{name}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }


def stream(stored: Stored, headers: Mapping[str, str]) -> Response:
    """The bytes, or the one range of them that was asked for."""
    part = wanted_range(stored)
    found = services().storage.open(stored.key, part)
    response = Response(found.chunks, 206 if part else 200, headers, content_type=found.content_type)
    response.content_length = found.num_bytes
    if part:
        response.headers["Content-Range"] = f"bytes {part.first}-{part.last}/{stored.num_bytes}"
    return response


def wanted_range(stored: Stored) -> ByteRange | None:
    """Read the Range header. One that is of another kind, or of several parts, or for another version, counts as none.

    Raises Refused (416) for a range that lies behind the end.
    """
    found = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", request.headers.get("Range", "").replace(" ", ""))
    if stored.num_bytes is None or found is None or not (found[1] or found[2]):
        return None
    if request.headers.get("If-Range", f'"{stored.etag}"') != f'"{stored.etag}"':
        return None
    end = stored.num_bytes - 1
    first = int(found[1]) if found[1] else max(0, stored.num_bytes - int(found[2]))
    last = min(int(found[2]), end) if found[1] and found[2] else end
    if found[1] and found[2] and int(found[2]) < first:
        return None  # not a range at all, says RFC 9110
    if first > end:
        whole = {"Content-Range": f"bytes */{stored.num_bytes}"}
        raise Refused(416, "range_not_satisfiable", f"The picture has {stored.num_bytes} bytes.", whole)
    return ByteRange(first, last)
