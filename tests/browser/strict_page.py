"""What must never happen in a browser: a refused script or style, an error on the console, an answer of 500 or more.

Knows Playwright and nothing of Darkroom.
"""

import re
from collections import Counter

from playwright.sync_api import BrowserContext, ConsoleMessage, Response, WebError

# Chromium logs most violations by itself, and not those that it has logged before.
REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) => {
  const place = `${event.sourceFile}:${event.lineNumber} ${event.sample}`;
  console.error(`CSP violation: ${event.effectiveDirective} ${event.blockedURI} at ${place}`);
});
"""


class Faults:
    """What went wrong in the browser contexts that are watched, in every tab of them."""

    def __init__(self) -> None:
        self._seen: list[str] = []
        self._forgiven: list[str] = []

    def watch(self, context: BrowserContext) -> None:
        """Note every fault of this context from now on."""
        context.add_init_script(REPORT_VIOLATIONS)
        context.on("console", self._on_console)
        context.on("weberror", self._on_error)
        context.on("response", self._on_response)

    def forgive(self, pattern: str) -> None:
        """Take faults that match for expected, those that were seen before too."""
        self._forgiven.append(pattern)

    def __str__(self) -> str:
        """Those that nobody expected, each on one line, once; empty when all is well."""
        faults = Counter(" ".join(fault.split()) for fault in self._seen)
        left = [fault for fault in faults if not any(re.search(pattern, fault) for pattern in self._forgiven)]
        return "\n".join(f"{fault} ({faults[fault]} times)" for fault in left)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._seen.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _on_error(self, error: WebError) -> None:
        self._seen.append(f"page error: {error.error}")

    def _on_response(self, response: Response) -> None:
        if response.status >= 500:
            self._seen.append(f"answer {response.status}: {response.request.method} {response.url}")
