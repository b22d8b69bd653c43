"""What a page weighs before its pictures, and where it comes from."""

import re
from pathlib import Path

import darkroom.web

WEB = Path(darkroom.web.__file__).parent
STATIC = WEB / "static"
BUDGET_BYTES = 150_000
# A page may load nothing from elsewhere; what names another site is a link or a namespace.
FOREIGN = re.compile(r"""(?:\bsrc=|<link[^>]+href=|url\(|\bimport\b[^;\n]*?|@import\s+)["']?\s*(?:https?:)?//""")


def test_all_scripts_and_styles_together_stay_within_the_budget():
    sizes = {path.name: path.stat().st_size for path in STATIC.rglob("*") if path.is_file()}
    weights = {name: size for name, size in sizes.items() if not name.endswith("LICENSE")}
    assert sum(weights.values()) < BUDGET_BYTES, sorted(weights.items(), key=lambda pair: -pair[1])


def test_nothing_is_loaded_from_another_site():
    files = [*STATIC.glob("*.css"), *STATIC.glob("*.js"), *(WEB / "templates").rglob("*.html")]
    assert len(files) > 5
    assert [path.name for path in files if FOREIGN.search(path.read_text())] == []


def test_what_is_vendored_has_its_license_beside_it():
    vendored = {path.name for path in (STATIC / "vendor").iterdir()}
    assert {name for name in vendored if name.endswith(".js")} == {"htmx.min.js", "hx-csp.min.js", "hx-sse.min.js"}
    assert "Zero-Clause BSD" in (STATIC / "vendor/htmx.LICENSE").read_text()
