"""How each shape of the domain is drawn with a pen. Knows no scene and no place on the picture."""

from collections.abc import Callable, Mapping
from math import cos, pi, sin

from darkroom_train.pen import INK, Color, Pen, Point, arc, curve, mix, oval, shade, tint

PALETTE: Mapping[str, Color] = {
    "red": (226, 58, 68),
    "orange": (246, 139, 44),
    "yellow": (255, 208, 48),
    "green": (66, 176, 92),
    "blue": (48, 118, 220),
    "purple": (138, 80, 196),
    "pink": (250, 138, 188),
    "brown": (136, 88, 58),
    "teal": (38, 176, 172),
    "white": (250, 248, 244),
    "black": (48, 46, 60),
    "gray": (146, 154, 166),
}
WHITE: Color = (255, 255, 255)
CREAM: Color = (255, 244, 220)
STEM: Color = (250, 230, 196)
WOOD: Color = (140, 92, 60)
LEAF: Color = (86, 160, 84)
SUNNY: Color = (255, 214, 90)


def house(pen: Pen, color: Color) -> None:
    pen.polygon([(0.16, -0.42), (0.28, -0.42), (0.28, -0.12), (0.16, -0.12)], shade(color, 0.45))
    pen.polygon([(-0.34, -0.08), (0.34, -0.08), (0.34, 0.48), (-0.34, 0.48)], color)
    pen.polygon([(-0.48, -0.04), (0, -0.5), (0.48, -0.04)], shade(color, 0.4))
    pen.polygon([(-0.1, 0.48), (-0.1, 0.2), *arc((0, 0.2), 0.1, first=180, last=360), (0.1, 0.48)], CREAM)
    for x in (-0.29, 0.15):
        pen.polygon([(x, 0.05), (x + 0.14, 0.05), (x + 0.14, 0.2), (x, 0.2)], tint(SUNNY, 0.4))
    pen.dot(0.06, 0.33, 0.02, INK)


def tree(pen: Pen, color: Color) -> None:
    pen.polygon([(-0.07, 0.05), (0.07, 0.05), (0.11, 0.5), (-0.11, 0.5)], WOOD)
    pen.polygon(
        curve(
            lambda t: (0.33 + 0.035 * cos(7 * t)) * 1.12 * cos(t),
            lambda t: -0.15 + (0.33 + 0.035 * cos(7 * t)) * sin(t),
            70,
        ),
        color,
    )
    for x, y, radius in ((-0.14, -0.26, 0.075), (0.1, -0.3, 0.05), (0.16, -0.1, 0.06)):
        pen.dot(x, y, radius, tint(color, 0.3))
    pen.dot(-0.12, 0.0, 0.055, shade(color))


def boat(pen: Pen, color: Color) -> None:
    pen.line([(0, -0.48), (0, 0.2)], WOOD, width=0.04)
    pen.polygon([(0.03, -0.42), (0.03, 0.12), (0.4, 0.12)], WHITE)
    pen.polygon([(-0.03, -0.3), (-0.03, 0.12), (-0.32, 0.12)], tint(color, 0.45))
    pen.polygon([(0, -0.5), (-0.14, -0.45), (0, -0.4)], shade(color))
    hull = [(-0.48, 0.18), (0.48, 0.18), *arc((0.18, 0.2), 0.27, first=10, last=90), (-0.2, 0.47), (-0.38, 0.4)]
    pen.polygon(hull, color)
    pen.polygon([(-0.48, 0.18), (0.48, 0.18), (0.45, 0.25), (-0.45, 0.25)], shade(color, 0.35))
    for x in (-0.16, 0.02, 0.2):
        pen.dot(x, 0.34, 0.035, CREAM)


def star(pen: Pen, color: Color) -> None:
    pen.polygon(
        curve(
            lambda t: _star_radius(t) * sin(t),
            lambda t: 0.03 - _star_radius(t) * cos(t),
            100,
        ),
        color,
    )
    pen.face(0, 0.02, 0.2)


