"""Draws a scene as a picture, at twice the size and averaged down. Knows how scenes look, not what they are called."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi, sin
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from darkroom_train.figures import FIGURES, PALETTE
from darkroom_train.pen import Color, Pen, Point, mix, shade, tint
from darkroom_train.scenes import FLYING, Figure, Scene

Picture = npt.NDArray[np.uint8]

PAPERS: Mapping[str, Color] = {
    "cream": (255, 243, 218),
    "sky blue": (178, 222, 250),
    "mint": (188, 236, 206),
    "rose": (255, 208, 220),
    "lavender": (216, 204, 250),
    "lemon": (255, 232, 132),
    "silver": (208, 212, 220),
    "navy": (36, 48, 96),
}


@dataclass(frozen=True)
class Light:
    """The colors of a time of day: the sky from top to horizon, and what tints the land, and how much."""

    top: Color
    horizon: Color
    tint: Color
    tint_part: float


LIGHTS: Mapping[str, Light] = {
    "day": Light((112, 190, 246), (222, 243, 254), (255, 255, 255), 0.0),
    "sunset": Light((150, 92, 158), (255, 190, 120), (238, 110, 80), 0.32),
    "night": Light((20, 26, 66), (62, 70, 132), (22, 28, 72), 0.62),
}
CLOUDS: Mapping[str, Color] = {"day": (255, 255, 255), "sunset": (255, 214, 196), "night": (96, 104, 156)}
HORIZON = 0.6


def draw(scene: Scene, size: int) -> Picture:
    """Draw a scene as uint8 (3, size, size)."""
    side = 2 * size
    image = _landscape(scene, side) if scene.layout == "landscape" else _plain(scene, side)
    pencil = ImageDraw.Draw(image)
    for figure in scene.figures:
        _draw_figure(pencil, figure, scene, side)
    _weather(pencil, scene, side)
    small = image.resize((size, size), Image.Resampling.BOX)
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))


def _plain(scene: Scene, side: int) -> Image.Image:
    assert scene.background is not None
    paper = PAPERS[scene.background]
    image = Image.new("RGB", (side, side), paper)
    pencil = ImageDraw.Draw(image)
    # A pool of light behind the figures.
    for radius, part in ((0.46, 0.16), (0.36, 0.3)):
        box = [(0.5 - radius) * side] * 2 + [(0.5 + radius) * side] * 2
        pencil.ellipse(box, fill=mix(paper, (255, 255, 255), part if scene.background != "navy" else part / 4))
    return image


def _draw_figure(pencil: ImageDraw.ImageDraw, figure: Figure, scene: Scene, side: int) -> None:
    center = (figure.x * side, figure.y * side)
    extent = figure.extent * side
    drawing = FIGURES[figure.shape]
    color = PALETTE[figure.color]
    if scene.style == "paper":
        offset = 0.035 * extent
        behind = (center[0] + offset, center[1] + offset)
        drawing(Pen(pencil, behind, extent, figure.tilt, silhouette=_shadow(scene)), color)
    elif figure.shape not in FLYING:
        _ground_shadow(pencil, figure, scene, side)
    drawing(Pen(pencil, center, extent, figure.tilt, outline=scene.style == "outlined"), color)


def _shadow(scene: Scene) -> Color:
    if scene.background is not None:
        return shade(PAPERS[scene.background], 0.4 if scene.background != "navy" else 0.6)
    assert scene.time is not None
    return shade(LIGHTS[scene.time].horizon, 0.5)


def _ground_shadow(pencil: ImageDraw.ImageDraw, figure: Figure, scene: Scene, side: int) -> None:
    if scene.background is None:
        return
    x, y = figure.x * side, (figure.y + 0.5 * figure.extent) * side
    width, height = 0.4 * figure.extent * side, 0.05 * figure.extent * side
    color = shade(PAPERS[scene.background], 0.16 if scene.background != "navy" else 0.5)
    pencil.ellipse((x - width, y - height, x + width, y + height), fill=color)


def _landscape(scene: Scene, side: int) -> Image.Image:
    assert scene.time is not None
    assert scene.ground is not None
    light = LIGHTS[scene.time]
    image = _gradient(light, side)
    pencil = ImageDraw.Draw(image)
    lot = Random(scene.detail_seed)  # noqa: S311 - nothing secret
    _draw_sky(pencil, scene, lot, side)
    land = _Land(pencil, light, lot, side)
    {
        "hills": land.hills,
        "sea": land.sea,
        "desert": land.desert,
        "mountains": land.mountains,
        "snow": land.snow,
    }[scene.ground]()
    return image


def _gradient(light: Light, side: int) -> Image.Image:
    part = np.minimum(np.arange(side) / (HORIZON * side), 1.0)[:, None]
    column = np.asarray(light.top) * (1 - part) + np.asarray(light.horizon) * part
    pixels = np.broadcast_to(column.round().astype(np.uint8)[:, None, :], (side, side, 3))
    return Image.fromarray(np.ascontiguousarray(pixels))


def _draw_sky(pencil: ImageDraw.ImageDraw, scene: Scene, lot: Random, side: int) -> None:
    assert scene.time is not None
    light = LIGHTS[scene.time]
    if "stars" in scene.sky:
        for _ in range(16):
            _sparkle(pencil, lot.random() * side, lot.random() * 0.5 * side, lot.uniform(0.008, 0.02) * side)
    x = lot.choice((0.2, 0.5, 0.8)) + lot.uniform(-0.05, 0.05)
    if "sun" in scene.sky:
        y, radius = (0.2, 0.1) if scene.time == "day" else (0.5, 0.14)
        color: Color = (255, 214, 70) if scene.time == "day" else (255, 240, 190)
        for wide, part in ((1.6, 0.25), (1.28, 0.45)):
            _disc(pencil, x * side, y * side, wide * radius * side, mix(mix(light.top, light.horizon, y), color, part))
        _disc(pencil, x * side, y * side, radius * side, color)
    if "moon" in scene.sky:
        _disc(pencil, x * side, 0.2 * side, 0.1 * side, (255, 244, 200))
        bite = mix(light.top, light.horizon, 0.2 / HORIZON)
        _disc(pencil, (x + 0.055) * side, 0.175 * side, 0.085 * side, bite)
    if "clouds" in scene.sky:
        for place in (0.18, 0.72):
            cloud_x, cloud_y = place + lot.uniform(-0.1, 0.1), lot.uniform(0.1, 0.3)
            _cloud(pencil, cloud_x * side, cloud_y * side, lot.uniform(0.05, 0.075) * side, CLOUDS[scene.time])


def _disc(pencil: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: Color) -> None:
    pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _sparkle(pencil: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    thin = 0.3 * radius
    points = [(x, y - radius), (x + thin, y - thin), (x + radius, y), (x + thin, y + thin)]
    points += [(x, y + radius), (x - thin, y + thin), (x - radius, y), (x - thin, y - thin)]
    pencil.polygon(points, fill=(255, 246, 200))


def _cloud(pencil: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: Color) -> None:
    for offset, rise, wide in ((-1.3, 0.25, 0.75), (-0.4, -0.3, 1.0), (0.6, -0.1, 0.85), (1.4, 0.3, 0.65)):
        _disc(pencil, x + offset * radius, y + rise * radius, wide * radius, color)
    pencil.rounded_rectangle(
        (x - 2.0 * radius, y + 0.2 * radius, x + 2.0 * radius, y + radius), radius=0.4 * radius, fill=color
    )


class _Land:
    """Draws what lies below the horizon, in the light of the hour."""

    def __init__(self, pencil: ImageDraw.ImageDraw, light: Light, lot: Random, side: int) -> None:
        self._pencil = pencil
        self._light = light
        self._lot = lot
        self._side = side

    def hills(self) -> None:
        self._wave(0.62, 0.05, 1.2, (150, 208, 120))
        self._wave(0.7, 0.045, 1.5, (112, 186, 96))
        self._wave(0.82, 0.03, 1.0, (82, 160, 84))
        for _ in range(7):
            x, y = self._lot.random(), self._lot.uniform(0.86, 0.97)
            color = self._lot.choice([(255, 240, 160), (255, 190, 200), (255, 255, 255)])
            _disc(self._pencil, x * self._side, y * self._side, 0.009 * self._side, self._lit(color))

    def sea(self) -> None:
        for number, color in enumerate([(104, 190, 222), (76, 166, 210), (54, 140, 194), (42, 118, 176)]):
            self._wave(HORIZON + 0.1 * number, 0.008, 4.0 + number, color)
        for _ in range(6):
            x, y = self._lot.random(), self._lot.uniform(0.66, 0.95)
            box = (x * self._side, y * self._side, (x + 0.09) * self._side, (y + 0.012) * self._side)
            self._pencil.rounded_rectangle(box, radius=0.006 * self._side, fill=self._lit((190, 232, 244)))

    def desert(self) -> None:
        self._wave(0.62, 0.05, 0.8, (246, 212, 146))
        self._wave(0.72, 0.05, 1.1, (238, 190, 116))
        self._wave(0.85, 0.03, 0.9, (224, 168, 94))
        for _ in range(self._lot.choice((1, 2))):
            self._cactus(self._lot.choice((0.1, 0.36, 0.64, 0.9)), self._lot.uniform(0.72, 0.8))

    def mountains(self) -> None:
        for x, height in ((0.12, 0.3), (0.86, 0.34), (0.5, 0.42)):
            x += self._lot.uniform(-0.06, 0.06)
            height *= self._lot.uniform(0.85, 1.1)
            self._peak(x, height)
        self._wave(0.74, 0.03, 1.4, (104, 172, 104))
        self._wave(0.86, 0.02, 1.0, (78, 148, 88))

    def snow(self) -> None:
        self._wave(0.62, 0.05, 1.1, (214, 230, 246))
        self._wave(0.72, 0.04, 1.4, (232, 242, 252))
        self._wave(0.84, 0.03, 0.9, (250, 252, 255))
        for _ in range(3):
            self._pine(self._lot.random(), self._lot.uniform(0.64, 0.7), self._lot.uniform(0.07, 0.11))

    def _lit(self, color: Color) -> Color:
        return mix(color, self._light.tint, self._light.tint_part)

    def _wave(self, y: float, height: float, waves: float, color: Color) -> None:
        phase = self._lot.random() * 2 * pi
        points: list[Point] = [
            (x / 24 * self._side, (y + height * sin(phase + waves * 2 * pi * x / 24)) * self._side) for x in range(25)
        ]
        self._pencil.polygon([*points, (self._side, self._side), (0, self._side)], fill=self._lit(color))

    def _peak(self, x: float, height: float) -> None:
        foot, top = 0.8, 0.8 - 1.15 * height
        wide = 0.8 * height
        self._triangle((x - wide, foot), (x, top), (x + wide, foot), color=(132, 142, 170))
        self._triangle((x, top), (x + wide, foot), (x + 0.1 * wide, foot), color=(110, 120, 152))
        cap = 0.3
        left, right = (x - cap * wide, top + cap * (foot - top)), (x + cap * wide, top + cap * (foot - top))
        self._triangle(left, (x, top), right, color=(246, 250, 255))

    def _triangle(self, *points: Point, color: Color) -> None:
        self._pencil.polygon([(x * self._side, y * self._side) for x, y in points], fill=self._lit(color))

    def _cactus(self, x: float, y: float) -> None:
        pen = Pen(self._pencil, (x * self._side, y * self._side), 0.16 * self._side)
        green = self._lit((88, 150, 92))
        pen.line([(0, -0.4), (0, 0.45)], green, width=0.2)
        pen.line([(-0.28, -0.15), (-0.28, 0.1), (0, 0.1)], green, width=0.14)
        pen.line([(0.28, -0.25), (0.28, 0.0), (0, 0.0)], green, width=0.14)

    def _pine(self, x: float, y: float, height: float) -> None:
        for number in range(3):
            top = y - height + number * 0.28 * height
            wide = (0.22 + 0.1 * number) * height
            self._triangle(
                (x - wide, top + 0.45 * height), (x, top), (x + wide, top + 0.45 * height), color=(70, 128, 112)
            )


def _weather(pencil: ImageDraw.ImageDraw, scene: Scene, side: int) -> None:
    lot = Random(scene.detail_seed + 1)  # noqa: S311 - nothing secret
    if "rain" in scene.sky:
        for _ in range(26):
            x, y = lot.random() * side, lot.random() * side
            pencil.line((x, y, x - 0.012 * side, y + 0.05 * side), fill=(206, 226, 246), width=max(1, side // 160))
    if "snowfall" in scene.sky:
        for _ in range(32):
            _disc(
                pencil,
                lot.random() * side,
                lot.random() * side,
                lot.uniform(0.006, 0.011) * side,
                tint((225, 235, 250)),
            )
