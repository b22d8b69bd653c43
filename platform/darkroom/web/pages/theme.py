"""How the pages look to this browser: light, dark, or as the system says. A cookie holds it: no page flashes."""

from flask import Blueprint, redirect, request
from werkzeug.wrappers import Response

from darkroom.errors import FieldError, InvalidParameters
from darkroom.web.identity import asks, own_path

THEMES = ("system", "light", "dark")
COOKIE = "theme"
A_YEAR_SECONDS = 31536000

blueprint = Blueprint("theme", __name__)


@blueprint.post("/theme")
@asks("public")
def choose() -> Response:
    """Remember the choice, and go back to the page where it was made."""
    theme = request.form.get("theme", "")
    if theme not in THEMES:
        raise InvalidParameters([FieldError("theme", "is not known", "one of " + ", ".join(THEMES))])
    response = redirect(own_path(request.form.get("next", "/")), 303)
    response.set_cookie(COOKIE, theme, max_age=A_YEAR_SECONDS, samesite="Lax")
    return response


def chosen() -> str:
    """What this browser chose; a cookie that says something else is as good as none."""
    theme = request.cookies.get(COOKIE, "")
    return theme if theme in THEMES else THEMES[0]
