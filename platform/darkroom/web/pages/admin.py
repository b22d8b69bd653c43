"""What operators look at, and the few things they turn: the intake, one worker, one job. Asks for the scope admin.

Only here, and in the API below /api/v1/admin, does anybody meet the jobs of others, and without their words and
pictures. The page asks for its figures anew every few seconds rather than to be told: they change with the workers'
heartbeats and with the clock, which no event announces, and a question now and then holds no thread.
"""

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from darkroom import events, fleet, intake, jobs
from darkroom.errors import FieldError, InvalidParameters, JobFinished
from darkroom.web import amounts
from darkroom.web.account_schemas import MAX_REASON_CHARACTERS, NewPause
from darkroom.web.accounts import known_as, validated
from darkroom.web.identity import asks, current
from darkroom.web.overview import WINDOWS, Overview, Window
from darkroom.web.queries import one_of, read_query
from darkroom.web.services import job_uuid, services
from darkroom.web.wording import times_in_words

WINDOW = {"window": one_of(*WINDOWS, default="hour")}
REQUEUED = "an operator put it back"

blueprint = Blueprint("admin", __name__, url_prefix="/admin")


@blueprint.get("")
@asks("admin")
def show() -> Response:
    """The whole at one look."""
    return render()


@blueprint.get("/live")
@asks("admin")
def show_live() -> Response:
    """What of the page changes by itself, each piece with its place: for a page that lies open."""
    return make_response(render_template("admin_live.html", **_words(services().overlook.look(_window()))))


@blueprint.post("/intake/pause")
@asks("admin")
def pause() -> AnyResponse:
    """Take no more jobs, for a reason that everybody is told."""
    try:
        reason = validated(NewPause, {"reason": request.form.get("reason", "").strip()}).reason
    except InvalidParameters as error:
        return render(error.errors[0], status=422)
    intake.pause(services().database, reason=reason, paused_by=current().owner)
    services().notice.forget()
    return _back()


@blueprint.post("/intake/resume")
@asks("admin")
def resume() -> AnyResponse:
    """Take jobs again."""
    intake.resume(services().database, resumed_by=current().owner)
    services().notice.forget()
    return _back()


@blueprint.post("/workers/<worker_id>/drain")
@asks("admin")
def drain(worker_id: str) -> AnyResponse:
    """Have a worker claim nothing more, from its next heartbeat on."""
    fleet.drain(services().database, known_as(worker_id))
    return _back("workers")


@blueprint.post("/workers/<worker_id>/resume")
@asks("admin")
def undrain(worker_id: str) -> AnyResponse:
    """Have a drained worker claim again."""
    fleet.undrain(services().database, known_as(worker_id))
    return _back("workers")


@blueprint.get("/jobs/<job_id>")
@asks("admin")
def show_job(job_id: str) -> Response:
    """Anybody's job: what became of it, and not what it asks for."""
    job = jobs.get(services().database, job_uuid(job_id))
    history = events.read(services().database, job.id)
    page = render_template("admin_job.html", job=job, history=history, times=times_in_words(job), amounts=amounts)
    return make_response(page)


@blueprint.post("/jobs/<job_id>/requeue")
@asks("admin")
def requeue(job_id: str) -> AnyResponse:
    """Put a running job back at its place; if it has ended meanwhile, its page says how."""
    try:
        jobs.requeue(services().database, job_uuid(job_id), reason=REQUEUED)
    except JobFinished as error:
        job_id = str(error.job_id)
    return redirect(url_for("admin.show_job", job_id=job_id), 303)


def render(refusal: FieldError | None = None, *, status: int = 200) -> Response:
    """The page, with what was refused of a reason to pause."""
    overview = services().overlook.look(_window())
    page = render_template(
        "admin.html",
        refusal=refusal,
        reason=request.form.get("reason", ""),
        max_reason=MAX_REASON_CHARACTERS,
        **_words(overview),
    )
    return make_response(page, status)


def _words(overview: Overview) -> dict[str, object]:
    return {
        "overview": overview,
        "windows": WINDOWS.values(),
        "amounts": amounts,
        "settings": services().settings,
    }


def _window() -> Window:
    return WINDOWS[read_query(request.args, WINDOW)["window"]]


def _back(place: str | None = None) -> AnyResponse:
    """To the page as it was, at the place where something was turned."""
    return redirect(url_for("admin.show", window=request.args.get("window"), _anchor=place), 303)
