"""How long each page takes until something is painted, and how much of it moves afterwards, in the browser itself."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import chromium
import pytest
from embedded import EmbeddedStack, Person
from playwright.sync_api import Browser, Page, sync_playwright
from tables import percentile, report

NUM_LOADS = 20
NUM_PICTURES = 48
PAINTED = """() => new Promise((done) => {
  const found = performance.getEntriesByName("first-contentful-paint")[0];
  if (found) return done(found.startTime);
  new PerformanceObserver((list) => {
    const late = list.getEntriesByName("first-contentful-paint")[0];
    if (late) done(late.startTime);
  }).observe({type: "paint", buffered: true});
})"""
NOTE_SHIFTS = """
window.shifted = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.shifted += entry.value;
}).observe({type: "layout-shift", buffered: true});
"""


@pytest.fixture
def browser() -> Iterator[Browser]:
    program = chromium.find()
    if program is None:
        pytest.skip("Chromium is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = chromium.launch(playwright, program)
        yield browser
        browser.close()


@pytest.fixture
def stack(browser: Browser, tmp_path: Path) -> Iterator[EmbeddedStack]:
    stack = EmbeddedStack.for_tests(tmp_path / "home")
    yield stack
    stack.end()


@contextmanager
def opened(browser: Browser, url: str, path: str, *, key: str) -> Iterator[Page]:
    """Open a page in a browser that has never seen it."""
    context = browser.new_context(base_url=url, viewport=chromium.WIDE)
    chromium.log_in(context, key)
    page = context.new_page()
    page.add_init_script(NOTE_SHIFTS)
    page.goto(path, wait_until="load")
    yield page
    context.close()


def milliseconds_to_paint(browser: Browser, url: str, path: str, *, key: str) -> float:
    """How long the first paint took, as the browser tells it."""
    with opened(browser, url, path, key=key) as page:
        return float(page.evaluate(PAINTED))


def shift(browser: Browser, url: str, path: str, *, key: str) -> float:
    """How much has moved by when the page's pictures are there and its stream has spoken."""
    with opened(browser, url, path, key=key) as page:
        page.wait_for_function("() => [...document.images].every((one) => one.complete || one.loading === 'lazy')")
        page.wait_for_function("() => performance.now() > 2000")
        return float(page.evaluate("window.shifted"))


def paths_of(person: Person) -> dict[str, str]:
    """The pages to open, with pictures where pictures belong."""
    jobs = [person.develop(f"a red house, number {n}", num_images=4) for n in range(NUM_PICTURES // 4)]
    return {
        "form": "/",
        "a finished job": f"/jobs/{jobs[0].id}",
        f"gallery of {NUM_PICTURES}": "/gallery",
        "queue": "/queue",
        "compare": "/compare",
        "admin": "/admin",
        "keys": "/admin/keys",
    }


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_first_paint(browser: Browser, stack: EmbeddedStack) -> None:
    person = stack.person()
    paths = paths_of(person)
    painted: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(NUM_LOADS):
        for name, path in paths.items():
            painted[name].append(milliseconds_to_paint(browser, stack.url, path, key=person.key))
    rows = {
        name: {
            "p50_ms": round(statistics.median(times)),
            "p95_ms": round(percentile(times, 0.95)),
            "max_ms": round(max(times)),
            "shift": round(shift(browser, stack.url, paths[name], key=person.key), 4),
        }
        for name, times in painted.items()
    }
    person.leave()
    report("paint", rows)