def _star_radius(turn: float) -> float:
    """Give the radius of a star with five soft tips."""
    tip = abs(((turn / (2 * pi) * 5) + 0.5) % 1 - 0.5) * 2  # 0 at a tip, 1 between two
    return float(0.5 - 0.235 * (1 - (1 - tip) ** 1.6) - 0.02 * (1 - cos(pi * tip / 2)))


def heart(pen: Pen, color: Color) -> None:
    pen.polygon(
        curve(
            lambda t: 0.485 * sin(t) ** 3,
            lambda t: -0.03 - (0.39 * cos(t) - 0.15 * cos(2 * t) - 0.06 * cos(3 * t) - 0.03 * cos(4 * t)),
            80,
        ),
        color,
    )
    pen.dot(-0.25, -0.24, 0.07, tint(color, 0.6), height=0.05)
    pen.face(0, -0.03, 0.2)


def fish(pen: Pen, color: Color) -> None:
    pen.polygon([(0.22, 0), (0.5, -0.26), (0.44, 0), (0.5, 0.26)], shade(color))
    pen.polygon([(-0.12, -0.2), (0.04, -0.4), (0.2, -0.16)], shade(color))
    pen.polygon(curve(lambda t: -0.1 + 0.38 * cos(t), lambda t: 0.27 * sin(t)), color)
    pen.dot(-0.12, 0.13, 0.22, tint(color, 0.45), height=0.1)
    pen.polygon([(0.0, -0.02), (0.16, 0.02), (0.03, 0.12)], shade(color, 0.35))
    pen.dot(-0.3, -0.06, 0.07, WHITE)
    pen.dot(-0.31, -0.06, 0.04, INK)
    pen.line([(-0.42, 0.08), (-0.36, 0.1)], INK, width=0.02)


def flower(pen: Pen, color: Color) -> None:
    pen.line([(0, 0), (0.02, 0.25), (0, 0.48)], LEAF, width=0.05)
    for side in (-1, 1):
        pen.polygon(oval(side * 0.14, 0.34, side * 0.13, 0.06, slant=-0.05), LEAF)
    for number in range(6):
        turn = pi / 6 + number * pi / 3
        pen.ellipse(0.2 * cos(turn), -0.17 + 0.2 * sin(turn), 0.135, color)
    pen.ellipse(0, -0.17, 0.13, WOOD if color in (PALETTE["yellow"], PALETTE["orange"]) else SUNNY)
    pen.dot(-0.03, -0.2, 0.03, WHITE)


def cat(pen: Pen, color: Color) -> None:
    pen.line([(0.2, 0.4), (0.4, 0.36), (0.42, 0.16), (0.34, 0.08)], shade(color, 0.15), width=0.08)
    pen.polygon(curve(lambda t: 0.25 * cos(t) * (1.0 + 0.14 * sin(t)), lambda t: 0.22 + 0.27 * sin(t)), color)
    pen.dot(0, 0.28, 0.12, tint(color, 0.5), height=0.15)
    for side in (-1, 1):
        pen.polygon([(side * 0.28, -0.5), (side * 0.32, -0.16), (side * 0.04, -0.34)], color)
        pen.dot(side * 0.235, -0.37, 0.035, (255, 170, 170), height=0.055)
        pen.dot(side * 0.11, 0.47, 0.09, tint(color, 0.3), height=0.04)
    pen.ellipse(0, -0.16, 0.31, color, height=0.24)
    pen.face(0, -0.17, 0.23)
    pen.dot(0, -0.115, 0.03, (255, 140, 140), height=0.02)
    for side in (-1, 1):
        for rise in (-0.02, 0.03):
            pen.line([(side * 0.2, -0.1 + rise / 2), (side * 0.36, -0.1 + 2 * rise)], shade(color, 0.6), width=0.012)


