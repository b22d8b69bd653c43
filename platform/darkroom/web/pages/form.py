"""The page on which a picture is asked for.

Every button of the form sends all of it to one address and says what is to become of it. The answer is the whole page;
with JavaScript, htmx takes out of it what has changed.
"""

from collections.abc import Mapping
from uuid import UUID

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from markupsafe import escape
from werkzeug.wrappers import Response as AnyResponse

from darkroom import jobs
from darkroom.catalog import ModelEntry
from darkroom.errors import InvalidParameters, UnknownModel, UploadNotFound
from darkroom.params import MAX_SEED, resolve
from darkroom.sampler_titles import title_of
from darkroom.web.documents import image_path
from darkroom.web.estimate import foresee, outlook_in_words
from darkroom.web.form import (
    FORMATS,
    Form,
    beginning_form,
    entry_or_default,
    form_from,
    new_form,
    reset_form,
    typed_form,
)
from darkroom.web.form_pictures import (
    begun,
    filled_form,
    held_to_rules,
    sent_picture,
    source_path,
    with_kept_picture,
    with_picture,
)
from darkroom.web.identity import asks, current
from darkroom.web.pages.recent import is_live, recent_jobs
from darkroom.web.problems import unknown_model
from darkroom.web.services import job_uuid, read_uuid, services
from darkroom.web.submission import read_form
from darkroom.web.wording import LABELS

# What this browser did last, so that the page is right at once: form.js writes these.
MODEL_COOKIE = "model"
ADVANCED_COOKIE = "advanced"
KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}
STAND_IN = "-"

blueprint = Blueprint("form", __name__)


@blueprint.get("/")
@asks("read")
def show() -> Response:
    """The form: empty, with words from the address, with an earlier job's parameters, or beginning from its picture."""
    if again := request.args.get("again"):
        job = jobs.get(services().database, job_uuid(again), owner=current().owner)
        return render(form_from(entry_of(job.model), job.params))
    if picture := request.args.get("init"):
        job_id, _, n = picture.partition("/")
        image, job = services().image_and_job(job_id, n)
        return render(beginning_form(entry_of(job.model), job.params, f"job:{job.id}/{image.n}"))
    texts = {name: text for name, text in request.args.items() if name in LABELS}
    name = texts.get("model") or request.cookies.get(MODEL_COOKIE, "")
    try:
        entry = services().catalog.get(name)
    except UnknownModel as error:
        entry = services().catalog.default
        if "model" in texts:
            return render(typed_form(entry, new_form(entry, texts).texts, [unknown_model(error)]), status=404)
    return render(new_form(entry, texts))


@blueprint.post("/")
@asks("submit")
def submit() -> AnyResponse:
    """Queue what the form asks for, ahead of bulk work; or change the form, as the button says that was pressed."""
    typed = request.form.to_dict()
    entry = entry_of(typed.get("model", ""))
    body = sent_picture()
    try:
        match typed.pop("action", ""):
            case "switch_model" | "reset":
                return render(reset_form(entry, typed))
            case "forget_picture":
                return render(typed_form(entry, typed | {"init_image": "", "mask": ""}))
            case "read_picture":
                return render(filled_form(entry, typed, body))
            case "begin":
                return render(typed_form(entry, begun(typed, body)))
        typed = with_picture(typed, body)
        return accepted(services().submit(held_to_rules(typed)).id)
    except InvalidParameters as error:
        return render(typed_form(entry, typed, error.errors), status=422)


def accepted(job_id: UUID) -> AnyResponse:
    """Where a job was taken: its page, or for a form that stays open the latest jobs."""
    if "HX-Request" not in request.headers:
        return redirect(url_for("job.show", job_id=job_id), 303)
    recent = recent_jobs()
    page = render_template("form_recent.html", recent=recent, is_live=is_live(recent), image_path=image_path)
    # Said here and not only in the form: its next request was prepared when another strip stood there.
    return make_response(page, {"HX-Retarget": "#recent", "HX-Trigger": "submitted"})


@blueprint.get("/estimate")
@asks("read")
def estimate() -> Response:
    """How long the picture would take that the form describes: the words alone."""
    typed = request.args.to_dict()
    return make_response(escape(estimate_in_words(entry_of(typed.get("model", "")), typed)))


@blueprint.get("/uploads/<upload_id>")
@asks("read")
def show_upload(upload_id: str) -> Response:
    """A small picture of an upload, for the form that begins from it."""
    found = read_uuid(upload_id)
    if found is None:
        raise UploadNotFound(upload_id)
    upload = jobs.get_upload(services().database, found, owner=current().owner)
    thumb = services().pictures.shrink(services().storage.get(upload.key))
    return Response(thumb, headers=KEPT, content_type="image/webp")


def render(form: Form, *, status: int = 200) -> Response:
    """The form page, with the latest jobs in it."""
    form, recent = with_kept_picture(form), recent_jobs()
    page = render_template(
        "form.html",
        form=form,
        recent=recent,
        is_live=is_live(recent),
        estimate=estimate_in_words(form.entry, form.texts),
        is_advanced_open=request.cookies.get(ADVANCED_COOKIE) == "open",
        labels=LABELS,
        catalog=services().catalog,
        image_path=image_path,
        source_path=source_path,
        sampler_title=title_of,
        max_seed=MAX_SEED,
        formats=FORMATS,
    )
    return make_response(page, status)


def estimate_in_words(entry: ModelEntry, typed: Mapping[str, str]) -> str:
    """How long a picture would take; empty where a value that it depends on is not taken."""
    body = read_form(typed) | {"prompt": STAND_IN, "negative_prompt": ""}
    body.pop("model", None)
    try:
        params = resolve(entry, body)
    except InvalidParameters:
        return ""
    return outlook_in_words(foresee(services(), params, model=entry.name))


def entry_of(name: str) -> ModelEntry:
    """The model to draw the form for."""
    return entry_or_default(services().catalog, name)
