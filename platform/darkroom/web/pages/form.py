"""The page on which a picture is asked for."""

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from darkroom import jobs
from darkroom.catalog import ModelEntry
from darkroom.errors import InvalidParameters, UnknownModel
from darkroom.jobs import JobClass
from darkroom.params import MAX_SEED
from darkroom.web.documents import image_path
from darkroom.web.form import FORMATS, Form, form_from, new_form, refused_form
from darkroom.web.identity import asks, current
from darkroom.web.problems import unknown_model
from darkroom.web.services import job_uuid, services
from darkroom.web.submission import check, read_form
from darkroom.web.wording import LABELS

RECENT = 6
KEPT_BY_SWITCH = ("prompt", "negative_prompt", "seed", "num_images")

blueprint = Blueprint("form", __name__)


@blueprint.get("/")
@asks("read")
def show() -> Response:
    """The form: empty, with a prompt from the address, or with an earlier job's parameters."""
    if again := request.args.get("again"):
        job = jobs.get(services().database, job_uuid(again), owner=current().owner)
        return render(form_from(entry_or_default(job.model), job.params))
    texts = {name: text for name, text in request.args.items() if name in LABELS}
    try:
        entry = services().catalog.get(texts.get("model") or services().catalog.default.name)
    except UnknownModel as error:
        return render(refused_form(services().catalog.default, texts, [unknown_model(error)]), status=404)
    return render(new_form(entry, texts))


@blueprint.post("/")
@asks("submit")
def submit() -> AnyResponse:
    """Queue what the form asks for, ahead of bulk work, and go to its page; or say what was not taken."""
    entry = entry_or_default(request.form.get("model", ""))
    if request.form.get("action") == "switch_model":
        return render(new_form(entry, {name: request.form.get(name, "") for name in KEPT_BY_SWITCH}))
    try:
        body = read_form(request.form)
        submission = check(body, services().rules(), job_class=JobClass.INTERACTIVE)
    except InvalidParameters as error:
        return render(refused_form(entry, request.form, error.errors), status=422)
    job = services().submit(submission)
    return redirect(url_for("job.show", job_id=job.id), 303)


def render(form: Form, *, status: int = 200) -> Response:
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
