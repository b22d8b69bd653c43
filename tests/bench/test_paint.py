"""How long each page takes until something is painted, and how much of it moves afterwards, in the browser itself."""

import statistics
from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
from embedded import EmbeddedStack, Person
from playwright.sync_api import Browser, sync_playwright
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
SHIFTED = """
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


def load(browser: Browser, url: str, path: str, *, key: str) -> tuple[float, float]:
    """Open a page in a browser that has never seen it: milliseconds to its first paint, and its layout shift."""
    context = browser.new_context(base_url=url, viewport=chromium.WIDE)
    chromium.log_in(context, key)
    page = context.new_page()
    page.add_init_script(SHIFTED)
    page.goto(path, wait_until="load")
    painted = page.evaluate(PAINTED)
    page.wait_for_load_state("networkidle") if not path.startswith(("/queue", "/admin")) else None
    shifted = page.evaluate("window.shifted")
    context.close()
    return painted, shifted


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
    }


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_first_paint(browser: Browser, stack: EmbeddedStack) -> None:
    person = stack.person()
    rows = {}
    for name, path in paths_of(person).items():
        loads = [load(browser, stack.url, path, key=person.key) for _ in range(NUM_LOADS)]
        painted = [painted for painted, _ in loads]
        rows[name] = {
            "p50_ms": round(statistics.median(painted)),
            "p95_ms": round(percentile(painted, 0.95)),
            "max_ms": round(max(painted)),
            "shift": round(max(shifted for _, shifted in loads), 4),
        }
    report("paint", rows)
