"""Who asks, and what each route asks of them. Knows HTTP, keys and the rules; knows no job.

Every route carries a rule, beside the line that gives it its address; create_app refuses a route without one. As long
as no key was ever made, whoever reaches a loopback address is let in as one owner. The first key locks the door.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args
from urllib.parse import urlsplit
from uuid import UUID

from flask import Flask, Request, g, redirect, request, session, url_for
from flask import Response as FlaskResponse
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface, SessionMixin
from werkzeug.wrappers import Response

from darkroom.addresses import is_loopback
from darkroom.config import Settings
from darkroom.errors import DatabaseUnavailable
from darkroom.keys import KEYLESS_OWNER, KeyRecord, KeyRing
from darkroom.web.problems import Refused, is_for_programs

# What a route asks for: nothing, or a key that has the scope of this name.
Rule = Literal["public", "read", "submit", "admin"]
SCOPES = frozenset(get_args(Rule)) - {"public"}
# Routes whose views are not ours to mark.
OTHERS: dict[str, Rule] = {"static": "public"}

RULE = "__darkroom_rule__"
# Beside the usual Bearer: what the older clients of Replicate say.
SCHEMES = frozenset({"bearer", "token"})
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="darkroom"'}
SESSION_KEY = "key_id"
PAGE_METHODS = frozenset({"GET", "HEAD"})

View = TypeVar("View", bound=Callable[..., Any])


@dataclass(frozen=True)
class Identity:
    """Who asks. Jobs belong to `owner`, whichever of its keys was shown; `weight` is the share of that key."""

    owner: str
    key_id: UUID | None
    scopes: frozenset[str]
    weight: float = 1.0
    requests_per_minute: int | None = None

    @property
    def is_admin(self) -> bool:
        """Whether the routes of operators are open."""
        return "admin" in self.scopes

    @property
    def may_hurry(self) -> bool:
        """Whether its jobs may wait in the interactive line when they come by the API."""
        return self.key_id is None or not self.scopes.isdisjoint({"interactive", "admin"})


KEYLESS = Identity(KEYLESS_OWNER, key_id=None, scopes=SCOPES)


class RouteWithoutRule(AssertionError):
    """A route does not say who may use it."""


def asks(rule: Rule) -> Callable[[View], View]:
    """Say what a route asks for: a decorator right above the view, below the line with its address."""

    def mark(view: View) -> View:
        setattr(view, RULE, rule)
        return view

    return mark


def current() -> Identity:
    """Who sent this request. Public routes ask nobody, and may not ask here."""
    return cast(Identity, g.identity)


def known() -> Identity | None:
    """Who sent this request, if that was found out: for pages that anybody may see."""
    return cast("Identity | None", g.get("identity"))


def install(app: Flask, settings: Settings, ring: KeyRing) -> None:
    """Find out who asks before every request, and turn away whom its route does not let in."""
    is_open = is_loopback(settings.host) or settings.keyless_anywhere
    app.session_interface = _CookieSession()

    @app.before_request
    def let_in() -> Response | None:
        rule = rule_of(app, request.endpoint) if request.endpoint else "public"
        if rule == "public":
            return None
        identity = identify(ring, is_open=is_open)
        if identity is None and not is_for_programs(request.path):
            return to_login()
        if identity is None:
            raise Refused(401, "key_missing", "A key is asked for here: Authorization: Bearer <key>.", CHALLENGE)
        if rule not in identity.scopes:
            raise Refused(403, "scope_missing", f"This key does not have the scope {rule}.")
        g.identity = identity
        return None


def identify(ring: KeyRing, *, is_open: bool) -> Identity | None:
    """Who sent the request: None when nobody says. Raises Refused (401) for a key that is none."""
    if is_open and not ring.asks_for_keys():
        return KEYLESS  # whatever is shown: some clients cannot do without showing a key
    if shown := shown_key():
        found = ring.find(shown)
        if found is None:
            raise Refused(401, "key_unknown", "This key is not known here, or was revoked.", CHALLENGE)
        return identity_of(found)
    if key_id := session.get(SESSION_KEY):
        found = ring.find_by_id(UUID(key_id))
        return identity_of(found) if found else None
    return None


def identity_of(key: KeyRecord) -> Identity:
    """Who a key says its holder is."""
    quotas = key.quotas
    return Identity(key.owner, key.id, key.scopes, quotas.weight, quotas.requests_per_minute)


def shown_key() -> str | None:
    """The key in the request's Authorization: as a token, or as the password (else the name) of HTTP Basic."""
    shown = request.authorization
    if shown is None:
        return None
    if shown.type == "basic":
        return shown.password or shown.username or ""
    return (shown.token or "") if shown.type in SCHEMES else ""


def is_still_let_in(identity: Identity, ring: KeyRing, rule: Rule) -> bool:
    """Whether somebody who was let in is so still: for answers that go on for long, such as event streams.

    Asks the ring, which may be keys.REMEMBER_SECONDS behind. While the database cannot tell, nobody can have been
    revoked.
    """
    try:
        if identity.key_id is None:
            return not ring.asks_for_keys()
        key = ring.find_by_id(identity.key_id)
    except DatabaseUnavailable:
        return True
    return key is not None and rule in key.scopes


def begin_session(key: KeyRecord) -> None:
    """Let a browser in by cookie from now on, until it logs out or the key is revoked. The cookie holds no key."""
    session.clear()
    session[SESSION_KEY] = str(key.id)


def to_login() -> Response:
    """Send a person to show a key. Where htmx asked for a part of a page, the page asks for itself, and is sent."""
    if "HX-Request" in request.headers:
        return Response(status=401, headers={"HX-Refresh": "true"})
    return redirect(login_path(), 303)


def login_path() -> str:
    """Where a person shows a key, to come back to where they wanted to go."""
    return url_for("login.show_login", next=request.full_path.rstrip("?") if request.method in PAGE_METHODS else None)


def own_path(target: str) -> str:
    """A path of ours to go on to, or the first page for anything that leads elsewhere."""
    parts = urlsplit(target.replace("\\", "/"))
    is_own = not parts.scheme and not parts.netloc and parts.path.startswith("/") and not parts.path.startswith("//")
    return target if is_own and target.isprintable() else "/"


def rule_of(app: Flask, endpoint: str) -> Rule:
    """The rule of a route. Raises RouteWithoutRule."""
    rule = OTHERS.get(endpoint) or getattr(app.view_functions[endpoint], RULE, None)
    if rule is None:
        raise RouteWithoutRule(f"{endpoint} does not say who may use it: mark it with asks()")
    return cast(Rule, rule)


def check_rules(app: Flask) -> None:
    """Raise RouteWithoutRule for the first route that has none."""
    for route in app.url_map.iter_rules():
        rule_of(app, route.endpoint)


class _CookieSession(SecureCookieSessionInterface):
    """Flask's own cookie, which goes back only over TLS where it came by TLS, as seen by us or by a proxy."""

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        if "Cookie" not in request.headers or self.get_cookie_name(app) not in request.cookies:
            return self.session_class()  # programs have none: no key is derived to read nothing
        return super().open_session(app, request)

    def save_session(self, app: Flask, session: SessionMixin, response: FlaskResponse) -> None:
        if session.accessed or session.modified:  # of what nobody looked at there is nothing to say
            super().save_session(app, session, response)

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure or request.headers.get("X-Forwarded-Proto") == "https"
