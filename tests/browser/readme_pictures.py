"""Run as a program: makes the README's pictures of the form, of a picture that emerges, and of the admin page.

It starts an embedded stack of its own, develops a few jobs in it, and leaves nothing but the pictures.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

sys.path.append(str(Path(__file__).parents[1] / "helpers"))

import chromium
from embedded import EmbeddedStack, Person

from darkroom.client import Job

QUALITY = 82
WINDOW = {"width": 1200, "height": 860}
PATIENCE_SECONDS = 300
# A picture emerges where about so many of its steps are done; the page hears of them a little late.
SHARE_SEEN = 0.3


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="A folder with a diffusers pipeline.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default="docs/images", show_default=True)
@click.option("--prompt", "prompts", multiple=True, help="What to develop; the model's own examples unless said.")
@click.option("--steps", default=100, show_default=True, help="Of the picture that emerges: more, if it is missed.")
@click.option("--theme", type=click.Choice(["light", "dark"]), default="dark", show_default=True)
def main(model: Path | None, output: Path, prompts: Sequence[str], steps: int, theme: str) -> None:
    """Write form.webp, emerging.webp and admin.webp."""
    program = chromium.find() or sys.exit("Chromium is missing: apt-get install chromium")
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="darkroom-readme-") as folder, sync_playwright() as playwright:
        options = ("--model", str(model)) if model else ()
        stack = EmbeddedStack(Path(folder), *options, environment={})
        try:
            browser = chromium.launch(playwright, program)
            context = browser.new_context(base_url=stack.url, viewport=WINDOW, color_scheme=theme)
            context.set_default_timeout(PATIENCE_SECONDS * 1000)
            expect.set_options(timeout=PATIENCE_SECONDS * 1000)
            shoot_all(stack, context.new_page(), prompts, steps, output)
            browser.close()
        finally:
            stack.worker.go_on()
            stack.end()


def shoot_all(stack: EmbeddedStack, page: Page, prompts: Sequence[str], steps: int, output: Path) -> None:
    """Develop a few jobs, then look at the pages."""
    person = Person(stack.url, owner="local", key="")
    prompts = prompts or [*person.client.models()[0].example_prompts, "a red house by the sea at sunset"]
    for prompt in prompts:
        person.develop(prompt)
    page.goto("/")
    page.locator("[name=prompt]").fill(prompts[0])
    page.locator("[name=prompt]").blur()
    expect(page.locator("main img").first).to_be_visible()
    write(page, output / "form.webp")
    emerge(stack, page, person.submit(prompts[0], num_inference_steps=steps, seed=7))
    write(page, output / "emerging.webp")
    stack.worker.go_on()
    expect(page.locator("#job.succeeded")).to_be_visible()
    page.goto("/admin")
    write(page, output / "admin.webp")
    person.leave()


def emerge(stack: EmbeddedStack, page: Page, job: Job) -> None:
    """Open the page of a job and stop its worker where the picture is half out of the noise."""
    page.goto(f"/jobs/{job.id}")
    page.wait_for_function(
        "share => { const bar = document.querySelector('main progress'); return bar && bar.value / bar.max >= share; }",
        arg=SHARE_SEEN,
        polling=20,
    )
    stack.worker.freeze()
    expect(page.locator("#job img[src^='data:']").first).to_be_visible()


def write(page: Page, path: Path) -> None:
    """Write what the window shows as a WebP of modest size."""
    page.wait_for_load_state("load")
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(path, quality=QUALITY, method=6)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
