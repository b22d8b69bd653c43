"""The page on which a person shows a key, and the way out again. A view reads HTTP, makes one call, writes HTTP."""

from flask import Blueprint, Response, make_response, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response as AnyResponse

from darkroom.web.identity import asks, begin_session, own_path
from darkroom.web.services import services

blueprint = Blueprint("login", __name__)


@blueprint.get("/login")
@asks("public")
def show_login() -> AnyResponse:
    """The page that asks for a key; where none is asked for, straight on."""
    if not services().keys.asks_for_keys():
        return redirect(own_path(request.args.get("next", "/")), 303)
    return render_login(request.args.get("next", "/"))


@blueprint.post("/login")
@asks("public")
def log_in() -> AnyResponse:
    """Take a key for a session, and go on to where the person wanted to go."""
    target = request.form.get("next", "/")
    key = services().keys.find(request.form.get("key", "").strip())
    if key is None:
        return render_login(target, is_refused=True)
    begin_session(key)
    return redirect(own_path(target), 303)


@blueprint.post("/logout")
@asks("public")
def log_out() -> AnyResponse:
    """Forget who this browser is."""
    session.clear()
    return redirect(url_for("login.show_login"), 303)


def render_login(target: str, *, is_refused: bool = False) -> Response:
    """The login page."""
    page = render_template("login.html", target=own_path(target), is_refused=is_refused)
    return make_response(page, 401 if is_refused else 200)
