"""Same noise, different words, in a browser: pictures come out of one noise side by side, and one slider leads them."""

import re

from embedded import SLOW_MODEL
from playwright.sync_api import expect

# Of 255: what two WebP files make of the same pixels.
LOSSY = 6
DIFFERENCE = """() => {
  const [first, second] = [...document.querySelectorAll(".frame canvas")].map(
    (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data);
  return first.reduce((sum, value, n) => sum + Math.abs(value - second[n]), 0) / first.length;
}"""
PROMPTS = ("a red house by the sea", "a blue house by the sea")


def test_refused_form_leads_to_what_was_refused(page, faults):
    faults.forgive("422")
    page.goto("/compare")
    page.locator("#prompt-1").fill("a" * 3000)
    page.locator("#prompt-2").fill("a boat")
    page.get_by_role("button", name="Develop them").last.click()
    expect(page.get_by_role("alert").first).to_be_focused()
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    page.get_by_role("link", name="Prompt 1").click()
    expect(page.locator("#prompt-1")).to_be_focused()


def test_one_noise_develops_under_several_prompts_side_by_side(page, shoot):
    page.goto("/compare")
    page.get_by_label("Model").select_option(SLOW_MODEL)
    page.get_by_role("button", name="Use", exact=True).click()
    for n, prompt in enumerate(PROMPTS, 1):
        page.locator(f"#prompt-{n}").fill(prompt)
    page.get_by_label("Steps").fill("30")
    page.get_by_role("button", name="Develop them").click()
    expect(page).to_have_url(re.compile("/compare/[0-9a-f-]{36}$"))
    for n in (0, 1):
        expect(page.locator(f"#frame-{n} img")).to_have_attribute("src", re.compile("^data:image/webp"))
    expect(page).to_have_title("2 of 2 done · Darkroom")
    expect(page.get_by_role("button", name="Same words, other noise")).to_be_visible()
    expect(page.locator("#announcement")).to_have_text("All 2 have ended.")
    assert page.locator(".said em").all_inner_texts() == ["red", "blue"]

    walks = page.locator("[data-walk]")
    expect(walks).to_have_count(2)
    for n in (0, 1):
        walks.nth(n).evaluate("walk => walk.decode()")
    page.get_by_label("A frame of the walks, shown large").focus()
    page.keyboard.press("Home")
    canvases = page.locator(".frame canvas")
    expect(canvases).to_have_count(2)
    at_first = page.evaluate(DIFFERENCE)
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert at_first < LOSSY < page.evaluate(DIFFERENCE), "both begin as one noise, and the words lead them apart"
    page.keyboard.press("End")
    expect(canvases.first).to_be_hidden()
    shoot(page, "comparison")
