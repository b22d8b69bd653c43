"""A page goes on by itself after whatever happens to it: a reload, a second tab, a server that falls and comes back."""

import re

from playwright.sync_api import Page, Route, expect

DEVELOPED = re.compile("Developed")
STEPS = re.compile(r"Step \d+ of \d+")
# What a browser says of a server that is away for a moment.
AWAY = r"ERR_CONNECTION|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY_RESPONSE|Failed to fetch|network error"

# The server may be back before a test looks.
NOTE_WHEN_LOST = """() => {
  const lost = document.getElementById("lost");
  new MutationObserver(() => { window.wasLost ||= !lost.hidden; }).observe(lost, {attributes: true});
}"""


def make_impatient(route: Route) -> None:
    """Hand out a page that takes a stream for broken after a second without a word."""
    answer = route.fetch()
    body = re.sub('data-heartbeat-seconds="[^"]+"', 'data-heartbeat-seconds="0.4"', answer.text())
    route.fulfill(response=answer, body=body)


def step_of(page: Page) -> int:
    """How far the page says that its job is."""
    said = re.search(r"Step (\d+) of", page.locator("#standing .lead").inner_text())
    return int(said[1]) if said else 0


def until_step(page: Page, step: int) -> None:
    """Wait until the page says that its job is so far, or that it is done: machines differ."""
    page.wait_for_function(
        """step => document.querySelector("#job.succeeded")
          || Number(document.querySelector('#standing .lead').textContent.match(/Step (\\d+) of/)?.[1] ?? 0) >= step""",
        arg=step,
    )


def test_reload_in_the_middle_goes_on_from_where_the_job_is(page, person, stack):
    job = person.submit_slow()
    page.goto(f"/jobs/{job.id}")
    until_step(page, 3)
    stack.worker.freeze()
    page.reload()
    expect(page.locator("#standing .lead")).to_have_text(STEPS)
    seen = step_of(page)
    assert seen >= 3
    stack.worker.go_on()
    until_step(page, seen + 1)


def test_two_tabs_tell_the_same_and_one_cancel_reaches_both(page, person):
    job = person.submit_slow()
    other = page.context.new_page()
    for tab in (page, other):
        tab.goto(f"/jobs/{job.id}")
    for tab in (page, other):
        until_step(tab, 2)
    page.get_by_role("button", name="Cancel").click()
    for tab in (page, other):
        expect(tab.locator("#job.canceled")).to_be_visible()
        expect(tab).to_have_title(re.compile("Canceled"))
        expect(tab.get_by_role("button", name="Cancel")).to_have_count(0)


def test_page_outlives_a_server_that_falls_in_the_middle_of_a_job(page, person, stack, faults):
    faults.forgive(AWAY)
    job = person.submit_slow(num_inference_steps=60)
    page.goto(f"/jobs/{job.id}")
    until_step(page, 2)
    page.evaluate(NOTE_WHEN_LOST)
    seen = step_of(page)
    stack.kill_web()
    page.wait_for_function("() => window.wasLost")
    stack.until_web_answers()
    until_step(page, seen + 1)
    expect(page.locator("#lost")).to_be_hidden()
    expect(page.locator("#job.succeeded")).to_be_visible()
    expect(page).to_have_title(DEVELOPED)
    expect(page.locator("#job img").first).to_be_visible()


def test_stream_that_falls_silent_is_given_up_and_begun_anew(page, person, stack):
    job = person.submit_slow(num_inference_steps=30)
    streams = []
    page.on("request", lambda request: streams.append(request) if request.url.endswith("/live") else None)
    page.route(f"**/jobs/{job.id}", make_impatient)
    page.goto(f"/jobs/{job.id}")
    until_step(page, 2)
    page.evaluate(NOTE_WHEN_LOST)
    stack.worker.freeze()  # from now on the server has nothing to say, and holds the stream open
    begun = len(streams)
    with page.expect_request(lambda request: request.url.endswith("/live")):
        pass
    assert len(streams) > begun
    page.wait_for_function("() => window.wasLost")
    stack.worker.go_on()
    expect(page.locator("#job.succeeded")).to_be_visible()
    expect(page.locator("#lost")).to_be_hidden()


def test_page_follows_its_job_however_late_a_script_comes(page, person):
    held = []
    page.route("**/hx-sse.min.js*", lambda route: held.append(route))
    job = person.submit_slow(num_inference_steps=10)
    page.goto(f"/jobs/{job.id}", wait_until="commit")
    page.wait_for_function("() => window.htmx && performance.now() > 500", polling=50)
    held[0].continue_()
    expect(page.locator("#job.succeeded")).to_be_visible()
