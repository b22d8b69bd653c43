"""Who may speak to a Darkroom that asks for no key: this machine, and no page of another site.

Knows headers only. A program on this host is trusted; a browser on this host is not, because any page may be open in
it: hence the Host name (rebinding), the Origin (cross-site requests), the content type, and the form's token.
"""

import os
import secrets
from functools import lru_cache
from tempfile import NamedTemporaryFile
from typing import cast
from urllib.parse import SplitResult, urlsplit

import structlog
from flask import Flask, Response, g, request

from darkroom import keys
from darkroom.addresses import address_of, is_loopback
from darkroom.config import Settings
from darkroom.db import Database
from darkroom.errors import ConfigError, DatabaseUnavailable
from darkroom.web.problems import Refused

logger = structlog.get_logger(__name__)

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Probes call by address, which no rebound name is; and these two say nothing about any job.
OPEN_PATHS = frozenset({"/healthz", "/readyz"})

# What a program is answered is no page: it loads nothing. A page loads what is ours; scripts that carry its nonce; and
# pictures, also those that a script made (previews arrive inside events, dropped files come from the person). Markup
# is made from text by htmx's policy alone, and only where the nonce is.
PROGRAM_POLICY = "default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self'; img-src 'self' data: blob:{storage}; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types htmx"
)

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Not no-referrer: with it a browser sends `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def install(app: Flask, settings: Settings) -> None:
    """Put the guards before every request and the headers on every answer."""
    allowed = frozenset(_hostname(name) for name in settings.allowed_hosts)
    storage = _storage_origin(settings)
    added = [(name, name.lower(), value) for name, value in HEADERS.items()]

    @app.before_request
    def guard() -> None:
        check_host(allowed)
        check_origin(allowed)

    @app.after_request
    def protect(response: Response) -> Response:
        if response.status_code == 304:  # what the reader has carries the rest
            response.headers.setdefault("Cache-Control", HEADERS["Cache-Control"])
            return response
        said = {name.lower() for name, _ in response.headers}
        for name, lowered, value in added:
            if lowered not in said:
                response.headers.add(name, value)
        if "content-security-policy" not in said:
            is_page = response.mimetype == "text/html"
            policy = PAGE_POLICY.format(nonce=nonce(), storage=storage) if is_page else PROGRAM_POLICY
            response.headers.add("Content-Security-Policy", policy)
        return response


def nonce() -> str:
    """What marks this answer's own scripts and htmx attributes: nobody can know it beforehand."""
    if "nonce" not in g:
        g.nonce = secrets.token_urlsafe(16)
    return cast(str, g.nonce)


def _storage_origin(settings: Settings) -> str:
    """Where the storage gives out pictures itself, if it does."""
    if settings.s3_public_endpoint_url is None:
        return ""
    parts = urlsplit(settings.s3_public_endpoint_url)
    return f" {parts.scheme}://{parts.netloc}"


def check_bind(settings: Settings) -> None:
    """Refuse to listen to strangers while there is no key to ask for. Raises ConfigError."""
    if is_loopback(settings.host) or settings.keyless_anywhere or _has_keys(settings):
        return
    raise ConfigError(
        f"DARKROOM_HOST: {settings.host or 'an empty address'} is open to other machines, and there is no key to ask "
        "for: make one with `darkroom keys create NAME --admin`, or bind to 127.0.0.1, or say "
        "DARKROOM_KEYLESS_ANYWHERE=true to let in everybody who can reach it"
    )


def _has_keys(settings: Settings) -> bool:
    """Whether a key was ever made. If that cannot be told now, nobody will be let in without one all the same."""
    database = Database(settings.database)
    try:
        return keys.any_exist(database)
    except DatabaseUnavailable as error:
        logger.warning("keys_untold", reason=str(error))
        return True
    finally:
        database.dispose()


def check_host(allowed: frozenset[str]) -> None:
    """Refuse a request for a name that is not ours: a page that rebound its name to this machine sends that name."""
    host = request.headers.get("Host", "")
    if _is_served(host, allowed) or (request.path in OPEN_PATHS and address_of(_hostname(host)) is not None):
        return
    raise Refused(
        421, "unknown_host", "This Host name is not served here. DARKROOM_ALLOWED_HOSTS lists the names that are."
    )


def check_origin(allowed: frozenset[str]) -> None:
    """Refuse a request that would change something and that a page of another origin sent."""
    if request.method in SAFE_METHODS:
        return
    origin = request.headers.get("Origin")
    is_foreign = request.headers.get("Sec-Fetch-Site", "none") not in {"same-origin", "none"}
    if is_foreign or (origin is not None and not _is_own(origin, allowed)):
        raise Refused(403, "foreign_origin", "A page of another origin may not change anything here.")


def require_json() -> None:
    """Refuse a changing request whose body is not declared JSON: a plain HTML form cannot declare that."""
    if request.method in SAFE_METHODS:
        return
    has_body = bool(request.content_length) or "Transfer-Encoding" in request.headers
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    is_json = request.mimetype == "application/json" and charset in {"utf-8", "utf8"}
    if not is_json and (has_body or request.mimetype):
        raise Refused(415, "unsupported_media_type", "The body must be application/json, in UTF-8.")


def _is_own(origin: str, allowed: frozenset[str]) -> bool:
    parts = _split(origin)
    if parts is None or parts.scheme not in {"http", "https"}:
        return False
    # A proxy may have rewritten the Host; a name that the operator listed is ours all the same.
    return parts.netloc.lower() == request.headers.get("Host", "").lower() or (parts.hostname or "") in allowed


@lru_cache(maxsize=128)  # it is asked with every request, and the names are few
def _is_served(host: str, allowed: frozenset[str]) -> bool:
    name = _hostname(host)
    return is_loopback(name) or name in allowed


def _hostname(netloc: str) -> str:
    parts = _split(f"//{netloc}")
    is_plain = parts is not None and parts.netloc == netloc and parts.username is None
    return (parts.hostname or "") if parts is not None and is_plain else ""


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for a port that is none
    except ValueError:
        return None
    return parts


def secret_key(settings: Settings) -> str:
    """The key that signs cookies: the configured one, or one kept at home so that a restart forgets nobody's form.

    Raises ConfigError when there is neither a key nor a place to keep one.
    """
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value()
    path = settings.home / "secret_key"
    try:
        if not path.exists():
            settings.home.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile("w", dir=settings.home, prefix=".secret_key", delete=True) as draft:
                draft.write(secrets.token_hex(32))
                draft.flush()
                _link(draft.name, str(path))  # whole or not at all: another process may be doing the same
        return path.read_text()
    except OSError as error:
        raise ConfigError(f"DARKROOM_SECRET_KEY: is not set, and none can be kept at {path}: {error}") from error


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        return
