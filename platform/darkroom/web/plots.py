"""Small plots as paths for SVG: columns and lines over equal spans of time. Knows no job and no markup.

A plot is as wide as it has spans, and HEIGHT high; the page stretches it, and writes the words beside it as text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

HEIGHT = 100
MARGIN = 0.1
# Ends of a scale that read well, and so do their halves.
COUNTS = tuple(step * 10**power for power in range(9) for step in (2, 4, 6, 10))
SECONDS = (0.1, 0.2, 0.4, 1, 2, 4, 6, 10, 20, 40, 60, 120, 240, 360, 600, 1200, 2400, 3600)
HOURS = tuple(3600 * hours for hours in (2, 4, 6, 12, 24, 48, 96, 192, 384, 768, 1536, 3072))


@dataclass(frozen=True)
class Plot:
    """Paths over one scale, whose upper edge stands for `top`."""

    paths: tuple[str, ...]
    num: int
    top: float


def columns(*series: Sequence[int]) -> Plot:
    """Stack counts upon each other, one path for each series."""
    top = _end_of_scale(max(map(sum, zip(*series, strict=True))), COUNTS)
    bases = [0] * len(series[0])
    paths = []
    for values in series:
        paths.append("".join(_column(n, bases[n], value, top) for n, value in enumerate(values) if value))
        bases = [base + value for base, value in zip(bases, values, strict=True)]
    return Plot(tuple(paths), len(series[0]), top)


def _column(n: int, base: int, value: int, top: float) -> str:
    left, right = n + MARGIN, n + 1 - MARGIN
    return f"M{left:g} {_height(base, top)}V{_height(base + value, top)}H{right:g}V{_height(base, top)}Z"


def lines(*series: Sequence[float | None]) -> Plot:
    """Draw seconds as one line for each series, broken where a value is missing."""
    greatest = max((value for values in series for value in values if value is not None), default=0.0)
    top = _end_of_scale(greatest, (*SECONDS, *HOURS))
    return Plot(tuple("".join(_pieces(values, top)) for values in series), len(series[0]), top)


def _pieces(values: Sequence[float | None], top: float) -> Iterable[str]:
    there = [(n, value) for n, value in enumerate(values) if value is not None]
    for _, neighbors in groupby(enumerate(there), key=lambda each: each[1][0] - each[0]):
        piece = [point for _, point in neighbors]
        # Flat as far as the ends of its spans: a lone value is seen too.
        (first, begin), (last, end) = piece[0], piece[-1]
        points = [(first + MARGIN, begin), *((n + 0.5, value) for n, value in piece), (last + 1 - MARGIN, end)]
        yield "M" + "L".join(f"{x:g} {_height(value, top)}" for x, value in points)


def _height(value: float, top: float) -> str:
    """From above, as SVG counts."""
    return f"{HEIGHT * (1 - value / top):.4g}"


def _end_of_scale(greatest: float, ends: Sequence[float]) -> float:
    return next((end for end in ends if end >= greatest), greatest)