def balloon(pen: Pen, color: Color) -> None:
    wave = [(0.025 * sin(9 * y), y) for y in (0.24, 0.28, 0.32, 0.36, 0.4, 0.44, 0.49)]
    pen.line(wave, INK, width=0.018)
    pen.polygon([(0, 0.16), (-0.05, 0.25), (0.05, 0.25)], shade(color))
    pen.polygon(curve(lambda t: 0.29 * cos(t), lambda t: -0.15 + 0.35 * sin(t)), color)
    pen.dot(-0.12, -0.28, 0.05, tint(color, 0.7), height=0.09)
    pen.dot(-0.15, -0.13, 0.022, tint(color, 0.7))


def mushroom(pen: Pen, color: Color) -> None:
    stem = [(-0.13, 0.0), (0.13, 0.0), (0.17, 0.4), *arc((0, 0.38), 0.17, first=20, last=160), (-0.17, 0.4)]
    pen.polygon(stem, STEM)
    pen.polygon([*arc((0, 0.02), 0.47, first=180, last=360, num_points=30), (0.4, 0.1), (-0.4, 0.1)], color)
    for x, y, radius in ((0, -0.28, 0.09), (-0.27, -0.1, 0.07), (0.27, -0.12, 0.075), (0.04, -0.04, 0.05)):
        pen.dot(x, y, radius, tint(CREAM, 0.4))
    pen.face(0, 0.23, 0.13)


def rocket(pen: Pen, color: Color) -> None:
    pen.polygon([(-0.09, 0.28), (0, 0.5), (0.09, 0.28)], (255, 150, 50))
    pen.polygon([(-0.045, 0.28), (0, 0.42), (0.045, 0.28)], (255, 226, 110))
    for side in (-1, 1):
        pen.polygon([(side * 0.14, 0.02), (side * 0.34, 0.3), (side * 0.12, 0.26)], shade(color, 0.4))
    pen.polygon(curve(lambda t: 0.2 * cos(t), lambda t: -0.1 + 0.4 * sin(t)), color)
    nose = [(0.2 * cos(t), -0.1 + 0.4 * sin(t)) for t in (pi * (1.22 + 0.56 * step / 14) for step in range(15))]
    pen.polygon(nose, shade(color, 0.35))
    pen.ellipse(0, -0.08, 0.105, WHITE)
    pen.ellipse(0, -0.08, 0.07, (120, 200, 240))
    pen.dot(-0.025, -0.105, 0.022, WHITE)
    pen.polygon([(-0.035, 0.1), (0.035, 0.1), (0.035, 0.34), (-0.035, 0.34)], shade(color, 0.4))


def bird(pen: Pen, color: Color) -> None:
    for x in (-0.06, 0.06):
        pen.line([(x, 0.28), (x - 0.02, 0.46), (x - 0.08, 0.47)], (230, 140, 50), width=0.03)
    pen.polygon([(0.2, 0.02), (0.5, -0.12), (0.46, 0.04), (0.5, 0.14), (0.2, 0.2)], shade(color))
    pen.polygon([(-0.4, -0.16), (-0.5, -0.1), (-0.38, -0.04)], (246, 150, 50))
    pen.ellipse(0.02, 0.08, 0.3, color, height=0.25)
    pen.ellipse(-0.2, -0.14, 0.22, color)
    pen.dot(-0.08, 0.18, 0.17, tint(color, 0.5), height=0.12)
    pen.polygon(curve(lambda t: 0.1 + 0.17 * cos(t) + 0.05 * sin(t), lambda t: 0.04 + 0.12 * sin(t)), shade(color, 0.3))
    pen.dot(-0.26, -0.17, 0.055, WHITE)
    pen.dot(-0.27, -0.17, 0.035, INK)


