"""A pen that draws flat shapes in a box of its own: moved, scaled and tilted onto the picture. Knows no scene."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi, radians, sin

from PIL import ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]

INK: Color = (46, 42, 62)


def mix(color: Color, other: Color, part: float) -> Color:
    """Mix `part` of another color into one."""
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(color, other, strict=True))
    return (red, green, blue)


def shade(color: Color, part: float = 0.25) -> Color:
    """Darken a color, toward the ink rather than black."""
    return mix(color, INK, part)


def tint(color: Color, part: float = 0.35) -> Color:
    """Lighten a color."""
    return mix(color, (255, 255, 255), part)


def curve(x: Callable[[float], float], y: Callable[[float], float], num_points: int = 48) -> list[Point]:
    """Sample a closed curve, its parameter running from 0 to 2 pi."""
    turns = [2 * pi * number / num_points for number in range(num_points)]
    return [(x(turn), y(turn)) for turn in turns]


def oval(x: float, y: float, width: float, height: float, *, slant: float = 0.0) -> list[Point]:
    """Sample an ellipse by its radii; `slant` lifts one side and lowers the other."""
    return curve(lambda t: x + width * cos(t), lambda t: y + height * sin(t) + slant * cos(t), 36)


@dataclass(frozen=True)
class Pen:
    """Draws in a box from -0.5 to 0.5, y downward, put at `center` with height `extent`, both in pixels.

    With an `outline` every filled shape gets an edge; with a `silhouette` everything is drawn in that one color.
    """

    draw: ImageDraw.ImageDraw
    center: Point
    extent: float
    tilt: float = 0.0  # in degrees
    outline: bool = False
    silhouette: Color | None = None

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        """Fill a polygon."""
        placed = self._place(points)
        self.draw.polygon(placed, fill=self.silhouette or color)
        if self.outline and self.silhouette is None:
            self.draw.line([*placed, placed[0], placed[1]], fill=INK, width=self._width(0.022), joint="curve")

    def ellipse(self, x: float, y: float, radius: float, color: Color, *, height: float | None = None) -> None:
        """Fill an ellipse, or a circle when no `height`, its vertical radius, is given."""
        vertical = radius if height is None else height
        self.polygon(curve(lambda t: x + radius * cos(t), lambda t: y + vertical * sin(t), 40), color)

    def dot(self, x: float, y: float, radius: float, color: Color, *, height: float | None = None) -> None:
        """Fill a small ellipse that never gets an edge: an eye, a highlight."""
        vertical = radius if height is None else height
        points = curve(lambda t: x + radius * cos(t), lambda t: y + vertical * sin(t), 20)
        self.draw.polygon(self._place(points), fill=self.silhouette or color)

    def line(self, points: Sequence[Point], color: Color, *, width: float) -> None:
        """Draw a line with round ends."""
        placed = self._place(points)
        pixels = self._width(width)
        color = self.silhouette or color
        self.draw.line(placed, fill=color, width=pixels, joint="curve")
        for x, y in (placed[0], placed[-1]):
            self.draw.ellipse((x - pixels / 2, y - pixels / 2, x + pixels / 2, y + pixels / 2), fill=color)

    def face(self, x: float, y: float, size: float) -> None:
        """Draw two eyes, a smile and cheeks."""
        for side in (-1, 1):
            self.dot(x + side * 0.5 * size, y, 0.13 * size, INK, height=0.17 * size)
            self.dot(x + side * 0.46 * size, y - 0.06 * size, 0.05 * size, (255, 255, 255))
            self.dot(x + side * 0.82 * size, y + 0.25 * size, 0.16 * size, (255, 150, 150), height=0.1 * size)
        smile = [(x + 0.22 * size * cos(t), y + 0.15 * size + 0.18 * size * sin(t)) for t in _steps(0.15, pi - 0.15)]
        self.line(smile, INK, width=0.07 * size)

    def _place(self, points: Sequence[Point]) -> list[Point]:
        angle = radians(self.tilt)
        right, down = self.extent * cos(angle), self.extent * sin(angle)
        x0, y0 = self.center
        return [(x0 + x * right - y * down, y0 + x * down + y * right) for x, y in points]

    def _width(self, width: float) -> int:
        return max(1, round(width * self.extent))


def _steps(first: float, last: float, num_points: int = 12) -> list[float]:
    return [first + (last - first) * number / (num_points - 1) for number in range(num_points)]


def arc(center: Point, radius: float, *, first: float, last: float, num_points: int = 16) -> list[Point]:
    """Sample an arc; angles in degrees, clockwise from the right, as y runs downward."""
    turns = _steps(radians(first), radians(last), num_points)
    return [(center[0] + radius * cos(turn), center[1] + radius * sin(turn)) for turn in turns]
