"""The page of all pictures."""

from flask import Blueprint, Response, make_response, render_template, request

from darkroom import jobs
from darkroom.jobs import JobState
from darkroom.web.documents import image_path
from darkroom.web.identity import asks, current
from darkroom.web.services import job_uuid, services

PAGE = 48

blueprint = Blueprint("gallery", __name__)


@blueprint.get("/gallery")
@asks("read")
def show() -> Response:
    """The pictures of all jobs that succeeded, newest first, a page at a time."""
    cursor = request.args.get("cursor")
    found = jobs.list_jobs(
        services().database,
        owner=current().owner,
        state=JobState.SUCCEEDED,
        before=job_uuid(cursor) if cursor else None,
        limit=PAGE + 1,  # one more tells whether there is a next page
    )
    shown = found[:PAGE]
    next_cursor = shown[-1].id if len(found) > len(shown) else None
    return make_response(
        render_template(
            "gallery.html",
            jobs=shown,
            next_cursor=next_cursor,
            is_first=cursor is None,
            catalog=services().catalog,
            image_path=image_path,
        )
    )
