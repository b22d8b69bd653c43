"""The gallery: every picture of who asks, to be looked through, searched, and taken away."""

from collections.abc import Sequence
from uuid import UUID

from flask import Blueprint, Response, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from darkroom.errors import FieldError, InvalidParameters
from darkroom.jobs import JobState
from darkroom.web.documents import image_path
from darkroom.web.identity import asks, current, own_path
from darkroom.web.queries import read_query, words
from darkroom.web.services import job_uuid, services

PAGE = 48
MOST_CHOSEN = 1000
QUERY = {"q": words("words of the prompt")}

blueprint = Blueprint("gallery", __name__)


@blueprint.get("/gallery")
@asks("read")
def show() -> str:
    """The pictures of all jobs that succeeded, newest first, a page at a time; with `q`, those whose prompt has it."""
    cursor = request.args.get("cursor")
    q = read_query({"q": request.args.get("q", "").strip()}, QUERY)["q"]
    before = job_uuid(cursor) if cursor else None
    found, next_cursor = services().list_jobs(state=JobState.SUCCEEDED, q=q, cursor=before, limit=PAGE)
    return render_template(
        "gallery.html",
        jobs=found,
        next_cursor=next_cursor,
        q=q,
        cursor=cursor,
        catalog=services().catalog,
        image_path=image_path,
        may_delete="submit" in current().scopes,
    )


@blueprint.post("/gallery/delete")
@asks("submit")
def delete() -> AnyResponse | str:
    """Ask whether the chosen pictures are to go for good; who has said so is rid of them."""
    chosen = read_chosen(request.form.getlist("job"))
    back = own_path(request.form.get("back", "/gallery"))
    if "sure" not in request.form:
        found = services().find_jobs(chosen)
        return render_template("gallery_delete.html", jobs=found, back=back, image_path=image_path)
    services().erase_many(chosen)
    return Response(status=204) if "HX-Request" in request.headers else redirect(back, 303)


def read_chosen(texts: Sequence[str]) -> list[UUID]:
    """Read which jobs a form has chosen, each once. Raises JobNotFound or InvalidParameters."""
    chosen = dict.fromkeys(map(job_uuid, texts))
    if len(chosen) > MOST_CHOSEN:
        raise InvalidParameters([FieldError("job", f"{len(chosen)} were chosen", f"at most {MOST_CHOSEN} at once")])
    return list(chosen)
