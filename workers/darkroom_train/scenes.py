"""What a drawn picture shows: the words of the domain, and scenes drawn by lot from a seed and an index.

Knows no pixel and no sentence; captions, drawings and the recognizer's labels all come from the `Scene`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from darkroom_train.errors import UnknownDomain

Layout = Literal["single", "pair", "group", "landscape"]

SHAPES = (
    "house",
    "tree",
    "boat",
    "star",
    "heart",
    "fish",
    "flower",
    "cat",
    "balloon",
    "mushroom",
    "rocket",
    "bird",
    "car",
    "umbrella",
    "cup",
    "butterfly",
)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "teal", "white", "black", "gray")
SIZES = ("small", "medium", "large")
BACKGROUNDS = ("cream", "sky blue", "mint", "rose", "lavender", "lemon", "silver", "navy")
POSITIONS = ("center", "left", "right", "top", "bottom", "top left", "top right", "bottom left", "bottom right")
TIMES = ("day", "sunset", "night")
GROUNDS = ("hills", "sea", "desert", "mountains", "snow")
SKY = ("sun", "moon", "stars", "clouds", "rain", "snowfall")
STYLES = ("flat", "outlined", "paper")
LAYOUTS: tuple[Layout, ...] = ("single", "pair", "group", "landscape")
# How the first figure of a pair stands to the second; captions say it from either side.
RELATIONS = ("left of", "above")
MAX_COUNT = 4

# Colors that would drown in a background.
CLASHES: Mapping[str, tuple[str, ...]] = {
    "cream": ("white", "yellow"),
    "sky blue": ("white",),
    "mint": ("white",),
    "rose": ("white", "pink"),
    "lavender": ("white",),
    "lemon": ("yellow", "white"),
    "silver": ("white", "gray"),
    "navy": ("black", "blue", "purple"),
}
# Figures that float in the sky of a landscape, and figures that only the sea carries; the rest stands on land.
FLYING = ("star", "heart", "balloon", "rocket", "bird", "butterfly")
SWIMMING = ("boat", "fish")

# Heights, as a part of the picture's.
EXTENTS: Mapping[str, float] = {"small": 0.28, "medium": 0.42, "large": 0.62}


@dataclass(frozen=True)
class Figure:
    """One object of a scene. `x` and `y` are its center and `extent` its height, all as parts of the picture's side."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    extent: float
    tilt: float  # in degrees


@dataclass(frozen=True)
class Scene:
    """What one picture shows. `background` is None in a landscape; `time` and `ground` are None everywhere else."""

    layout: Layout
    figures: tuple[Figure, ...]
    style: str
    detail_seed: int
    background: str | None = None
    position: str | None = None
    relation: str | None = None
    time: str | None = None
    ground: str | None = None
    sky: tuple[str, ...] = ()


@dataclass(frozen=True)
class Domain:
    """The words that scenes are made of. A withheld (color, shape) is never drawn for training."""

    shapes: tuple[str, ...]
    colors: tuple[str, ...]
    layouts: tuple[Layout, ...]
    positions: tuple[str, ...]
    sizes: tuple[str, ...]
    styles: tuple[str, ...]
    withheld: tuple[tuple[str, str], ...]


DOMAINS: Mapping[str, Domain] = {
    "tiny": Domain(SHAPES[3:5], COLORS[:5], ("single",), ("center",), SIZES[1:], ("flat",), (("blue", "star"),)),
    "floor": Domain(
        SHAPES[:8],
        COLORS[:8],
        ("single", "pair", "landscape"),
        POSITIONS[:5],
        SIZES,
        ("flat",),
        (("red", "fish"), ("blue", "heart"), ("green", "cat"), ("purple", "house"), ("orange", "star")),
    ),
    "full": Domain(
        SHAPES,
        COLORS,
        LAYOUTS,
        POSITIONS,
        SIZES,
        STYLES,
        (
            ("red", "fish"),
            ("blue", "heart"),
            ("green", "cat"),
            ("purple", "house"),
            ("orange", "star"),
            ("pink", "rocket"),
            ("teal", "mushroom"),
            ("yellow", "umbrella"),
            ("brown", "balloon"),
            ("black", "butterfly"),
        ),
    ),
}


def get_domain(name: str) -> Domain:
    """Give a domain by name. Raises UnknownDomain."""
    if name not in DOMAINS:
        raise UnknownDomain(name, tuple(DOMAINS))
    return DOMAINS[name]


def sample_scene(domain: Domain, seed: int, index: int, *, withheld: bool = False) -> Scene:
    """Draw a scene by lot, the same for the same seed and index.

    With `withheld`, it is a single, pair or group whose first figure has a withheld color and shape.
    """
    lot = Random(f"scene {seed} {index}")  # noqa: S311 - nothing secret
    layouts = [layout for layout in domain.layouts if not (withheld and layout == "landscape")]
    layout = _weighted(lot, layouts)
    sampler = {"single": _single, "pair": _pair, "group": _group, "landscape": _landscape}[layout]
    return sampler(domain, lot, withheld)


