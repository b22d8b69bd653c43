"""Debian's Chromium under Playwright: found, started, logged in. Knows the login form and nothing else of Darkroom."""

import re
import shutil

from playwright.sync_api import Browser, BrowserContext, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
# As root there is no sandbox, in a container little shared memory; the rest keeps it from speaking to its maker.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE = {"width": 1280, "height": 860}
NARROW = {"width": 360, "height": 740}
CSRF_TOKEN = re.compile(r'name="csrf_token" value="([^"]+)"')


def find() -> str | None:
    """Where it is; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def launch(playwright: Playwright, program: str) -> Browser:
    """Start it; close it."""
    return playwright.chromium.launch(executable_path=program, args=ARGUMENTS)


def log_in(context: BrowserContext, key: str) -> None:
    """Send the login form as its page would, without drawing it."""
    token = CSRF_TOKEN.search(context.request.get("/login").text())
    assert token
    form = {"csrf_token": token[1], "key": key, "next": "/"}
    answer = context.request.post("/login", form=form, max_redirects=0)
    assert answer.status == 303, answer.text()
