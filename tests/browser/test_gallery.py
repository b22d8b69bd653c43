"""The gallery in a browser: walked by keys, searched, looked at large, loaded further down by itself, thinned out."""

from typing import Any
from uuid import UUID

import pytest
from chromium import NARROW, WIDE
from playwright.sync_api import Page, expect
from sqlalchemy import insert, select
from uuid_utils.compat import uuid7

from darkroom.models import Image, Job

PROMPTS = ("a red house by the sea", "a lighthouse in fog", "an orchard in spring")


@pytest.fixture
def hung(person: Any) -> list[str]:
    """Three pictures, the latest first, and the last of them a pair."""
    made = [person.develop(prompt, num_images=2 if n == 0 else 1).id for n, prompt in enumerate(PROMPTS)]
    return [str(job_id) for job_id in reversed(made)]


def hang_more(stack: Any, job_id: str, count: int) -> None:
    """Hang so many more pictures, each the same as one that is stored."""
    with stack.database.write() as session:
        job = session.execute(select(Job.__table__).where(Job.id == UUID(job_id))).mappings().one()
        image = session.execute(select(Image.__table__).where(Image.job_id == UUID(job_id))).mappings().first()
        ids = [uuid7() for _ in range(count)]
        session.execute(insert(Job), [{**job, "id": each} for each in ids])
        session.execute(insert(Image), [{**image, "job_id": each} for each in ids])


def at(page: Page, job_id: str, n: int = 0) -> Any:
    return page.locator(f"#p-{job_id}-{n} a")


def test_keys_lead_from_picture_to_picture_and_to_each_one_large(page: Page, hung: list[str], shoot: Any) -> None:
    page.goto("/gallery")
    page.keyboard.press("ArrowRight")
    expect(at(page, hung[0])).to_be_focused()
    page.keyboard.press("End")
    expect(at(page, hung[2], 1)).to_be_focused()
    page.set_viewport_size(NARROW)  # two beside each other
    page.keyboard.press("ArrowUp")
    expect(at(page, hung[1])).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(at(page, hung[2], 1)).to_be_focused()
    page.set_viewport_size(WIDE)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    light = page.get_by_role("dialog", name="Picture")
    expect(light).to_contain_text(PROMPTS[0])
    expect(page.locator("#large")).to_have_js_property("complete", True)
    page.keyboard.press("ArrowLeft")
    expect(light).to_contain_text(PROMPTS[1])
    shoot(page, "gallery-large")
    page.keyboard.press("Escape")
    expect(light).to_be_hidden()
    expect(at(page, hung[1])).to_be_focused()

    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/jobs/{hung[1]}")
    page.go_back()
    expect(page).to_have_url(f"/gallery#p-{hung[1]}-0")


def test_search_answers_while_one_types(page: Page, hung: list[str], shoot: Any) -> None:
    page.goto("/gallery")
    shoot(page, "gallery")
    page.keyboard.press("/")
    page.keyboard.type("orchard")
    expect(page.locator(".tile")).to_have_count(1)
    expect(page.locator("#found")).to_have_text("Pictures with “orchard” in their prompt.")
    expect(page).to_have_url("/gallery?q=orchard")
    page.get_by_label("Search in prompts").fill("submarine")
    expect(page.locator("#announcement")).to_have_text("No picture with “submarine” in their prompt.")
    expect(page.locator(".tile")).to_have_count(0)
    page.reload()
    expect(page.get_by_label("Search in prompts")).to_have_value("submarine")


