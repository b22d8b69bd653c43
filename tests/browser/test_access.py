"""Every page, for everybody: in both themes, on a narrow screen, at rest, by keyboard alone, without JavaScript.

A page that is added is looked at here too, or a test fails. What else a page does is tested in its own file.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from darkroom import intake, keys
from darkroom.config import load_settings
from darkroom.web import create_app, login
from darkroom.web.pages import BLUEPRINTS, PLACES

THEMES = ("light", "dark")
NARROW = {"width": 360, "height": 740}
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
# What would move by itself, or as it changes, though who looks has asked for rest.
RESTLESS = """() => {
  const moves = ({animationName, transitionDuration}) => animationName !== "none" || /[1-9]/.test(transitionDuration);
  const found = [...document.querySelectorAll("*")].filter((element) =>
    [null, "::before", "::after"].some((part) => moves(getComputedStyle(element, part))));
  return found.map((element) => element.outerHTML.slice(0, 120));
}"""

Look = Callable[[Page, Any, Any], None]


def see_form(page: Page, person: Any, stack: Any) -> None:
    person.develop("a boat for the strip of recent jobs")
    page.goto("/")


def see_refused_form(page: Page, person: Any, stack: Any) -> None:
    page.goto("/")
    page.locator("#prompt").fill("a boat")
    page.locator("#num_inference_steps").fill("9999")
    page.evaluate("document.getElementById('enlarger').noValidate = true")
    page.locator("#prompt").press("Control+Enter")
    expect(page.locator("#num_inference_steps-refused")).to_be_visible()


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


def see_failed_job(page: Page, person: Any, stack: Any) -> None:
    stack.worker.freeze()
    job = person.submit_slow()
    stack.fail_front()
    page.goto(f"/jobs/{job.id}")
    expect(page.locator("#job.failed")).to_be_visible()


def see_gallery(page: Page, person: Any, stack: Any) -> None:
    for prompt in ("a red house", "two boats"):
        person.develop(prompt)
    page.goto("/gallery")


def see_empty_gallery(page: Page, person: Any, stack: Any) -> None:
    page.goto("/gallery")


def see_one_large(page: Page, person: Any, stack: Any) -> None:
    see_gallery(page, person, stack)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Picture")).to_be_visible()
    page.locator("#large").evaluate("picture => picture.decode()")


def see_question(page: Page, person: Any, stack: Any) -> None:
    see_gallery(page, person, stack)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Delete")
    expect(page.get_by_role("dialog", name="Delete this picture?")).to_be_visible()


def see_question_alone(page: Page, person: Any, stack: Any) -> None:
    see_gallery(page, person, stack)
    page.locator(".pick input").first.evaluate("box => (box.checked = true, box.form.submit())")  # as without scripts
    expect(page.get_by_role("heading", level=1)).to_have_text("Delete this picture?")


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


def see_everybodys_queue(page: Page, person: Any, stack: Any) -> None:
    stack.worker.freeze()
    person.submit("a red house")
    page.goto("/queue/all")


def see_admin(page: Page, person: Any, stack: Any) -> None:
    person.develop()
    page.goto("/admin")


def see_admin_paused(page: Page, person: Any, stack: Any) -> None:
    intake.pause(stack.database, reason="new disks", paused_by=person.owner)
    page.goto("/admin")
    expect(page.get_by_role("heading", name="The intake is paused")).to_be_visible()


def see_admin_job(page: Page, person: Any, stack: Any) -> None:
    see_running_job(page, person, stack)
    page.goto(page.url.replace("/jobs/", "/admin/jobs/"))
    expect(page.get_by_role("button", name="Put it back")).to_be_visible()


def see_keys(page: Page, person: Any, stack: Any) -> None:
    page.goto("/admin/keys")


def see_refused_key(page: Page, person: Any, stack: Any) -> None:
    page.goto("/admin/keys")
    page.get_by_label("Name").fill(f"{person.owner}-guest")
    page.get_by_label("Weight").fill("much")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#weight-refused")).to_be_visible()


def see_made_key(page: Page, person: Any, stack: Any) -> None:
    page.goto("/admin/keys")
    page.get_by_label("Name").fill(f"{person.owner}-guest")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator(".secret")).to_be_visible()


def see_key(page: Page, person: Any, stack: Any) -> None:
    [key] = [key for key in keys.list_keys(stack.database) if key.owner == person.owner]
    page.goto(f"/admin/keys/{key.id}")
    page.get_by_text("Revoke it").click()


def see_login(page: Page, person: Any, stack: Any) -> None:
    page.context.clear_cookies()
    page.goto("/login")
    page.locator("#key").fill("dk_nobody")
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#key-refused")).to_be_visible()


def see_api(page: Page, person: Any, stack: Any) -> None:
    page.goto("/docs")


def see_error(page: Page, person: Any, stack: Any) -> None:
    page.goto("/jobs/nothing")


def see_keyboard_dialog(page: Page, person: Any, stack: Any) -> None:
    page.goto("/gallery")
    page.locator("main").press("?")
    expect(page.get_by_role("dialog")).to_be_visible()


# Each look, and whose page it is of.
LOOKS: dict[str, tuple[Look, str]] = {
    "form": (see_form, "form.show"),
    "form-refused": (see_refused_form, "form.show"),
    "job-queued": (see_queued_job, "job.show"),
    "job-running": (see_running_job, "job.show"),
    "job-finished": (see_finished_job, "job.show"),
    "job-canceled": (see_canceled_job, "job.show"),
    "job-failed": (see_failed_job, "job.show"),
    "gallery": (see_gallery, "gallery.show"),
    "gallery-empty": (see_empty_gallery, "gallery.show"),
    "gallery-large": (see_one_large, "gallery.show"),
    "gallery-delete": (see_question, "gallery.show"),
    "gallery-delete-page": (see_question_alone, "gallery.delete"),
    "compare": (see_compare, "compare.show"),
    "comparison": (see_comparison, "compare.show_batch"),
    "shared": (see_shared, "shared.show"),
    "queue": (see_queue, "queue.show"),
    "queue-all": (see_everybodys_queue, "queue.show_all"),
    "admin": (see_admin, "admin.show"),
    "admin-paused": (see_admin_paused, "admin.show"),
    "admin-job": (see_admin_job, "admin.show_job"),
    "admin-keys": (see_keys, "keys.show"),
    "admin-keys-refused": (see_refused_key, "keys.create"),
    "admin-key-made": (see_made_key, "keys.create"),
    "admin-key": (see_key, "keys.show_key"),
    "login": (see_login, "login.show_login"),
    "api": (see_api, "document.show_docs"),
    "error": (see_error, "job.show"),
    "keyboard": (see_keyboard_dialog, "gallery.show"),
}
REFUSED_WITH = {"form-refused": "422", "admin-keys-refused": "422", "login": "401", "error": "404"}
# What is asked for and is no page of its own: pieces of one, pictures, a document. Streams are told by their names.
PIECES = {
    "admin.show_live",
    "document.show_document",
    "form.estimate",
    "form.show_upload",
    "job.convert",
    "shared.show_picture",
}


@pytest.fixture(params=LOOKS)
def look(request: pytest.FixtureRequest, page: Page, person: Any, stack: Any, faults: Any) -> str:
    """The name of each page in turn, which lies open."""
    if request.param in REFUSED_WITH:
        faults.forgive(REFUSED_WITH[request.param])
    see, _ = LOOKS[request.param]
    see(page, person, stack)
    return str(request.param)


def findings_of_axe(page: Page) -> list[str]:
    """What axe finds, however serious it calls it, each with the elements that it means."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['help']}: {[node['target'] for node in one['nodes']]}" for one in found]


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until the target has the focus, as somebody without a mouse does."""
    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"Tab never reaches {target}")


def test_page_is_fit_for_everybody_in_both_themes_and_on_a_narrow_screen_and_at_rest(look, page, shoot):
    found = {}
    wide = page.viewport_size
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        if findings := findings_of_axe(page):
            found[theme] = findings
    page.set_viewport_size(NARROW)
    if beyond := page.evaluate(TOO_WIDE):
        found["sideways scroll"] = beyond
    page.set_viewport_size(wide)
    shoot(page, look)
    page.keyboard.press("Shift")  # from now on the focus is the keyboard's
    if unseen := page.evaluate(UNSEEN_FOCUS):
        found["focus that cannot be seen"] = unseen
    page.emulate_media(reduced_motion="reduce")
    if restless := page.evaluate(RESTLESS):
        found["moves by itself"] = restless
    assert not found


def test_what_is_not_fit_is_found(page):
    page.goto("/login")
    page.evaluate("document.querySelector('label[for=key]').remove()")
    assert [finding for finding in findings_of_axe(page) if finding.startswith("label:")]
    page.keyboard.press("Shift")
    assert page.evaluate(UNSEEN_FOCUS) == []
    page.evaluate("document.getElementById('key').style.outline = 'none'")
    assert page.evaluate(UNSEEN_FOCUS)
    assert page.evaluate(TOO_WIDE) == []
    page.evaluate("document.querySelector('h1').style.width = '200rem'")
    assert page.evaluate(TOO_WIDE)
    assert page.evaluate(RESTLESS) == []
    page.evaluate("document.querySelector('h1').style.transition = 'color 1s'")
    assert page.evaluate(RESTLESS)


def test_every_page_is_looked_at(tmp_path: Path) -> None:
    app = create_app(load_settings(home=tmp_path), with_background=False)
    of_pages = {*(blueprint.name for blueprint in (*BLUEPRINTS, login.blueprint)), "document"}
    asked = {rule.endpoint for rule in app.url_map.iter_rules() if rule.methods and "GET" in rule.methods}
    pages = {name for name in asked if name.split(".")[0] in of_pages and ".follow" not in name}
    app.extensions["darkroom"].database.dispose()
    assert {place.endpoint for place in PLACES} <= pages
    assert pages - PIECES <= {endpoint for _, endpoint in LOOKS.values()}


def test_header_leads_operators_to_every_place(page):
    page.goto("/")
    places = page.get_by_role("navigation", name="Pages").get_by_role("link")
    assert places.all_inner_texts() == [place.title for place in PLACES]


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
