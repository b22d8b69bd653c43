"""Darkroom over HTTP: create_app lists everything an application is wired from. Knows no SQL, no broker, no engine."""

from collections.abc import Callable
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from flask import Flask, url_for
from flask_wtf import CSRFProtect

from darkroom.catalog import Catalog
from darkroom.config import Settings
from darkroom.db import Database
from darkroom.events import ProgressBoard
from darkroom.intake import Notice
from darkroom.keys import KeyRing
from darkroom.news import Crier
from darkroom.previews import PreviewBoard
from darkroom.relay import Relay
from darkroom.storage import Storage
from darkroom.sweeper import Sweeper
from darkroom.web import accounts, api, compat, guards, identity, limits, login, openapi, pages, problems, streams
from darkroom.web.answers import Whole
from darkroom.web.api import document
from darkroom.web.background import Background
from darkroom.web.census import Census
from darkroom.web.converting import Converter
from darkroom.web.form_pictures import let_pictures_in
from darkroom.web.guards import check_bind
from darkroom.web.hub import Hub
from darkroom.web.overview import Overlook
from darkroom.web.pace import Pace
from darkroom.web.services import Services
from darkroom.web.uploads import PictureReader
from darkroom.web.waiting import Waiting
from darkroom.webhooks.courier import Courier
from darkroom.webhooks.destinations import Destinations
from darkroom.webhooks.sending import Sender

__all__ = ["check_bind", "create_app"]

MOST_BODY_BYTES = 1024 * 1024
A_YEAR_SECONDS = 31536000


def create_app(settings: Settings, *, with_background: bool = True) -> Flask:
    """Wire an application. Call it in the process that serves: connections and threads do not survive a fork.

    Raises ConfigError or CatalogError. Without its background it neither rings nor sweeps: for tests and tools.
    """
    check_bind(settings)
    app = openapi.create(__name__)
    app.response_class = Whole
    app.config.update(
        SECRET_KEY=guards.secret_key(settings),
        MAX_CONTENT_LENGTH=MOST_BODY_BYTES,
        SEND_FILE_MAX_AGE_DEFAULT=A_YEAR_SECONDS,  # the address of an asset changes with its bytes
        SESSION_COOKIE_NAME="darkroom",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        WTF_CSRF_TIME_LIMIT=None,  # a draft may lie open for days; the token lives as long as the session
        WTF_CSRF_SSL_STRICT=False,  # guards.check_origin is stricter than its look at the Referer
    )
    database = Database(settings.database)
    keys = KeyRing(database)
    catalog = Catalog.load(settings)
    compat.aliases(settings, catalog)  # a wrong one is said now, not to who first asks for it
    storage = Storage(settings)
    relay = Relay(settings, database=database, catalog=catalog)
    sweeper = Sweeper(settings, database=database, storage=storage, on_waiting=relay.notify)
    crier = Crier(settings.redis_url)
    database.on_commit = crier.on_commit
    progress = ProgressBoard(settings.redis_url)
    previews = PreviewBoard(settings.redis_url)
    hub = Hub(database, redis_url=settings.redis_url, progress=progress, previews=previews)
    waiting = Waiting(hub, database=database, num_places=settings.web_waiters)
    destinations = Destinations.read(settings.webhook_allow)
    courier = Courier(database, Sender(destinations))
    notice = Notice(database)
    background = Background(relay, sweeper, crier, hub, courier)
    app.extensions["darkroom"] = Services(
        settings,
        database,
        catalog,
        storage,
        progress,
        background,
        keys,
        waiting,
        destinations,
        Pace(database, lease_seconds=settings.lease_seconds),
        PictureReader(),
        Converter(),
        notice,
        Overlook(settings, database),
        Census(database),
    )

    problems.install(app)
    guards.install(app, settings)  # before the form's token is looked at
    identity.install(app, settings, keys)
    limits.install(app, settings)
    app.before_request(let_pictures_in)  # before the form's token is looked at
    csrf = CSRFProtect(app)
    for programs in (*api.BLUEPRINTS, accounts.blueprint, *compat.BLUEPRINTS):
        csrf.exempt(programs)  # programs hold no cookie; require_json and check_origin stand in for the token
    if with_background:
        background.run_with(app)
    for described in (*api.BLUEPRINTS, accounts.blueprint, streams.blueprint):
        app.register_api(described)
    for undescribed in (*compat.BLUEPRINTS, document.blueprint):
        app.register_blueprint(undescribed)
    for page in (*pages.BLUEPRINTS, login.blueprint):
        app.register_blueprint(page)
    app.add_template_global(_asset_urls(), "asset")
    app.add_template_filter(_sentence_case, "sentence_case")
    app.add_template_global(guards.nonce, "nonce")
    app.jinja_env.globals["heartbeat_seconds"] = settings.stream_heartbeat_seconds
    app.add_template_global(identity.known, "identity")
    app.add_template_global(pages.places, "places")
    app.add_template_global(pages.theme.chosen, "theme")
    app.add_template_global(notice.read, "intake_pause")
    identity.check_rules(app)
    return app


def _asset_urls() -> Callable[[str], str]:
    folder = Path(str(files("darkroom.web").joinpath("static")))
    found = (path for path in folder.rglob("*") if path.is_file())
    versions = {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest()[:12] for path in found}
    return lambda name: url_for("static", filename=name, v=versions[name])


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]
