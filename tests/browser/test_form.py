"""The form in a real browser: what stays, what comes back, what fits, and how a picture becomes words and numbers."""

import base64
import re
from typing import Any

from embedded import until
from playwright.sync_api import Page, expect

from darkroom import intake
from darkroom.picture_files import without_texts

# A file that somebody drops: what the browser then tells the page, which no person's hand can do in a test.
DROP = """
([encoded, place]) => {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], "picture.png", { type: "image/png" }));
  const tell = (type) => place.dispatchEvent(new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer }));
  tell("dragover");
  tell("drop");
}
"""
# The same for what somebody pastes, with what stands beside it as text. Says whether the browser pastes it itself.
PASTE = """
([encoded, text, place]) => {
  const clipboardData = new DataTransfer();
  if (text) clipboardData.setData("text/plain", text);
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  clipboardData.items.add(new File([bytes], "image.png", { type: "image/png" }));
  return place.dispatchEvent(new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData }));
}
"""
# As a browser answers that blocks what sites store.
DENY_STORAGE = """
const denied = new DOMException("Access is denied", "SecurityError");
Object.defineProperty(window, "localStorage", { get() { throw denied; } });
navigator.locks.request = () => Promise.reject(denied);
"""
FIXED_SIZING = """
const style = new CSSStyleSheet();
style.replaceSync("textarea { field-sizing: fixed !important; }");
document.adoptedStyleSheets = [style];
"""
SHIFTS = """
new PerformanceObserver((list) => {
  const unasked = list.getEntries().filter((entry) => !entry.hadRecentInput);
  window.shifted = unasked.reduce((sum, entry) => sum + entry.value, window.shifted ?? 0);
}).observe({ type: "layout-shift", buffered: true });
"""


def drop(page: Page, encoded: str, selector: str) -> None:
    page.evaluate(DROP, [encoded, page.locator(selector).element_handle()])


def paste(page: Page, body: bytes, selector: str, text: str = "") -> bool:
    encoded = base64.b64encode(body).decode()
    return bool(page.evaluate(PASTE, [encoded, text, page.locator(selector).element_handle()]))


def submit_by_keys(page: Page) -> None:
    page.locator("#prompt").focus()
    page.keyboard.press("Control+Enter")


def test_form_stays_open_while_its_jobs_develop_in_the_strip(page: Page, person: Any, shoot: Any) -> None:
    page.goto("/")
    expect(page.locator("#estimate")).not_to_be_empty()
    page.get_by_label("Model").select_option("slow-seeded")
    expect(page.get_by_text("a lighthouse in fog")).to_be_visible()
    page.get_by_text("a lighthouse in fog").click()
    for _ in range(3):
        submit_by_keys(page)
    expect(page.locator("#strip li")).to_have_count(3)
    expect(page.locator("#prompt")).to_have_value("a lighthouse in fog")
    expect(page.locator(".strip .state.running").first).to_contain_text(re.compile(r"Step \d+ of 100"))
    preview = page.locator(".film.running img").first
    expect(preview).to_have_attribute("src", re.compile("^data:image/webp"))
    first = preview.get_attribute("src")
    expect(preview).not_to_have_attribute("src", first or "")
    shoot(page, "form")
    assert {job.params["prompt"] for job in person.client.jobs()} == {"a lighthouse in fog"}

    for job in person.client.jobs():
        person.client.cancel(job.id)
    expect(page.locator(".strip .state.canceled")).to_have_count(3)
    page.get_by_label("Model").select_option("darkroom-seeded")
    expect(page.get_by_text("a red house by the sea at sunset")).to_be_visible()
    submit_by_keys(page)
    expect(page.locator("#strip li").first.locator("img")).to_have_attribute("src", re.compile("variant=thumb"))


def test_next_job_is_asked_for_while_the_last_is_on_its_way(page: Page, person: Any) -> None:
    held: list[Any] = []
    page.route("**/", lambda route: held.append(route) if route.request.method == "POST" else route.continue_())
    page.goto("/")
    for prompt in ("a boat", "a house"):
        page.locator("#prompt").fill(prompt)
        submit_by_keys(page)
        expect(page.locator("#prompt")).to_be_editable()
    expect(page.locator("#strip li")).to_have_count(0)
    for n in range(2):
        until(lambda n=n: page.evaluate("true") and len(held) > n, "it is sent")
        held[n].continue_()
    expect(page.locator("#strip li")).to_have_count(2)
    assert {job.params["prompt"] for job in person.client.jobs()} == {"a boat", "a house"}


