"""What a page must not do while a picture develops: ask again and again, move what is being read, chatter."""

from urllib.parse import urlsplit

from playwright.sync_api import expect

# Sums what the browser calls a layout shift, but for those that follow somebody's own click or key.
NOTE_SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    if (entry.hadRecentInput) continue;
    const nodes = entry.sources.map(({node}) => node instanceof Element ? node.outerHTML.slice(0, 80) : String(node));
    window.shifts.push({value: entry.value, nodes});
  }
}).observe({type: "layout-shift", buffered: true});
"""
NOTE_WORDS = """() => {
  window.said = [];
  for (const region of document.querySelectorAll("[aria-live]:not([aria-live=off]), [role=status], [role=alert]")) {
    new MutationObserver(() => window.said.push(region.textContent.trim())).observe(
      region, {childList: true, characterData: true, subtree: true});
  }
}"""
# A job's states are said aloud, never its steps.
MOST_WORDS = 4
# The page, and once more for each state that the job comes to.
MOST_PAGES = 3
LEAST_SEEN_SHIFT = 0.005


def test_page_of_a_job_costs_one_stream_and_never_asks_twice(page, person):
    answers = []
    page.on("response", lambda answer: answers.append(answer))
    job = person.submit_slow(num_inference_steps=30)
    page.goto(f"/jobs/{job.id}")
    expect(page.locator("#job.succeeded")).to_be_visible()
    page.wait_for_load_state("networkidle")
    asked = [urlsplit(answer.url).path for answer in answers]
    streams = [answer for answer in answers if answer.headers.get("content-type", "").startswith("text/event-stream")]
    assert len(streams) == 1, asked
    assert asked.count(f"/jobs/{job.id}") <= MOST_PAGES, asked
    assert f"/api/v1/jobs/{job.id}" not in asked


def animations_of(page):
    """What the browser moves by itself from now on, in the parts of its own controls too."""
    found = []
    session = page.context.new_cdp_session(page)
    session.on("Animation.animationStarted", lambda event: found.append(event["animation"]["name"]))
    session.send("Animation.enable")
    return found


def test_nothing_but_the_picture_moves_for_who_wants_rest(open_page, person, stack):
    pages = {motion: open_page(reduced_motion=motion) for motion in ("reduce", "no-preference")}
    moved = {motion: animations_of(page) for motion, page in pages.items()}
    stack.worker.freeze()
    job = person.submit_slow(num_inference_steps=20)
    for page in pages.values():
        page.goto(f"/jobs/{job.id}")
        expect(page.locator("#standing .lead")).to_contain_text("line")
    stack.worker.go_on()
    for page in pages.values():
        expect(page.locator("#job.succeeded")).to_be_visible()
    assert moved["reduce"] == []
    # Who has said nothing sees the empty frame glow and the bar grow.
    assert {"tray", "width"} <= set(moved["no-preference"])


def test_nothing_moves_and_nothing_chatters_while_a_picture_develops(page, person, stack):
    page.add_init_script(NOTE_SHIFTS)
    stack.worker.freeze()
    job = person.submit_slow()
    page.goto(f"/jobs/{job.id}")
    expect(page.locator("#standing .lead")).to_contain_text("line")
    page.evaluate(NOTE_WORDS)
    stack.worker.go_on()
    expect(page.locator("#standing .lead")).to_contain_text("Step")
    expect(page.locator("#job img[src^='data:']").first).to_be_visible()
    assert page.evaluate("window.shifts") == []
    expect(page.locator("#job.succeeded")).to_be_visible()
    page.wait_for_load_state("networkidle")
    # When all is done, other buttons come, and may push down those below them; the picture stays where it is.
    assert sum(shift["value"] for shift in page.evaluate("window.shifts")) < LEAST_SEEN_SHIFT
    said = page.evaluate("window.said")
    assert len(said) <= MOST_WORDS, said
