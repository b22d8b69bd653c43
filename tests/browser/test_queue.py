"""The queue page in a browser: live over one stream, its buttons pressed without leaving it, and without JavaScript."""

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from darkroom.web.board import PAGE


def line(page: Page, job_id: object) -> Any:
    return page.locator(f"#job-{job_id}")


def test_queue_is_live_over_one_stream_and_its_buttons_stay_on_the_page(
    page: Page, stack: Any, person: Any, shoot: Any
) -> None:
    asked: list[Any] = []
    page.on("request", lambda request: asked.append(request))
    page.goto("/queue")
    expect(page.get_by_text("No such job of yours.")).to_be_visible()
    slow = person.submit_slow("a lighthouse in fog, painted slowly")
    expect(line(page, slow.id).locator(".state")).to_have_text("Developing")
    expect(line(page, slow.id)).to_contain_text("step ")
    stack.worker.freeze()
    waiting = [person.submit_slow(f"an orchard in spring, row {n}") for n in range(3)]
    expect(line(page, waiting[2].id)).to_contain_text("2 ahead")
    expect(page.locator("#summary")).to_have_text("1 developing, 3 waiting.")
    shoot(page, "queue")

    line(page, waiting[0].id).get_by_role("button", name="Cancel").click()
    expect(line(page, waiting[0].id).locator(".state")).to_have_text("Canceled")
    expect(page.locator("#announcement")).to_have_text("Canceled.")
    line(page, waiting[0].id).get_by_role("button", name="Retry").click()
    expect(line(page, waiting[0].id)).to_contain_text("Retried")
    expect(page.locator("#summary")).to_have_text("1 developing, 3 waiting.")

    page.get_by_text("Cancel all of mine").first.click()
    page.get_by_role("button", name="Cancel all of mine").click()
    expect(page.locator("#summary")).to_have_text("Nothing waits and nothing develops.")
    expect(page.get_by_text("Cancel all of mine").first).to_be_hidden()
    stack.worker.go_on()
    assert [request.url for request in asked if request.is_navigation_request()] == [f"{stack.url}/queue"]
    assert len([request for request in asked if "/queue/events" in request.url]) == 1
    assert not [request for request in asked if "/api/" in request.url]


@pytest.mark.parametrize("has_script", [True, False])
def test_operator_pages_through_everybody_s_line(
    open_page: Any, stack: Any, person: Any, shoot: Any, has_script: bool
) -> None:
    other = stack.person()
    stack.worker.freeze()
    made = [other.submit_slow(f"an orchard in spring, row {n}") for n in range(PAGE + 2)]
    page = open_page(java_script_enabled=has_script)
    page.goto("/queue/all?state=queued")
    expect(line(page, made[0].id)).to_be_visible()
    page.get_by_role("link", name="More of them").click()
    expect(line(page, made[-1].id)).to_contain_text(f"{PAGE + 1} ahead")
    expect(page.locator("#board li")).to_have_count(2)
    if has_script:
        other.client.cancel(made[-1].id)
        expect(page.locator("#board li")).to_have_count(1)
        shoot(page, "queue-all")
    line(page, made[-2].id).get_by_role("link", name=other.owner).click()
    expect(page).to_have_url(f"{stack.url}/admin/jobs/{made[-2].id}")
    other.leave()


def test_refusal_is_said_on_the_page_and_taken_back_by_what_goes_well(
    page: Page, stack: Any, person: Any, faults: Any
) -> None:
    faults.forgive("status of 4")
    stack.worker.freeze()
    waiting = person.submit_slow()
    page.goto("/queue")
    token = page.locator("#act [name=csrf_token]")
    good = token.input_value()
    token.evaluate("(field) => { field.value = 'stale'; }")
    cancel = line(page, waiting.id).get_by_role("button", name="Cancel")
    cancel.click()
    expect(page.locator("#refusal")).to_contain_text("CSRF")
    expect(page).to_have_url(f"{stack.url}/queue")
    token.evaluate("(field, good) => { field.value = good; }", good)
    cancel.click()
    expect(line(page, waiting.id).locator(".state")).to_have_text("Canceled")
    expect(page.locator("#refusal")).to_be_hidden()


def test_what_failed_is_retried_from_the_page(page: Page, stack: Any, person: Any, shoot: Any) -> None:
    done = person.develop("a boat in the evening")
    stack.worker.freeze()
    failed = [person.submit_slow(f"a tower of glass, no {n}") for n in range(2)]
    for _ in failed:
        stack.fail_front()
    page.goto("/queue?state=failed")
    expect(line(page, failed[0].id)).to_contain_text("The device ran out of memory.")
    shoot(page, "queue-failed")
    page.get_by_role("button", name="Retry all that failed").click()
    expect(line(page, failed[0].id)).to_contain_text("Retried")
    expect(page.get_by_role("button", name="Retry all that failed")).to_be_hidden()
    page.get_by_role("link", name="Now", exact=True).click()
    expect(page.locator("#summary")).to_have_text("0 developing, 2 waiting.")
    expect(line(page, done.id)).to_be_visible()