def test_what_was_typed_survives_a_reload_and_the_page_does_not_jump(page: Page) -> None:
    page.context.add_init_script(SHIFTS)
    page.goto("/")
    page.locator("#prompt").fill("a boat\non a river\nin the rain\nat night\nin winter")
    page.locator("[value=own]").check()
    page.locator("#width").fill("133")
    page.locator("#height").fill("9000")
    page.locator("#num_inference_steps").fill("33")
    expect(page.locator("#width")).to_have_value("136")
    expect(page.locator("#height")).to_have_value("512")
    page.get_by_label("Draw a seed").click()
    expect(page.get_by_label("Keep the seed")).to_have_attribute("aria-pressed", "true")
    seed = page.locator("#seed").input_value()
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Keep the walk").uncheck()

    page.reload()
    expect(page.locator("#prompt")).to_have_value("a boat\non a river\nin the rain\nat night\nin winter")
    expect(page.locator("#width")).to_have_value("136")
    expect(page.locator("#num_inference_steps")).to_have_value("33")
    expect(page.locator("#seed")).to_have_value(seed)
    expect(page.get_by_label("Keep the walk")).to_be_visible()
    expect(page.get_by_label("Keep the walk")).not_to_be_checked()
    assert page.evaluate("window.shifted ?? 0") == 0

    page.get_by_label("Keep the seed").click()
    expect(page.locator("#seed")).to_have_value("")
    page.get_by_role("button", name="Back to the model's own settings").click()
    expect(page.locator("#num_inference_steps")).to_have_value("20")
    expect(page.locator("#prompt")).to_have_value(re.compile("^a boat"))


def test_dropped_picture_gives_its_settings_or_itself(page: Page, person: Any) -> None:
    job = person.develop("a yellow star", seed=77, num_inference_steps=7, width=96, height=168, sampler="ddim")
    [picture] = person.client.pictures(job)
    encoded = base64.b64encode(picture.body).decode()
    page.goto("/")
    page.locator("#prompt").fill("other words")
    drop(page, encoded, "#prompt")
    expect(page.locator(".note")).to_contain_text("Filled in")
    expect(page.locator("#prompt")).to_have_value("a yellow star")
    expect(page.locator("#seed")).to_have_value("77")
    expect(page.locator("#sampler")).to_have_value("ddim")
    expect(page.locator("[value='96x168']")).to_be_checked()

    page.get_by_text("Begin from a picture").click()
    drop(page, encoded, "#beginning")
    expect(page.get_by_alt_text("The picture that it begins from")).to_be_visible()
    page.reload()
    expect(page.get_by_alt_text("The picture that it begins from")).to_be_visible()
    page.locator("#strength").fill("0.5")
    submit_by_keys(page)
    expect(page.locator("#strip li")).to_have_count(2)
    newest = person.client.jobs(limit=1)[0]
    assert (newest.params["strength"], newest.params["prompt"]) == (0.5, "a yellow star")
    assert newest.params["init_image"].startswith("uploads/")


def test_pasted_picture_is_begun_from_or_asked_about_and_text_stays_text(page: Page, person: Any) -> None:
    [picture] = person.client.pictures(person.develop("a yellow star", seed=77))
    page.goto("/")
    begin, take = page.get_by_role("button", name="Begin from it"), page.get_by_role("button", name="Take its settings")
    assert paste(page, picture.body, "#prompt", text="words beside it"), "the browser pastes the words"
    expect(begin).to_be_hidden()

    assert not paste(page, picture.body, "#prompt")
    expect(begin).to_be_focused()
    expect(page.get_by_alt_text("The picture that was chosen")).to_have_js_property("naturalWidth", 128)
    take.click()
    expect(page.locator(".note")).to_contain_text("Filled in")
    expect(page.locator("#seed")).to_have_value("77")
    expect(begin).to_be_hidden()
    assert not paste(page, picture.body, "body", text="/home/somebody/image.png")
    begin.click()
    expect(page.get_by_alt_text("The picture that it begins from")).to_be_visible()

    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_alt_text("The picture that it begins from")).to_have_count(0)
    paste(page, without_texts(picture.body), "#prompt")
    expect(page.get_by_alt_text("The picture that it begins from")).to_be_visible()


