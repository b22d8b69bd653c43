"""The page of a job: what it is doing now, the pictures that it made, and what can be done with them."""

import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from darkroom import jobs
from darkroom.catalog import ModelEntry
from darkroom.errors import JobFinished, UnknownModel
from darkroom.jobs import JobRecord, JobState
from darkroom.models import FINAL_STATES
from darkroom.params import MAX_SEED
from darkroom.previews import Preview
from darkroom.storage import CONTENT_TYPES
from darkroom.web import comparison, snippets
from darkroom.web.api.images import EXTENSIONS
from darkroom.web.documents import data_url, image_path, page_path
from darkroom.web.hub import Mailbox
from darkroom.web.identity import asks, current, known
from darkroom.web.pages import live, shared
from darkroom.web.queries import one_of, read_query
from darkroom.web.services import Sight, job_uuid, services
from darkroom.web.wording import (
    FILES,
    Fact,
    announcement_of,
    moment,
    moments_of,
    parameters_in_words,
    provenance_of,
    sentence_of,
    shown_size,
    stages_of,
    walk_frames,
)

NEAR = 10
MOST_VARIATIONS = 4
CONVERTED = ("png", "jpeg", "webp")
CONVERSION = {"format": one_of(*CONVERTED, default=CONVERTED[0])}
SHARING = {"days": one_of(*(str(days) for days in shared.DAYS))}
AGAIN = {"how": one_of("same", "new_seed", "vary")}

blueprint = Blueprint("job", __name__)


@blueprint.get("/jobs/<job_id>")
@asks("read")
def show(job_id: str) -> Response:
    """A job as it is now. Without JavaScript the page asks for itself again while the job lives."""
    sight = services().follow(job_id)
    days = read_query({name: text for name, text in request.args.items() if name in SHARING}, SHARING)["days"]
    is_shared = bool(days) and sight.job.state is JobState.SUCCEEDED
    page = render_template(
        "job.html",
        **_standing(sight),
        previews=_previews_of(sight.job),
        entry=_entry_of(sight.job),
        copies=_copies_of(sight.job),
        share=shared.share(sight.job, days=int(days)) if is_shared else None,
        share_days=shared.DAYS,
        parameters=parameters_in_words(sight.job),
        provenance=[*provenance_of(sight.job, _entry_of(sight.job)), *_company_of(sight.job)],
        stages=stages_of(sight.job),
        moments=moments_of(sight.job),
        num_frames=walk_frames(sight.job.params),
        formats=CONVERTED,
        titles=FILES,
        moment=moment,
    )
    return make_response(page)


@blueprint.get("/jobs/<job_id>/live")
@asks("read")
def follow(job_id: str) -> Response:
    """What changes on the page, until the job has ended."""
    job = jobs.get(services().database, job_uuid(job_id), owner=current().owner)
    following = services().waiting.hub.follow(job.id, num_images=job.params.num_images)
    return live.stream(following, lambda mailbox: _tell(job_id, mailbox))


def _tell(job_id: str, mailbox: Mailbox) -> Iterator[str]:
    sight = services().follow(job_id)
    state, told = sight.job.state, ""
    previews: tuple[Preview, ...] = ()
    while True:
        html = _changes(sight, previews, is_news=sight.job.state is not state)
        yield html if html != told else ""
        if sight.job.state in FINAL_STATES:
            return
        state, told = sight.job.state, html
        mail = live.next_mail(mailbox, seconds=_patience(sight))
        previews = mail.previews
        # A line moves without news of this job. And whoever hears nothing at all looks for himself: SQL is the truth.
        if mail.events or not (mail.progress or mail.previews):
            sight = services().follow(job_id)
        elif mail.progress:
            sight = services().at(sight.job, progress=mail.progress)


def _patience(sight: Sight) -> float:
    if sight.job.state is not JobState.QUEUED:
        return services().settings.stream_heartbeat_seconds
    is_near = sight.position is not None and sight.position <= NEAR
    return live.NEAR_SECONDS if is_near else live.FAR_SECONDS


def _changes(sight: Sight, previews: Iterable[Preview], *, is_news: bool) -> str:
    has_ended = sight.job.state in FINAL_STATES
    announcement = announcement_of(sight) if is_news or has_ended else ""
    return render_template("job_live.html", **_standing(sight), previews=previews, announcement=announcement)