def test_chosen_pictures_go_and_the_place_is_kept(page: Page, hung: list[str], shoot: Any) -> None:
    page.goto("/gallery")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("x")
    expect(page.locator(".pick :checked")).to_have_count(2)  # what was developed together goes together
    page.keyboard.press("Escape")
    expect(page.locator(".pick :checked")).to_have_count(0)
    page.keyboard.press("x")
    page.locator(f"#p-{hung[0]}-0").hover()
    page.locator(f"#p-{hung[0]}-0 .pick input").check()
    expect(page.locator("#num-selected")).to_have_text("3")
    shoot(page, "gallery-selected")
    page.get_by_role("button", name="Delete …").click()
    question = page.get_by_role("dialog", name="Delete these 3 pictures?")
    expect(question).to_be_visible()
    shoot(page, "gallery-delete")
    question.get_by_text("Keep").click()
    expect(page.locator(".tile")).to_have_count(4)
    page.keyboard.press("Delete")
    question.get_by_role("button", name="Delete for good").click()
    expect(page.locator(".tile")).to_have_count(1)
    expect(at(page, hung[1])).to_be_focused()
    expect(page.locator("#announcement")).to_have_text("3 deleted.")
    page.reload()
    expect(page.locator(".tile")).to_have_count(1)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Delete")
    page.get_by_role("button", name="Delete for good").click()
    expect(page.get_by_text("Nothing hangs here yet.")).to_be_visible()


def test_refusal_is_said_in_its_own_words_on_the_page(page: Page, hung: list[str], shoot: Any, faults: Any) -> None:
    faults.forgive("status of 4")
    page.goto("/gallery")
    refusal, search = page.locator("#refusal"), page.get_by_label("Search in prompts")
    search.evaluate("(field) => field.removeAttribute('maxlength')")
    search.fill("a" * 201)
    expect(refusal).to_have_text("q is not taken: words of the prompt, at most 200 characters.")
    expect(page.locator("#lost")).to_be_hidden()
    expect(page.locator(".tile")).to_have_count(4)
    shoot(page, "gallery-refused")
    search.fill("")
    expect(refusal).to_be_hidden()

    page.locator("#selection [name=csrf_token]").evaluate("(field) => { field.value = 'stale'; }")
    page.keyboard.press("Tab")
    at(page, hung[0]).focus()
    page.keyboard.press("x")
    page.get_by_role("button", name="Delete …").click()
    expect(refusal).to_contain_text("CSRF")
    expect(page.locator(".tile")).to_have_count(4)


def test_older_pictures_come_by_themselves_and_nothing_shifts(page: Page, stack: Any, hung: list[str]) -> None:
    hang_more(stack, hung[1], 100)
    page.add_init_script(
        "window.shifts = 0; new PerformanceObserver((list) => { for (const each of list.getEntries()) "
        "window.shifts += each.value; }).observe({ type: 'layout-shift', buffered: true });"
    )
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "cursor=" in request.url else None)
    page.goto("/gallery")
    expect(page.locator(".tile").first).to_be_visible()
    # Near the end, not at it: who jumps to the end sees the foot of the page give way.
    for near_end, next_one in ((28, 95), (76, 103)):
        page.locator(".tile").nth(near_end).scroll_into_view_if_needed()
        expect(page.locator(".tile").nth(next_one)).to_be_attached()
    expect(page.locator(".tile")).to_have_count(104)
    expect(page.locator(".more")).to_have_count(0)
    assert len(asked) == 2
    assert not [url for url in asked if "csrf" in url]
    assert page.evaluate("window.shifts") == 0
    ids = page.locator(".tile").evaluate_all("(tiles) => tiles.map((tile) => tile.id)")
    assert len(set(ids)) == 104


def test_everything_goes_without_javascript(plain_page: Page, hung: list[str]) -> None:
    plain_page.goto("/gallery")
    plain_page.get_by_label("Search in prompts").fill("fog")
    plain_page.get_by_role("button", name="Search").click()
    expect(plain_page.locator(".tile")).to_have_count(1)
    plain_page.locator(".tile").hover()
    plain_page.locator(".pick input").check()
    plain_page.get_by_role("button", name="Delete …").click()
    plain_page.get_by_role("button", name="Delete for good").click()
    expect(plain_page.locator("#found")).to_contain_text("No picture with")
    plain_page.goto("/gallery")
    expect(plain_page.locator(".tile")).to_have_count(3)
    plain_page.locator(".tile a").first.click()
    plain_page.wait_for_url(f"**/jobs/{hung[0]}")
