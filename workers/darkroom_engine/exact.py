"""Exact mode's row count: a constant of the shape, never a measurement, so that every worker has the same one.

A row's result depends on how many rows its forward has (other counts sum in another order), not on what is in them.
"""

SMALL_PIXELS = 512 * 512
ROWS_OF_SMALL = 4
# Of a large picture a row costs nearly as much as all before it: as few rows as one request with guidance takes.
ROWS_OF_LARGE = 2


def exact_rows(width: int, height: int) -> int:
    """How many rows every forward has in which a request for exactness of this size in pixels takes part."""
    return ROWS_OF_SMALL if width * height <= SMALL_PIXELS else ROWS_OF_LARGE
