"""The pages of operators in a browser: they follow what happens, and leave alone what somebody is doing there."""

import re

from playwright.sync_api import expect

from darkroom import fleet, keys

# A page that was loaded anew does not know it.
MARK = "window.isStillHere = true"
IS_MARKED = "window.isStillHere === true"


def test_overview_follows_what_happens_and_leaves_alone_what_is_being_done_there(page, person, stack, shoot):
    person.develop()
    page.goto("/admin")
    page.evaluate(MARK)
    page.get_by_text("The same as a table").click()
    page.get_by_label("Reason").fill("new disks")
    drain = page.get_by_role("button", name="Drain")
    drain.focus()
    counted = page.locator("#throughput figcaption strong").first
    before = int(counted.inner_text())

    person.develop()
    expect(counted).to_have_text(str(before + 1))
    fleet.drain(stack.database, fleet.list_workers(stack.database)[0].id)
    expect(page.locator("#workers")).to_contain_text("draining")
    expect(page.get_by_role("button", name="Take jobs again")).to_be_focused()
    expect(page.get_by_label("Reason")).to_have_value("new disks")
    expect(page.locator("#figures")).to_be_visible()
    expect(page.locator("#announcement")).to_be_empty()
    assert page.evaluate(IS_MARKED)
    shoot(page, "admin")


def test_overview_says_when_nobody_answers_and_goes_on_by_itself(page, faults):
    faults.forgive("ERR_INTERNET_DISCONNECTED|Failed to fetch")
    page.goto("/admin")
    page.evaluate(MARK)
    page.context.set_offline(True)
    expect(page.locator("#lost")).to_be_visible()
    page.context.set_offline(False)
    expect(page.locator("#lost")).to_be_hidden()
    assert page.evaluate(IS_MARKED)


def test_overview_says_what_is_refused_in_its_own_words(page, faults):
    faults.forgive("status of 422")
    page.goto("/admin")
    live = page.locator("#live")
    asked = live.get_attribute("hx-get")
    live.evaluate("(element) => element.setAttribute('hx-get', '/admin/live?window=year')")
    expect(page.locator("#refusal")).to_contain_text("window is not taken: one of")
    expect(page.locator("#lost")).to_be_hidden()
    live.evaluate("(element, asked) => element.setAttribute('hx-get', asked)", asked)
    expect(page.locator("#refusal")).to_be_hidden()


def test_worker_is_drained_and_the_intake_paused_by_hand(page, stack, shoot):
    page.goto("/admin")
    page.get_by_role("button", name="Drain").click()
    expect(page.locator("#workers")).to_contain_text("draining")
    page.get_by_role("button", name="Take jobs again").click()
    expect(page.get_by_role("button", name="Drain")).to_be_visible()

    page.get_by_label("Reason").fill("new disks")
    page.get_by_role("button", name="Pause the intake").click()
    expect(page.get_by_role("heading", name="The intake is paused")).to_be_visible()
    shoot(page, "admin-paused")
    for path in ("/", "/gallery", "/admin/keys"):
        page.goto(path)
        expect(page.get_by_text("No jobs are taken just now: new disks")).to_be_visible()


def test_key_is_made_shown_once_and_revoked_and_whoever_holds_it_is_sent_away(
    page, open_page, person, stack, faults, shoot
):
    faults.forgive("401")
    page.goto("/admin/keys")
    page.get_by_label("Name").fill(f"{person.owner}-guest")
    page.get_by_role("checkbox", name="admin").check()
    shoot(page, "admin-keys")
    page.get_by_role("button", name="Make it").click()
    key = page.locator(".secret").inner_text()
    shoot(page, "admin-key-made")

    guest = open_page(person=None)
    guest.goto("/admin")
    guest.locator("#key").fill(key)
    guest.get_by_role("button", name="Log in").click()
    expect(guest.get_by_role("heading", name="At work")).to_be_visible()

    page.goto("/admin/keys")
    page.get_by_role("link", name=f"{person.owner}-guest").click()
    page.get_by_text("Revoke it").click()
    shoot(page, "admin-key")
    page.get_by_role("button", name="Revoke").click()
    expect(page.locator("summary")).to_contain_text("revoked")
    assert keys.identify(stack.database, f"{person.owner}-guest").revoked_at
    expect(guest).to_have_url(re.compile("/login"))


def test_job_of_somebody_else_is_looked_into_and_put_back_without_javascript(plain_page, stack, shoot):
    other = stack.person()
    job = other.submit_slow()
    plain_page.goto("/admin")
    link = plain_page.locator(f"#workers a[href$='{job.id}']")
    while not link.is_visible():
        plain_page.reload()
    link.click()
    expect(plain_page.get_by_role("heading", name="A job of")).to_be_visible()
    shoot(plain_page, "admin-job")
    plain_page.get_by_role("button", name="Put it back").click()
    expect(plain_page.locator(".history")).to_contain_text("an operator put it back")
    other.leave()
