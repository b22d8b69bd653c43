"""The queue: what waits, develops and has ended, of who asks or, for operators, of everybody; live over one stream.

An operator sees of others' jobs whose they are and how large, never what they are to show.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from darkroom.errors import JobFinished, JobStillLive
from darkroom.jobs import JobState
from darkroom.web.board import TITLES, Board, board_of_all, board_of_owner
from darkroom.web.documents import image_path
from darkroom.web.hub import Mailbox
from darkroom.web.identity import Rule, asks, current, is_still_let_in, own_path
from darkroom.web.pages import live
from darkroom.web.queries import Filter, one_of, read_query
from darkroom.web.services import job_uuid, services

# While anything lives, places and times change though none of one's own jobs has moved.
LOOK_SECONDS = 2.0
# Of many events at once the board is told once.
REST_SECONDS = 0.5
QUERY = {"state": one_of(*JobState), "cursor": Filter(job_uuid, "the id of a job")}

blueprint = Blueprint("queue", __name__)


@blueprint.get("/queue")
@asks("read")
def show() -> str:
    """The jobs of who asks."""
    return render_page(own_board, query=read_query(request.args, QUERY), events="queue.follow")


@blueprint.get("/queue/events")
@asks("read")
def follow() -> Response:
    """The same, told anew whenever it has changed."""
    query = read_query(request.args, QUERY)
    following = services().waiting.hub.follow_owner(current().owner, catches_up=True)
    return live.stream(following, lambda mailbox: tell(mailbox, lambda: own_board(**query), rule="read"))


@blueprint.get("/queue/all")
@asks("admin")
def show_all() -> str:
    """Everybody's jobs, for operators."""
    return render_page(whole_board, query=read_query(request.args, QUERY), events="queue.follow_all")


@blueprint.get("/queue/all/events")
@asks("admin")
def follow_all() -> Response:
    """The same, told anew whenever it has changed."""
    query = read_query(request.args, QUERY)
    following = services().waiting.hub.follow_owner(None, catches_up=True)
    return live.stream(following, lambda mailbox: tell(mailbox, lambda: whole_board(**query), rule="admin"))


@blueprint.post("/queue/<job_id>/cancel")
@asks("submit")
def cancel(job_id: str) -> AnyResponse:
    """Call a job off; if it has ended meanwhile, the page says how."""
    with suppress(JobFinished):
        services().cancel(job_id)
    return back()


@blueprint.post("/queue/<job_id>/retry")
@asks("submit")
def retry(job_id: str) -> AnyResponse:
    """Submit an ended job once more; one that lives again already is left alone."""
    with suppress(JobStillLive):
        services().retry(job_id)
    return back()


@blueprint.post("/queue/cancel")
@asks("submit")
def cancel_mine() -> AnyResponse:
    """Call off whatever waits or develops of who asks."""
    services().cancel_all()
    return back()


@blueprint.post("/queue/retry")
@asks("submit")
def retry_mine() -> AnyResponse:
    """Submit whatever has failed of who asks once more, as one batch."""
    services().retry_failed()
    return back()


@blueprint.post("/queue/all/<job_id>/cancel")
@asks("admin")
def cancel_anybodys(job_id: str) -> AnyResponse:
    """Call off anybody's job, as an operator."""
    with suppress(JobFinished):
        services().cancel_anybodys(job_id)
    return back()


def back() -> AnyResponse:
    """To the page whose button was pressed."""
    return redirect(own_path(request.form.get("back", url_for("queue.show"))), 303)


def own_board(*, state: str | None, cursor: UUID | None) -> Board:
    """The board of who asks."""
    return board_of_owner(services(), current().owner, state=JobState(state) if state else None, cursor=cursor)


def whole_board(*, state: str | None, cursor: UUID | None) -> Board:
    """The board of everybody."""
    return board_of_all(services(), state=JobState(state) if state else None, cursor=cursor)


def render_page(look: Callable[..., Board], *, query: Mapping[str, Any], events: str) -> str:
    """The page around a board."""
    return render_template(
        "queue.html", board=look(**query), query=query, events=url_for(events, **query), titles=TITLES, **around()
    )


def around() -> dict[str, Any]:
    """What a board is rendered with beside itself."""
    return {
        "is_all": request.endpoint in {"queue.show_all", "queue.follow_all"},
        "owner": current().owner,
        "may_change": "submit" in current().scopes,
        "image_path": image_path,
    }


def tell(mailbox: Mailbox, look: Callable[[], Board], *, rule: Rule) -> Iterator[str]:
    """The board as it is, then whenever it has changed, for as long as somebody looks who may."""
    told = ""
    while True:
        board = look()
        html = render_template("queue_live.html", board=board, **around())
        yield html if html != told else ""
        told = html
        mail = live.next_mail(
            mailbox, seconds=LOOK_SECONDS if board.is_live else services().settings.stream_heartbeat_seconds
        )
        if not is_still_let_in(current(), services().keys, rule):
            raise live.SentAway
        if mail.events or mail.is_behind:
            mailbox.rest(seconds=REST_SECONDS)