def _standing(sight: Sight) -> dict[str, Any]:
    """What both the page and its stream say of a job."""
    is_orphan = sight.job.state is JobState.QUEUED and not services().has_worker(sight.job.model)
    return {
        "job": sight.job,
        "sentence": sentence_of(sight),
        "is_orphan": is_orphan,
        "shown_size": shown_size,
        "image_path": image_path,
        "data_url": data_url,
    }


def _previews_of(job: JobRecord) -> Mapping[int, Preview]:
    """What the pictures look like by now, for a page that is opened, or reloaded, in the midst of it."""
    if job.state is not JobState.RUNNING:
        return {}
    found = services().waiting.hub.peek(job.id, num_images=job.params.num_images)
    return {preview.n: preview for preview in found}


def _entry_of(job: JobRecord) -> ModelEntry | None:
    """The job's model, if it is still on offer."""
    try:
        return services().catalog.get(job.model)
    except UnknownModel:
        return None


def _company_of(job: JobRecord) -> list[Fact]:
    """Which jobs it belongs to."""
    facts = []
    if job.retry_of:
        facts.append(Fact("Once more", "the earlier job", link=page_path(job.retry_of)))
    batch = services().batch(str(job.batch_id)) if job.batch_id else None
    if batch and comparison.FEWEST <= batch.num_jobs <= comparison.MOST:
        facts.append(
            Fact(
                "Asked for together",
                f"{batch.num_jobs} side by side",
                link=url_for("compare.show_batch", batch_id=batch.id),
            )
        )
    return facts


def _copies_of(job: JobRecord) -> dict[str, str]:
    """What can be taken along, by its title."""
    url = request.host_url.rstrip("/")
    identity = known()
    has_keys = identity is not None and identity.key_id is not None
    return {
        "Prompt": job.params.prompt,
        "Parameters": snippets.parameters_text(job),
        "curl": snippets.curl_text(job, url=url, has_keys=has_keys),
        "Python": snippets.python_text(job, url=url),
    }


@blueprint.post("/jobs/<job_id>/cancel")
@asks("submit")
def cancel(job_id: str) -> AnyResponse:
    """Call a job off, and go back to its page: if it has ended meanwhile, the page says how."""
    try:
        services().cancel(job_id)
    except JobFinished as error:
        job_id = str(error.job_id)
    return redirect(url_for("job.show", job_id=job_id), 303)


@blueprint.post("/jobs/<job_id>/again")
@asks("submit")
def again(job_id: str) -> AnyResponse:
    """Submit a job once more: as it was, with another seed, or with the seeds that follow one picture's."""
    asked = read_query({"how": request.form.get("how", "same")}, AGAIN)
    match asked["how"]:
        case "new_seed":
            job = services().again(job_id, seed=secrets.randbelow(MAX_SEED + 1))
        case "vary":
            job = _vary(job_id, request.form.get("n", "0"))
        case _:
            job = services().again(job_id)
    return redirect(url_for("job.show", job_id=job.id), 303)


def _vary(job_id: str, n: str) -> JobRecord:
    """The seeds after a picture's own: of one prompt, the closest that there is to asking for some others."""
    image, job = services().image_and_job(job_id, n)
    most = services().catalog.get(job.model).limits.max_num_images
    return services().again(job_id, seed=(image.seed + 1) % (MAX_SEED + 1), num_images=min(MOST_VARIATIONS, most))


@blueprint.post("/jobs/<job_id>/delete")
@asks("submit")
def delete(job_id: str) -> AnyResponse:
    """Take a job away for good, with its pictures and its words."""
    services().erase(job_id)
    return redirect(url_for("gallery.show"), 303)


@blueprint.get("/jobs/<job_id>/pictures/<n>")
@asks("read")
def convert(job_id: str, n: str) -> Response:
    """A picture in another format, saying of its making what the original says."""
    format = read_query(request.args, CONVERSION)["format"]
    image, job = services().image_and_job(job_id, n)
    body = services().converter.convert(services().storage.get(image.key), format)
    response = Response(body, content_type=CONTENT_TYPES[format])
    name = f"darkroom-{job.id}-{image.n}.{EXTENSIONS[CONTENT_TYPES[format]]}"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response
