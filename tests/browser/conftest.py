"""Chromium, and a real embedded stack to look at: one of each for a test process, started with the first that asks.

Ask for `page` (a strict Page, logged in as `person`; `page.goto("/")`): the test fails on a CSP violation, a console
or page error, an answer of 500 or more, unless `faults.forgive(r"422")` says that it was wanted.
`page.context.new_page()` is a second tab; `plain_page` has no JavaScript; `open_page(viewport=..., color_scheme=...,
person=...)` is any other browser. Each test has a `person` of its own, an operator whose gallery and queue are empty:
`person.develop("a boat")` is a finished job, made by the real worker in about a second; `person.submit_slow()` a job
of many seconds, called off when the test ends. `stack.worker.freeze()` keeps jobs where they are (queued, or between
two steps) and `stack.worker.go_on()` ends that; `stack.kill_web()` is a crash of the server, which comes back;
`stack.database` is for what darkroom.jobs, .keys and .fleet can do. `shoot(page, "job")` writes screenshots in both
themes, wide and at 360 px, to tests/browser/screenshots. Wait with `expect(...)`, never sleep. Run one file with
`pytest tests/browser/test_x.py`; `-k` helps, the stack's start is most of the time.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromium as debian_chromium
import pytest
from chromium import NARROW, WIDE
from embedded import PATIENCE_SECONDS, EmbeddedStack, Person
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from strict_page import Faults

MISSING = "Chromium is missing, so the browser tests are skipped: apt-get install chromium"
TIMEOUT_SECONDS = 300
SCREENSHOTS = Path(__file__).with_name("screenshots")
TALLEST = 3000
OUTCOME = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if call.when == "call":
        item.stash[OUTCOME] = report.failed
    if report.skipped and MISSING in str(report.longrepr):
        report.longrepr = (__file__, 0, MISSING)  # as if skipped at one place: the summary then says it in one line
    return report


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for the whole process; each test opens contexts of its own in it."""
    program = debian_chromium.find()
    if program is None:
        pytest.skip(MISSING)
    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = debian_chromium.launch(playwright, program)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def embedded_stack(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    stack = EmbeddedStack.for_tests(tmp_path_factory.mktemp("browser") / "home")
    yield stack
    stack.end()


@pytest.fixture
def stack(embedded_stack: EmbeddedStack) -> Iterator[EmbeddedStack]:
    """The stack, with its worker at work."""
    yield embedded_stack
    embedded_stack.restore()


@pytest.fixture
def person(stack: EmbeddedStack) -> Iterator[Person]:
    """Somebody new: an operator with no job yet."""
    person = stack.person()
    yield person
    person.leave()


@pytest.fixture
def faults() -> Iterator[Faults]:
    """What goes wrong in this test's browsers; a fault that was not forgiven fails the test."""
    faults = Faults()
    yield faults
    assert not str(faults), f"in the browser:\n{faults}"


@pytest.fixture
def open_page(
    chromium: Browser, stack: EmbeddedStack, person: Person, faults: Faults, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Page]]:
    """Open a browser of its own, logged in as `person`, with Playwright's options for a context."""
    contexts: list[BrowserContext] = []

    def open_page(*, person: Person | None = person, **options: Any) -> Page:
        context = chromium.new_context(**{"base_url": stack.url, "viewport": WIDE} | options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE_SECONDS * 1000)
        if person:
            debian_chromium.log_in(context, person.key)
        faults.watch(context)
        return context.new_page()

    yield open_page
    if request.node.stash.get(OUTCOME, False):
        _keep_last_sight(contexts, request.node.name)
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """A wide window with JavaScript, in light colors."""
    return open_page()


@pytest.fixture
def plain_page(open_page: Callable[..., Page]) -> Page:
    """A window without JavaScript."""
    return open_page(java_script_enabled=False)


@pytest.fixture
def shoot() -> Callable[[Page, str], None]:
    """Write what a page looks like: light and dark, wide and at 360 px."""

    def shoot(page: Page, name: str) -> None:
        SCREENSHOTS.mkdir(exist_ok=True)
        size = page.viewport_size
        for width, viewport in (("wide", WIDE), ("narrow", NARROW)):
            page.set_viewport_size(viewport)  # type: ignore[arg-type]
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                top = {"x": 0, "y": 0, "width": viewport["width"], "height": _shown_height(page)}
                page.screenshot(path=SCREENSHOTS / f"{name}-{width}-{scheme}.png", full_page=True, clip=top)
        page.emulate_media(color_scheme="light")
        if size:
            page.set_viewport_size(size)

    return shoot


def _shown_height(page: Page) -> int:
    """The whole page; of one that nobody would look at to its end, the beginning."""
    return min(page.evaluate("document.documentElement.scrollHeight"), TALLEST)


def _keep_last_sight(contexts: list[BrowserContext], name: str) -> None:
    folder = SCREENSHOTS / "failed"
    folder.mkdir(parents=True, exist_ok=True)
    for number, page in enumerate(page for context in contexts for page in context.pages):
        path = folder / f"{re.sub('[^a-z0-9_]+', '-', name)}-{number}.png"
        page.screenshot(path=path)
        print(f"the last sight of {page.url} is {path}")
