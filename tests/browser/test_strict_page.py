"""The browser tests' own eyes: each kind of fault is seen, and none is seen where there is none."""

import pytest
from embedded import until

INLINE_SCRIPT = "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = true'}))"
FOREIGN_PICTURE = "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:1/a.png'}))"


@pytest.mark.parametrize(
    ("does", "is_seen_as"),
    [
        ("document.body.setAttribute('style', 'color: red')", "CSP violation: style-src"),
        (INLINE_SCRIPT, "TrustedScript"),
        (FOREIGN_PICTURE, "CSP violation: img-src http://127.0.0.1:1/a.png"),
        ("console.error('a word of complaint')", "a word of complaint"),
        ("setTimeout(() => { throw new Error('a page error') })", "page error: a page error"),
        ("fetch('/broken')", "answer 503: GET"),
    ],
)
def test_fault_is_seen(page, faults, does, is_seen_as):
    page.route("**/broken", lambda route: route.fulfill(status=503))
    page.goto("/login")
    assert not str(faults)
    page.evaluate(f"() => {{ try {{ {does} }} catch (error) {{ console.error(String(error)) }} }}")
    until(lambda: page.evaluate("true") and is_seen_as in str(faults), f"{is_seen_as} is seen")
    faults.forgive("")


def test_page_without_javascript_is_watched_too(plain_page, faults):
    plain_page.route("**/login", lambda route: route.fulfill(status=500, body="broken"))
    plain_page.goto("/login")
    assert "answer 500: GET" in str(faults)
    faults.forgive("500")
