"""Where operators make keys, change what they may, and revoke them. Asks for the scope admin."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Response as AnyResponse

from darkroom import jobs, keys
from darkroom.errors import FieldError, InvalidParameters
from darkroom.keys import KeyRecord, Quotas
from darkroom.web import amounts
from darkroom.web.account_schemas import LIMITS
from darkroom.web.accounts import key_uuid
from darkroom.web.identity import asks, begin_session, current
from darkroom.web.services import services

WHOLE, NUMBER = re.compile("[0-9]{1,12}"), re.compile("[0-9]{1,12}([.][0-9]{1,6})?")
QUOTA_SHAPES = {
    "weight": NUMBER,
    "max_queued": WHOLE,
    "megapixel_steps_per_day": NUMBER,
    "requests_per_minute": WHOLE,
}
SCOPE_WORDS = {
    "submit": "ask for pictures, cancel, erase, upload",
    "read": "see its owner's jobs and pictures",
    "interactive": "go ahead of bulk work by the API",
    "admin": "do what is done on these pages",
}

blueprint = Blueprint("keys", __name__, url_prefix="/admin/keys")


@dataclass(frozen=True)
class KeyForm:
    """A key's fields as the page shows them: texts as typed, also where they were refused."""

    texts: Mapping[str, str]
    scopes: frozenset[str]
    errors: Mapping[str, FieldError] = field(default_factory=dict)


@blueprint.get("")
@asks("admin")
def show() -> Response:
    """Every key, and the form for another."""
    first = current().key_id is None
    return _render_all(KeyForm({"weight": "1"}, frozenset(keys.SCOPES if first else keys.ORDINARY_SCOPES)))


@blueprint.post("")
@asks("admin")
def create() -> Response:
    """Make a key, and show it, this once. Who was let in without a key goes on with the first one."""
    name = request.form.get("name", "").strip()
    owner = request.form.get("owner", "").strip() or name
    scopes = tuple(request.form.getlist("scopes"))
    try:
        quotas = read_quotas(request.form)
        record, key = keys.create(services().database, name=name, owner=owner, scopes=scopes, quotas=quotas)
    except InvalidParameters as error:
        return _render_all(_refused(error), status=422)
    services().keys.forget()
    if current().key_id is None and "admin" in record.scopes:
        begin_session(record)
    return make_response(render_template("admin_key_made.html", key=record, text=key), 201)


@blueprint.get("/<key_id>")
@asks("admin")
def show_key(key_id: str) -> Response:
    """One key, and what of it can be changed."""
    key = keys.get(services().database, key_uuid(key_id))
    texts = {name: "" if value is None else f"{value:.10g}" for name, value in vars(key.quotas).items()}
    return _render_key(key, KeyForm(texts, key.scopes))


@blueprint.post("/<key_id>")
@asks("admin")
def change(key_id: str) -> AnyResponse:
    """Give a key other quotas and scopes, in force with its next submit."""
    key = keys.get(services().database, key_uuid(key_id))
    try:
        changes = {**vars(read_quotas(request.form)), "scopes": request.form.getlist("scopes")}
        keys.change(services().database, key.id, changes=changes)
    except InvalidParameters as error:
        return _render_key(key, _refused(error), status=422)
    services().keys.forget()
    return redirect(url_for("keys.show"), 303)


@blueprint.post("/<key_id>/revoke")
@asks("admin")
def revoke(key_id: str) -> AnyResponse:
    """Let nobody in with this key any more; its jobs go on."""
    keys.revoke(services().database, key_uuid(key_id))
    services().keys.forget()
    return redirect(url_for("keys.show"), 303)


def read_quotas(form: MultiDict[str, str]) -> Quotas:
    """Read the quotas of a form; an empty field is without limit. Raises InvalidParameters for what is no number."""
    texts = {name: form.get(name, "").strip() for name in QUOTA_SHAPES}
    named = {name: text for name, text in texts.items() if text}
    if wrong := [name for name, text in named.items() if not QUOTA_SHAPES[name].fullmatch(text)]:
        raise InvalidParameters([FieldError(name, "is not taken", LIMITS[name]) for name in wrong])
    values: dict[str, Any] = {
        name: int(text) if QUOTA_SHAPES[name] is WHOLE else float(text) for name, text in named.items()
    }
    return Quotas(**values)


def _refused(error: InvalidParameters) -> KeyForm:
    errors = {each.field: each for each in error.errors}
    return KeyForm(request.form, frozenset(request.form.getlist("scopes")), errors)


def _render_all(form: KeyForm, *, status: int = 200) -> Response:
    known = keys.list_keys(services().database)
    page = render_template(
        "admin_keys.html",
        form=form,
        in_use=[key for key in known if not key.revoked_at],
        revoked=[key for key in known if key.revoked_at],
        scopes=SCOPE_WORDS,
        amounts=amounts,
    )
    return make_response(page, status)


def _render_key(key: KeyRecord, form: KeyForm, *, status: int = 200) -> Response:
    page = render_template(
        "admin_key.html",
        key=key,
        form=form,
        num_queued=jobs.num_queued(services().database, key.id),
        is_own=current().key_id == key.id,
        scopes=SCOPE_WORDS,
        amounts=amounts,
    )
    return make_response(page, status)
