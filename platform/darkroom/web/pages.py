"""The pages that people read: the form, a job, the gallery. They work with JavaScript off.

A view reads HTTP, makes one call, writes HTTP; what a page says of a job is put into words in wording.py.
"""

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from darkroom import jobs
from darkroom.catalog import ModelEntry
from darkroom.errors import InvalidParameters, JobFinished, UnknownModel
from darkroom.jobs import JobClass, JobState
from darkroom.params import MAX_SEED
from darkroom.web.documents import image_path, job_path
from darkroom.web.form import FORMATS, Form, form_from, new_form, refused_form
from darkroom.web.identity import asks, current
from darkroom.web.problems import unknown_model
from darkroom.web.services import job_uuid, services
from darkroom.web.submission import check, read_form
from darkroom.web.wording import LABELS, parameters_in_words, sentence_of, shown_size, times_in_words

RECENT = 6
GALLERY_PAGE = 48
KEPT_BY_SWITCH = ("prompt", "negative_prompt", "seed", "num_images")

blueprint = Blueprint("pages", __name__)


@blueprint.get("/")
@asks("read")
def show_form() -> Response:
    """The form: empty, with a prompt from the address, or with an earlier job's parameters."""
    if again := request.args.get("again"):
        job = jobs.get(services().database, job_uuid(again), owner=current().owner)
        return render_form(form_from(entry_or_default(job.model), job.params))
    texts = {name: text for name, text in request.args.items() if name in LABELS}
    try:
        entry = services().catalog.get(texts.get("model") or services().catalog.default.name)
    except UnknownModel as error:
        return render_form(refused_form(services().catalog.default, texts, [unknown_model(error)]), status=404)
    return render_form(new_form(entry, texts))


@blueprint.post("/")
@asks("submit")
def submit_form() -> AnyResponse:
    """Queue what the form asks for, ahead of bulk work, and go to its page; or say what was not taken."""
    entry = entry_or_default(request.form.get("model", ""))
    if request.form.get("action") == "switch_model":
        return render_form(new_form(entry, {name: request.form.get(name, "") for name in KEPT_BY_SWITCH}))
    try:
        body = read_form(request.form)
        submission = check(body, services().rules(), job_class=JobClass.INTERACTIVE)
    except InvalidParameters as error:
        return render_form(refused_form(entry, request.form, error.errors), status=422)
    job = services().submit(submission)
    return redirect(url_for("pages.show_job", job_id=job.id), 303)


@blueprint.get("/jobs/<job_id>")
@asks("read")
def show_job(job_id: str) -> Response:
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
def cancel_job(job_id: str) -> AnyResponse:
    """Call a job off, and go back to its page: if it has ended meanwhile, the page says how."""
    try:
        services().cancel(job_id)
    except JobFinished as error:
        job_id = str(error.job_id)
    return redirect(url_for("pages.show_job", job_id=job_id), 303)


@blueprint.get("/gallery")
@asks("read")
def show_gallery() -> Response:
    """The pictures of all jobs that succeeded, newest first, a page at a time."""
    cursor = request.args.get("cursor")
    found = jobs.list_jobs(
        services().database,
        owner=current().owner,
        state=JobState.SUCCEEDED,
        before=job_uuid(cursor) if cursor else None,
        limit=GALLERY_PAGE + 1,  # one more tells whether there is a next page
    )
    shown = found[:GALLERY_PAGE]
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


def render_form(form: Form, *, status: int = 200) -> Response:
    """The form page, with the latest jobs below it."""
    recent = jobs.list_jobs(services().database, owner=current().owner, limit=RECENT)
    page = render_template(
        "form.html",
        form=form,
        recent=recent,
        labels=LABELS,
        catalog=services().catalog,
        image_path=image_path,
        max_seed=MAX_SEED,
        formats=FORMATS,
    )
    return make_response(page, status)


def entry_or_default(name: str) -> ModelEntry:
    """The model to draw the form for. A name that is unknown is refused where the form is read."""
    try:
        return services().catalog.get(name)
    except UnknownModel:
        return services().catalog.default