def test_draft_whose_picture_is_gone_says_so(page: Page, person: Any) -> None:
    [picture] = person.client.pictures(person.develop())
    page.goto("/")
    page.locator("#prompt").fill("the same in winter")
    paste(page, without_texts(picture.body), "#prompt")
    source = page.get_by_alt_text("The picture that it begins from")
    expect(source).to_have_js_property("naturalWidth", 128)
    upload_id = page.locator("[name=init_image]").input_value()
    assert page.request.delete(f"/api/v1/uploads/{upload_id}", headers={"Authorization": f"Bearer {person.key}"}).ok
    page.reload()
    expect(page.locator(".note")).to_contain_text("not kept any more")
    expect(source).to_have_count(0)
    expect(page.locator("#prompt")).to_have_value("the same in winter")
    page.reload()
    expect(page.locator("#prompt")).to_have_value("the same in winter")
    expect(page.locator(".note")).to_have_count(0)


def test_browser_that_stores_nothing_develops_all_the_same(page: Page, person: Any) -> None:
    page.context.add_init_script(DENY_STORAGE)
    page.goto("/")
    page.get_by_text("What should it avoid?").click()
    page.locator("#prompt").fill("a boat")
    submit_by_keys(page)
    expect(page.locator("#strip .state.succeeded")).to_have_count(1)
    slow = person.submit_slow()
    page.goto(f"/jobs/{slow.id}")
    expect(page.locator("#standing .lead")).to_have_text(re.compile(r"Step \d+ of 100"))


def test_box_grows_with_its_words_also_where_the_browser_does_not_see_to_it(open_page: Any) -> None:
    for init in (
        "",
        "CSS.supports = () => false; addEventListener('DOMContentLoaded', () => { " + FIXED_SIZING + " });",
    ):
        page = open_page()
        page.add_init_script(init)
        page.goto("/")
        box = page.locator("#prompt")
        before = box.bounding_box()["height"]
        box.fill("a boat\n" * 12)
        assert box.bounding_box()["height"] > before + 100
        box.fill("a boat")
        assert abs(box.bounding_box()["height"] - before) <= 1, "as it was, give or take what is rounded"


def test_refusals_stand_beside_their_fields_and_beside_the_button(page: Page, stack: Any, faults: Any) -> None:
    faults.forgive("422")
    faults.forgive("503")
    page.goto("/")
    page.locator("#prompt").fill("a boat")
    page.locator("#num_inference_steps").fill("9999")
    page.evaluate("document.getElementById('enlarger').noValidate = true")
    submit_by_keys(page)
    expect(page.locator("#num_inference_steps-refused")).to_contain_text("9999 is out of range")
    expect(page.get_by_role("alert").first).to_be_focused()
    expect(page.locator("#prompt")).to_have_value("a boat")

    page.locator("#num_inference_steps").fill("5")
    intake.pause(stack.database, reason="new disks", paused_by="the tests")
    submit_by_keys(page)
    expect(page.locator("#refusal")).to_contain_text("new disks")
    intake.resume(stack.database, resumed_by="the tests")
    submit_by_keys(page)
    expect(page.locator("#strip li")).to_have_count(1)
    expect(page.locator("#refusal")).to_be_empty()


def test_shift_beside_the_shortcut_leads_to_the_page_of_the_job(page: Page) -> None:
    page.goto("/")
    page.locator("#prompt").fill("a boat")
    page.keyboard.press("Control+Shift+Enter")
    page.wait_for_url("**/jobs/*")


def test_picture_is_begun_from_without_javascript(plain_page: Page, person: Any) -> None:
    job = person.develop()
    [picture] = person.client.pictures(job)
    plain_page.goto("/")
    plain_page.locator("#prompt").fill("the same in winter")
    plain_page.get_by_text("Begin from a picture").click()
    plain_page.locator("#picture").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": picture.body})
    plain_page.get_by_role("button", name="Begin from it").click()
    expect(plain_page.get_by_alt_text("The picture that it begins from")).to_be_visible()
    plain_page.get_by_role("button", name="Develop", exact=True).click()
    plain_page.wait_for_url("**/jobs/*")
    assert person.client.jobs(limit=1)[0].params["strength"] == 0.75
