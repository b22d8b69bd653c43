"""Every page, for everybody: in both themes, on a narrow screen, by keyboard alone, without JavaScript, heard aloud.

A page that is added to the header is looked at here too, or a test fails. What else a page does is tested in its own
file.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from darkroom.web.pages import PLACES

THEMES = ("light", "dark")
NARROW = {"width": 360, "height": 740}
SERIOUS = {"serious", "critical"}
MOST_TABS = 80

# What reaches beyond the window, where that can be scrolled to.
TOO_WIDE = """() => {
  const {scrollWidth, clientWidth} = document.documentElement;
  if (scrollWidth <= clientWidth) return [];
  const all = [...document.body.querySelectorAll("*")].filter((one) => one.getBoundingClientRect().right > clientWidth);
  return all.map((one) => one.outerHTML.slice(0, 120));
}"""
# Whatever can have the focus shows it: by an outline or a shadow of its own, or of the box around, in or after it.
UNSEEN_FOCUS = """() => {
  const isMarked = ({outlineStyle, outlineWidth, boxShadow}) =>
    (outlineStyle !== "none" && parseFloat(outlineWidth) > 0) || boxShadow !== "none";
  const stops = "a[href], button, input, select, textarea, summary, [tabindex='0']";
  const found = [];
  for (const element of document.querySelectorAll(stops)) {
    if (!element.checkVisibility({visibilityProperty: true})) continue;
    element.focus({preventScroll: true});
    if (document.activeElement !== element) continue;
    const boxes = [element, element.parentElement, element.nextElementSibling, ...element.children].filter(Boolean);
    if (!boxes.some((box) => isMarked(getComputedStyle(box)))) found.push(element.outerHTML.slice(0, 120));
  }
  return found;
}"""

Look = Callable[[Page, Any, Any], None]


def see_form(page: Page, person: Any, stack: Any) -> None:
    person.develop("a boat for the strip of recent jobs")
    page.goto("/")


def see_queued_job(page: Page, person: Any, stack: Any) -> None:
    stack.worker.freeze()
    page.goto(f"/jobs/{person.submit().id}")
    expect(page.locator("#standing .lead")).to_contain_text("line")


def see_running_job(page: Page, person: Any, stack: Any) -> None:
    page.goto(f"/jobs/{person.submit_slow().id}")
    expect(page.locator("#standing .lead")).to_contain_text("Step")
    stack.worker.freeze()


def see_finished_job(page: Page, person: Any, stack: Any) -> None:
    page.goto(f"/jobs/{person.develop(num_images=2).id}")


def see_canceled_job(page: Page, person: Any, stack: Any) -> None:
    job = person.submit_slow()
    person.client.cancel(job.id)
    page.goto(f"/jobs/{job.id}")


def see_gallery(page: Page, person: Any, stack: Any) -> None:
    for prompt in ("a red house", "two boats"):
        person.develop(prompt)
    page.goto("/gallery")


def see_empty_gallery(page: Page, person: Any, stack: Any) -> None:
    page.goto("/gallery")


def see_compare(page: Page, person: Any, stack: Any) -> None:
    page.goto("/compare")


def see_comparison(page: Page, person: Any, stack: Any) -> None:
    page.goto("/compare?prompt=a+red+house&prompt=a+red+house+in+snow")
    page.get_by_role("button", name="Develop them").last.click()
    expect(page.locator("#comparison .state.succeeded")).to_have_count(2)


def see_shared(page: Page, person: Any, stack: Any) -> None:
    page.goto(f"/jobs/{person.develop().id}?days=7")
    link = page.locator("#link").get_attribute("href")
    page.context.clear_cookies()
    page.goto(str(link))


def see_queue(page: Page, person: Any, stack: Any) -> None:
    stack.worker.freeze()
    for prompt in ("a red house", "two boats"):
        person.submit(prompt)
    page.goto("/queue")


def see_admin(page: Page, person: Any, stack: Any) -> None:
    person.develop()
    page.goto("/admin")


def see_login(page: Page, person: Any, stack: Any) -> None:
    page.context.clear_cookies()
    page.goto("/login")


def see_api(page: Page, person: Any, stack: Any) -> None:
    page.goto("/docs")


def see_error(page: Page, person: Any, stack: Any) -> None:
    page.goto("/jobs/nothing")


def see_keyboard_dialog(page: Page, person: Any, stack: Any) -> None:
    page.goto("/gallery")
    page.locator("main").press("?")
    expect(page.get_by_role("dialog")).to_be_visible()


LOOKS: dict[str, Look] = {
    "form": see_form,
    "job-queued": see_queued_job,
    "job-running": see_running_job,
    "job-finished": see_finished_job,
    "job-canceled": see_canceled_job,
    "gallery": see_gallery,
    "gallery-empty": see_empty_gallery,
    "compare": see_compare,
    "comparison": see_comparison,
    "shared": see_shared,
    "queue": see_queue,
    "admin": see_admin,
    "login": see_login,
    "api": see_api,
    "error": see_error,
    "keyboard": see_keyboard_dialog,
}


@pytest.fixture(params=LOOKS)
def look(request: pytest.FixtureRequest, page: Page, person: Any, stack: Any, faults: Any) -> str:
    """The name of each page in turn, which lies open."""
    if request.param == "error":
        faults.forgive("404")
    LOOKS[request.param](page, person, stack)
    return str(request.param)


def serious_findings(page: Page) -> list[str]:
    """What axe calls serious or worse, each with the elements that it means."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']}: {[node['target'] for node in one['nodes']]}"
        for one in found
        if one["impact"] in SERIOUS
    ]


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until the target has the focus, as somebody without a mouse does."""
    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"Tab never reaches {target}")


def test_page_is_fit_for_everybody_in_both_themes_and_on_a_narrow_screen(look, page, shoot):
    found = {}
    wide = page.viewport_size
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        if findings := serious_findings(page):
            found[theme] = findings
    page.set_viewport_size(NARROW)
    if beyond := page.evaluate(TOO_WIDE):
        found["sideways scroll"] = beyond
    page.set_viewport_size(wide)
    shoot(page, look)
    page.keyboard.press("Shift")  # from now on the focus is the keyboard's
    if unseen := page.evaluate(UNSEEN_FOCUS):
        found["focus that cannot be seen"] = unseen
    assert not found


def test_what_is_not_fit_is_found(page):
    page.goto("/login")
    page.evaluate("document.querySelector('label[for=key]').remove()")
    assert [finding for finding in serious_findings(page) if finding.startswith("label:")]
    page.keyboard.press("Shift")
    assert page.evaluate(UNSEEN_FOCUS) == []
    page.evaluate("document.getElementById('key').style.outline = 'none'")
    assert page.evaluate(UNSEEN_FOCUS)
    assert page.evaluate(TOO_WIDE) == []
    page.evaluate("document.querySelector('h1').style.width = '200rem'")
    assert page.evaluate(TOO_WIDE)


def test_every_place_of_the_header_is_looked_at(page):
    page.goto("/")
    places = page.get_by_role("navigation", name="Pages").get_by_role("link")
    assert places.count() == len(PLACES)
    for endpoint in (place.endpoint for place in PLACES):
        assert any(name.startswith(endpoint.split(".")[0]) for name in LOOKS), endpoint


def test_job_is_submitted_followed_and_seen_without_javascript(plain_page):
    plain_page.goto("/")
    plain_page.locator("[name=prompt]").fill("two green boats, snow")
    plain_page.get_by_role("button", name="Develop", exact=True).click()
    expect(plain_page).to_have_url(re.compile("/jobs/"))
    expect(plain_page.locator("#job.succeeded")).to_be_visible()  # the page asks again by itself
    expect(plain_page.locator("#job img").first).to_be_visible()
    assert plain_page.locator("#job img").first.evaluate("picture => picture.naturalWidth") == 128
    plain_page.get_by_role("link", name="Gallery").click()
    expect(plain_page.locator("#hung img")).to_have_count(1)
    plain_page.locator("#hung a:has(img)").click()
    expect(plain_page.get_by_role("heading", name="two green boats, snow")).to_be_visible()


def test_job_is_called_off_without_javascript(plain_page, person):
    plain_page.goto(f"/jobs/{person.submit_slow().id}")
    plain_page.get_by_role("button", name="Cancel").click()
    expect(plain_page.locator("#job.canceled")).to_be_visible()


def test_job_is_submitted_followed_and_called_off_by_keyboard_alone(page, person):
    page.goto("/gallery")
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to the content")
    tab_to(page, page.get_by_role("link", name="Develop", exact=True))
    page.keyboard.press("Enter")
    expect(page.locator("[name=prompt]")).to_be_focused()
    page.keyboard.type("a lighthouse in fog")
    tab_to(page, page.locator("[name=num_inference_steps]"))
    page.keyboard.press("Control+a")
    page.keyboard.type("100")
    page.keyboard.press("Control+Enter")
    job = page.locator("main a[href*='/jobs/']").first
    expect(job.or_(page.locator("#job")).first).to_be_visible()
    if "/jobs/" not in page.url:
        tab_to(page, job)
        page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="a lighthouse in fog")).to_be_visible()
    tab_to(page, page.get_by_role("button", name="Cancel"))
    page.keyboard.press("Enter")
    expect(page.locator("#job.canceled")).to_be_visible()
