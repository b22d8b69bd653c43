"""The page of a job in a browser: the picture comes out of the noise, and afterwards it can be taken along."""

import re
from collections import Counter

import pytest
from embedded import SLOW_MODEL
from playwright.sync_api import expect

# Every picture that the page has shown, and how far its parts have jumped. From before the first paint.
NOTE_WHAT_IS_SEEN = """
window.seen = new Set();
window.shift = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
}).observe({type: "layout-shift", buffered: true});
new MutationObserver(() => {
  const picture = document.querySelector("#frame-0 img");
  if (picture) window.seen.add(picture.src);
}).observe(document, {subtree: true, childList: true, attributes: true, attributeFilter: ["src"]});
"""
DRAWN = """canvas => canvas.getContext("2d").getImageData(0, 0, 1, 1).data[3] === 255"""


@pytest.fixture
def warm(person):
    """The slow model, loaded: the worker offers the other one earlier."""
    person.develop(model=SLOW_MODEL, num_inference_steps=1, width=64, height=64)


def test_picture_comes_out_of_the_noise_over_one_stream_and_nothing_jumps(warm, page, person, stack):
    stack.worker.freeze()
    job = person.submit_slow(num_inference_steps=50)
    asked = Counter()
    page.on("request", lambda request: asked.update([re.sub(r"[?#].*", "", request.url.removeprefix(stack.url))]))
    page.add_init_script(NOTE_WHAT_IS_SEEN)
    page.goto(f"/jobs/{job.id}")
    expect(page.locator("#standing .lead")).to_contain_text("Next in the line.")
    stack.worker.go_on()
    expect(page).to_have_title(re.compile(r"^\d+/50 Developing"))
    page.wait_for_function("() => window.seen.size >= 3")
    expect(page.locator("#job.succeeded")).to_be_visible()
    expect(page).to_have_title("Developed · Darkroom")
    expect(page.locator("#announcement")).to_contain_text("Developed in")
    picture = f"/api/v1/jobs/{job.id}/images/0"
    expect(page.locator("#frame-0 img")).to_have_attribute("src", picture)
    expect(page.locator("#frame-0 img")).to_have_js_property("complete", True)
    assert page.evaluate("() => window.shift") == 0
    its_own = {path: times for path, times in asked.items() if str(job.id) in path}
    # The page when it opened and when all was told, one stream, the picture and its walk: nothing was asked for twice.
    assert its_own == {f"/jobs/{job.id}": 2, f"/jobs/{job.id}/live": 1, picture: 2}

    slider = page.get_by_label("A frame of the walk, shown large")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#frame-0 canvas")).to_be_visible()
    assert page.locator("#frame-0 canvas").evaluate(DRAWN)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#frame-0 canvas")).to_be_hidden()
    page.locator("[data-walk]").click(position={"x": 5, "y": 5})
    expect(slider).to_have_value("0")
    expect(page.locator("#frame-0 canvas")).to_be_visible()


def test_job_that_is_called_off_says_so_where_it_was(warm, page, person):
    job = person.submit_slow()
    page.goto(f"/jobs/{job.id}")
    expect(page.locator("#standing .lead")).to_contain_text("Step")
    person.client.cancel(job.id)  # by somebody else, as far as the page knows
    expect(page.locator("#job.canceled")).to_be_visible()
    expect(page.locator("#announcement")).to_contain_text("It was called off")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_words_are_copied_and_a_link_shows_the_picture_to_who_has_no_key(page, person, open_page, shoot):
    job = person.develop("a boat, rather small")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"/jobs/{job.id}")
    page.get_by_role("button", name="Copy Prompt").click()
    expect(page.locator("#announcement")).to_have_text("Copied")
    assert page.evaluate("() => navigator.clipboard.readText()") == "a boat, rather small"

    page.get_by_text("Share", exact=True).click()
    page.get_by_role("button", name="Make a link").click()
    link = page.locator("#link").inner_text()
    guest = open_page(person=None)
    guest.goto(link)
    expect(guest.get_by_role("heading", name="a boat, rather small")).to_be_visible()
    assert guest.locator("main img").evaluate("async picture => (await picture.decode(), picture.naturalWidth)") == 128
    shoot(guest, "shared")
