"""Same noise, different words: the page that asks for several prompts with one seed, and the page that shows them."""

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from darkroom import jobs
from darkroom.errors import BatchNotFound, InvalidParameters
from darkroom.jobs import JobRecord, JobState
from darkroom.models import FINAL_STATES
from darkroom.params import MAX_SEED
from darkroom.previews import Preview
from darkroom.web.comparison import MOST, Word, check_prompts, words_of
from darkroom.web.documents import data_url, image_path
from darkroom.web.form import Form, entry_or_default, form_from, new_form, typed_form
from darkroom.web.hub import Mail, Mailboxes
from darkroom.web.identity import asks
from darkroom.web.pages import live
from darkroom.web.services import Sight, services
from darkroom.web.snippets import fields_of
from darkroom.web.submission import read_form
from darkroom.web.wording import LABELS, Sentence, parameters_in_words, sentence_of, walk_frames

PATHS = {"image_path": image_path, "data_url": data_url}
PROMPT_LABELS = {f"prompt-{n}": f"Prompt {n}" for n in range(1, MOST + 1)}
# What the form keeps of an earlier comparison without showing it.
UNSHOWN = ("width", "height", "sampler")

blueprint = Blueprint("compare", __name__)


@dataclass(frozen=True)
class Column:
    """One prompt of a comparison, and how far its picture is."""

    n: int
    sight: Sight
    words: list[Word]
    preview: Preview | None = None

    @property
    def job(self) -> JobRecord:
        """The job as it was last seen."""
        return self.sight.job

    @property
    def sentence(self) -> Sentence:
        """Where it is, in words."""
        return sentence_of(self.sight)


@blueprint.get("/compare")
@asks("read")
def show() -> Response:
    """An empty form, or one with the words and the settings of an earlier comparison."""
    if again := request.args.get("again"):
        found = _jobs_of(again)
        entry = entry_or_default(services().catalog, found[0].model)
        return _render(form_from(entry, found[0].params), _prompts_of(found))
    entry = entry_or_default(services().catalog, request.args.get("model", ""))
    return _render(new_form(entry, {}), request.args.getlist("prompt"))


@blueprint.post("/compare")
@asks("submit")
def submit() -> AnyResponse:
    """Queue a job for each prompt, all with one seed, and go where they are shown side by side."""
    typed, prompts = request.form.to_dict(), request.form.getlist("prompt")
    entry = entry_or_default(services().catalog, typed.get("model", ""))
    if typed.pop("action", "") == "switch_model":
        return _render(new_form(entry, {"seed": typed.get("seed", "")}), prompts)
    if typed.pop("settings_of", "") != entry.name:  # another model was chosen: what is not shown would be the old one's
        typed = {name: text for name, text in typed.items() if name not in UNSHOWN}
    body = {**read_form({**typed, "prompt": ""}), "walk": "walk" in entry.features}
    try:
        submissions = check_prompts(prompts, body, services().rules())
        batch, _ = services().submit_batch(submissions)
    except InvalidParameters as error:
        return _render(typed_form(entry, typed, error.errors), prompts, status=422)
    return redirect(url_for("compare.show_batch", batch_id=batch.id), 303)


def _render(form: Form, prompts: list[str], *, status: int = 200) -> Response:
    rows = [*prompts, *[""] * MOST][:MOST]
    page = render_template(
        "compare.html",
        form=form,
        prompts=rows,
        catalog=services().catalog,
        labels=PROMPT_LABELS | LABELS,
        max_seed=MAX_SEED,
    )
    return make_response(page, status)


@blueprint.get("/compare/<batch_id>")
@asks("read")
def show_batch(batch_id: str) -> Response:
    """The pictures side by side, as they are now, and their walks below each other."""
    columns = _columns(_jobs_of(batch_id))
    first = columns[0].job
    page = render_template(
        "comparison.html",
        **_standing(columns),
        batch_id=batch_id,
        facts=[fact for fact in parameters_in_words(first) if fact.name != "Pictures"],
        num_frames=walk_frames(first.params),
    )
    return make_response(page)


