"""Draws the log of a stage as a picture: one panel for each value over the steps. Needs nothing but pillow."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw

from darkroom_train.errors import StageMissing

WIDTH, HEIGHT = 520, 200
PAPER, GRID, INK, LINE = (250, 249, 246), (226, 224, 218), (60, 58, 70), (48, 118, 220)
LEFT, BOTTOM, TOP, RIGHT = 64, 24, 26, 14

Series = list[tuple[float, float]]


def read_log(path: Path) -> Mapping[str, Series]:
    """Read a log as (step, value) for each name. Raises StageMissing."""
    if not path.exists():
        raise StageMissing(path, path.parent.name)
    series: dict[str, Series] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            if name not in ("step", "seconds"):
                series.setdefault(name, []).append((entry["step"], value))
    return series


def plot_log(path: Path) -> Image.Image:
    """Draw every value of a log. Raises StageMissing."""
    series = read_log(path)
    columns = 2 if len(series) > 1 else 1
    rows = max(1, -(-len(series) // columns))
    image = Image.new("RGB", (columns * WIDTH, rows * HEIGHT), PAPER)
    pencil = ImageDraw.Draw(image)
    for number, (name, points) in enumerate(series.items()):
        _panel(pencil, name, points, x=number % columns * WIDTH, y=number // columns * HEIGHT)
    return image


def _panel(pencil: ImageDraw.ImageDraw, name: str, points: Series, *, x: int, y: int) -> None:
    values = [value for _, value in points]
    # What falls over many orders, as a loss does, is read on a logarithmic axis.
    is_log = min(values) > 0 and max(values) / min(values) > 8
    heights = [math.log10(value) if is_log else value for value in values]
    low, high = min(heights), max(heights)
    span = (high - low) or 1.0
    last_step = max(step for step, _ in points) or 1.0
    wide, high_pixels = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    for part in (0.0, 0.5, 1.0):
        level = y + TOP + high_pixels * (1 - part)
        shown = low + part * span
        pencil.line((x + LEFT, level, x + WIDTH - RIGHT, level), fill=GRID)
        pencil.text((x + 6, level - 6), f"{10**shown if is_log else shown:.4g}", fill=INK)
    curve = [
        (x + LEFT + wide * step / last_step, y + TOP + high_pixels * (1 - (height - low) / span))
        for (step, _), height in zip(points, heights, strict=True)
    ]
    if len(curve) > 1:
        pencil.line(curve, fill=LINE, width=2)
    else:
        pencil.ellipse((curve[0][0] - 3, curve[0][1] - 3, curve[0][0] + 3, curve[0][1] + 3), fill=LINE)
    pencil.text((x + LEFT, y + 7), f"{name}   last {values[-1]:.5g}" + ("   (log)" if is_log else ""), fill=INK)
    pencil.text((x + WIDTH - RIGHT - 90, y + HEIGHT - 18), f"step {last_step:.0f}", fill=INK)