def car(pen: Pen, color: Color) -> None:
    pen.polygon([(-0.3, 0.0), (-0.18, -0.27), (0.16, -0.27), (0.3, 0.0)], shade(color))
    pen.polygon([(-0.21, -0.02), (-0.14, -0.2), (-0.02, -0.2), (-0.02, -0.02)], (190, 228, 250))
    pen.polygon([(0.03, -0.02), (0.03, -0.2), (0.13, -0.2), (0.21, -0.02)], (190, 228, 250))
    body = [(-0.5, 0.04), (-0.42, -0.03), (0.42, -0.02), (0.5, 0.06), (0.5, 0.24), (-0.5, 0.24)]
    pen.polygon(body, color)
    pen.dot(0.45, 0.08, 0.045, tint(SUNNY, 0.4))
    pen.dot(-0.46, 0.08, 0.03, (230, 70, 70))
    pen.line([(0.005, 0.02), (0.005, 0.2)], shade(color, 0.3), width=0.014)
    for x in (-0.27, 0.27):
        pen.ellipse(x, 0.24, 0.125, INK)
        pen.dot(x, 0.24, 0.06, (205, 210, 220))


def umbrella(pen: Pen, color: Color) -> None:
    handle: list[Point] = [(0, -0.3), (0, 0.36), *arc((-0.08, 0.38), 0.08, first=0, last=180)]
    pen.line(handle, WOOD, width=0.045)
    pen.line([(0, -0.42), (0, -0.5)], WOOD, width=0.04)
    scallops: list[Point] = []
    for number in range(4):
        x = 0.36 - 0.24 * number
        scallops += [(point[0], point[1]) for point in arc((x, 0.06), 0.12, first=0, last=-180, num_points=10)]
    pen.polygon([*arc((0, 0.06), 0.48, first=180, last=360, num_points=30), *scallops], color)
    panel: list[Point] = [(0, -0.42), *arc((0.12, 0.06), 0.12, first=0, last=-180, num_points=8)]
    pen.polygon(panel, tint(color))
    other: list[Point] = [(0, -0.42), *arc((-0.36, 0.06), 0.12, first=0, last=-180, num_points=8)]
    pen.polygon(other, tint(color))


def cup(pen: Pen, color: Color) -> None:
    for x in (-0.16, 0.0, 0.16):
        steam = [(x + 0.025 * sin(18 * y), y) for y in (-0.48, -0.44, -0.4, -0.36, -0.32, -0.28)]
        pen.line(steam, mix(WHITE, (150, 160, 180), 0.45), width=0.03)
    pen.line(arc((0.3, 0.08), 0.14, first=-90, last=100), shade(color, 0.15), width=0.07)
    pen.polygon([(-0.36, -0.16), (0.32, -0.16), (0.28, 0.34), (0.2, 0.44), (-0.24, 0.44), (-0.32, 0.34)], color)
    pen.ellipse(-0.02, -0.16, 0.34, shade(color, 0.3), height=0.07)
    pen.dot(-0.02, -0.15, 0.27, (110, 66, 44), height=0.045)
    pen.face(-0.02, 0.12, 0.18)


def butterfly(pen: Pen, color: Color) -> None:
    for side in (-1, 1):
        pen.polygon(oval(side * 0.25, -0.16, side * 0.21, 0.23, slant=-0.1), color)
        pen.polygon(oval(side * 0.19, 0.22, side * 0.16, 0.16), shade(color, 0.2))
        pen.dot(side * 0.3, -0.2, 0.08, tint(color, 0.6))
        pen.dot(side * 0.2, 0.22, 0.055, tint(color, 0.6))
        pen.line([(side * 0.02, -0.28), (side * 0.1, -0.46)], INK, width=0.02)
        pen.dot(side * 0.1, -0.46, 0.025, INK)
    pen.ellipse(0, 0.02, 0.055, shade(WOOD, 0.4), height=0.32)


FIGURES: Mapping[str, Callable[[Pen, Color], None]] = {
    function.__name__: function
    for function in (
        house,
        tree,
        boat,
        star,
        heart,
        fish,
        flower,
        cat,
        balloon,
        mushroom,
        rocket,
        bird,
        car,
        umbrella,
        cup,
        butterfly,
    )
}