@blueprint.get("/compare/<batch_id>/live")
@asks("read")
def follow(batch_id: str) -> Response:
    """What changes on the page, until all of them have ended."""
    found = _jobs_of(batch_id)
    following = services().waiting.hub.follow_together([job.id for job in found if job.state not in FINAL_STATES])
    return live.stream(following, lambda mailboxes: _tell(batch_id, mailboxes))


def _tell(batch_id: str, mailboxes: Mailboxes) -> Iterator[str]:
    columns = _columns(_jobs_of(batch_id))
    told: dict[int, str] = {}
    while True:
        pieces = {column.n: render_template("comparison_live.html", **_around(column)) for column in columns}
        news = "".join(html for n, html in pieces.items() if html != told.get(n))
        standing = _standing(columns)
        yield render_template("comparison_standing.html", news=news, **standing) if news else ""
        if not standing["is_live"]:
            return
        told = pieces
        mails = live.next_mails(mailboxes, seconds=_patience(columns))
        columns = [_moved(column, mails.get(column.job.id), is_silent=not mails) for column in columns]


def _patience(columns: list[Column]) -> float:
    is_waiting = any(column.job.state is JobState.QUEUED for column in columns)
    return live.NEAR_SECONDS if is_waiting else services().settings.stream_heartbeat_seconds


def _moved(column: Column, mail: Mail | None, *, is_silent: bool) -> Column:
    """A column after its mail. One that waits is looked at in any case: others move, and its place with them.

    Where there was no mail at all for long, each is looked at: SQL is the truth.
    """
    preview = mail.previews[0] if mail and mail.previews else None
    if is_silent or column.job.state is JobState.QUEUED or (mail and mail.events):
        return replace(column, sight=services().follow(str(column.job.id)), preview=preview)
    if mail and mail.progress:
        return replace(column, sight=services().at(column.job, progress=mail.progress), preview=preview)
    return replace(column, preview=preview)


def _columns(found: list[JobRecord]) -> list[Column]:
    words = words_of(_prompts_of(found))
    return [Column(n, services().sight_of(job), words[n]) for n, job in enumerate(found)]


def _jobs_of(batch_id: str) -> list[JobRecord]:
    """The first jobs of a batch of whoever asks, in the order of the request. Raises BatchNotFound."""
    batch = services().batch(batch_id)
    job_ids = jobs.batch_job_ids(services().database, batch.id, owner=batch.owner)[:MOST]
    found = jobs.get_many(services().database, job_ids)
    if not found:
        raise BatchNotFound(batch.id)
    return [found[job_id] for job_id in job_ids if job_id in found]


def _prompts_of(found: Iterable[JobRecord]) -> list[str]:
    return [job.params.prompt for job in found]


def _standing(columns: list[Column]) -> dict[str, Any]:
    """What both the page and its stream say of all of them."""
    num_ended = sum(column.job.state in FINAL_STATES for column in columns)
    return {"columns": columns, "num_ended": num_ended, "is_live": num_ended < len(columns), **PATHS}


def _around(column: Column) -> dict[str, Any]:
    """What a piece of the page says of one of them."""
    return {
        "column": column,
        "job": column.job,
        "sentence": column.sentence,
        "num_frames": walk_frames(column.job.params),
        **PATHS,
    }


@blueprint.post("/compare/<batch_id>/again")
@asks("submit")
def again(batch_id: str) -> AnyResponse:
    """The same words on other noise."""
    found = _jobs_of(batch_id)
    fields = fields_of(found[0].params, model=found[0].model) | {"seed": secrets.randbelow(MAX_SEED + 1)}
    batch, _ = services().submit_batch(check_prompts(_prompts_of(found), fields, services().rules()))
    return redirect(url_for("compare.show_batch", batch_id=batch.id), 303)


@blueprint.post("/compare/<batch_id>/cancel")
@asks("submit")
def cancel(batch_id: str) -> AnyResponse:
    """Call off what is left of them."""
    services().cancel_batch(batch_id)
    return redirect(url_for("compare.show_batch", batch_id=batch_id), 303)
