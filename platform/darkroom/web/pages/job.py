"""The page of a job: what it is doing now, and the pictures that it made."""

from flask import Blueprint, Response, make_response, redirect, render_template, url_for
from werkzeug.wrappers import Response as AnyResponse

from darkroom.errors import JobFinished
from darkroom.jobs import JobState
from darkroom.web.documents import image_path, job_path
from darkroom.web.identity import asks
from darkroom.web.services import services
from darkroom.web.wording import parameters_in_words, sentence_of, shown_size, times_in_words

blueprint = Blueprint("job", __name__)


@blueprint.get("/jobs/<job_id>")
@asks("read")
def show(job_id: str) -> Response:
    """A job as it is now. Without JavaScript the page asks for itself again while the job lives."""
    sight = services().follow(job_id)
    is_orphan = sight.job.state is JobState.QUEUED and not services().has_worker(sight.job.model)
    return make_response(
        render_template(
            "job.html",
            job=sight.job,
            is_orphan=is_orphan,
            shown_size=shown_size,
            sentence=sentence_of(sight),
            parameters=parameters_in_words(sight.job),
            times=times_in_words(sight.job),
            image_path=image_path,
            job_path=job_path,
        )
    )


@blueprint.post("/jobs/<job_id>/cancel")
@asks("submit")
def cancel(job_id: str) -> AnyResponse:
    """Call a job off, and go back to its page: if it has ended meanwhile, the page says how."""
    try:
        services().cancel(job_id)
    except JobFinished as error:
        job_id = str(error.job_id)
    return redirect(url_for("job.show", job_id=job_id), 303)