def _weighted(lot: Random, layouts: Sequence[Layout]) -> Layout:
    weights = {"single": 0.35, "pair": 0.25, "group": 0.15, "landscape": 0.25}
    return lot.choices(layouts, [weights[layout] for layout in layouts])[0]


def _words(domain: Domain, lot: Random, *, withheld: bool) -> tuple[str, str]:
    """Draw (color, shape)."""
    if withheld:
        return lot.choice(domain.withheld)
    while True:
        words = (lot.choice(domain.colors), lot.choice(domain.shapes))
        if words not in domain.withheld:
            return words


def _background(lot: Random, color: str) -> str:
    """Draw a background in which the color does not drown."""
    return lot.choice([paper for paper in BACKGROUNDS if color not in CLASHES[paper]])


def _single(domain: Domain, lot: Random, withheld: bool) -> Scene:
    color, shape = _words(domain, lot, withheld=withheld)
    position = lot.choice(domain.positions)
    size = lot.choice([size for size in domain.sizes if position == "center" or size != "large"])
    x, y = _place(position)
    figure = _figure(lot, shape, color, size=size, x=x, y=y)
    return Scene(
        "single",
        (figure,),
        style=lot.choice(domain.styles),
        detail_seed=lot.getrandbits(32),
        background=_background(lot, color),
        position=position,
    )


def _place(position: str) -> tuple[float, float]:
    x = 0.27 if "left" in position else 0.73 if "right" in position else 0.5
    y = 0.27 if "top" in position else 0.73 if "bottom" in position else 0.5
    return x, y


def _pair(domain: Domain, lot: Random, withheld: bool) -> Scene:
    first = _words(domain, lot, withheld=withheld)
    background = _background(lot, first[0])
    second = first
    while second[0] in (first[0], *CLASHES[background]) or second[1] == first[1]:
        second = _words(domain, lot, withheld=False)
    relation = lot.choice(RELATIONS)
    places = ((0.27, 0.5), (0.73, 0.5)) if relation == "left of" else ((0.5, 0.27), (0.5, 0.73))
    figures = tuple(
        _figure(lot, shape, color, size=lot.choice(SIZES[:2]), x=x, y=y)
        for (color, shape), (x, y) in zip((first, second), places, strict=True)
    )
    return Scene(
        "pair",
        figures,
        style=lot.choice(domain.styles),
        detail_seed=lot.getrandbits(32),
        background=background,
        relation=relation,
    )


def _group(domain: Domain, lot: Random, withheld: bool) -> Scene:
    color, shape = _words(domain, lot, withheld=withheld)
    places = lot.choice(
        [
            [(0.28, 0.5), (0.72, 0.5)],
            [(0.2, 0.5), (0.5, 0.5), (0.8, 0.5)],
            [(0.5, 0.28), (0.26, 0.7), (0.74, 0.7)],
            [(0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72)],
        ]
    )
    size = "medium" if len(places) == 2 else "small"
    figures = tuple(_figure(lot, shape, color, size=size, x=x, y=y) for x, y in places)
    return Scene(
        "group",
        figures,
        style=lot.choice(domain.styles),
        detail_seed=lot.getrandbits(32),
        background=_background(lot, color),
    )


def _landscape(domain: Domain, lot: Random, withheld: bool) -> Scene:
    time = lot.choice(TIMES)
    ground = lot.choice(GROUNDS)
    places = lot.choices([[], [lot.choice([0.25, 0.5, 0.75])], [0.26, 0.74]], [0.3, 0.45, 0.25])[0]
    figures: list[Figure] = []
    for x in places:
        color, shape = _words(domain, lot, withheld=False)
        at_home = (shape in FLYING) or (shape in SWIMMING) == (ground == "sea")
        if at_home and shape not in [figure.shape for figure in figures]:
            y = 0.3 if shape in FLYING else 0.62
            figures.append(_figure(lot, shape, color, size="medium", x=x, y=y))
    return Scene(
        "landscape",
        tuple(figures),
        style=lot.choice(domain.styles),
        detail_seed=lot.getrandbits(32),
        time=time,
        ground=ground,
        sky=_sky(lot, time, ground),
    )


def _sky(lot: Random, time: str, ground: str) -> tuple[str, ...]:
    light = {"day": ("sun",), "sunset": ("sun",), "night": ("moon", "stars")}[time]
    chosen = [item for item in light if lot.random() < 0.65]
    if lot.random() < 0.4:
        chosen.append("clouds")
        if lot.random() < 0.35:
            chosen.append("snowfall" if ground == "snow" else "rain")
    return tuple(chosen)


def _figure(lot: Random, shape: str, color: str, *, size: str, x: float, y: float) -> Figure:
    """Make a figure near its place, a little off in place, size and angle, as drawn by hand."""
    extent = EXTENTS[size] * lot.uniform(0.94, 1.06)
    return Figure(
        shape,
        color,
        size,
        x=x + lot.uniform(-0.025, 0.025),
        y=y + lot.uniform(-0.025, 0.025),
        extent=extent,
        tilt=lot.uniform(-6, 6),
    )
