"""Numbers as pages say them: how long, how many, how large, when. Knows no job."""

from datetime import UTC, datetime

MINUTE, HOUR, DAY = 60, 3600, 86400
# Between a number and its unit no line is broken.
SPACE = "\u00a0"
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def duration(seconds: float) -> str:
    """In the one or two units that matter: 850 ms, 4.2 s, 12 s, 3 min 5 s, 2 h 40 min, 3 d 4 h."""
    if seconds < 0.95:
        return f"{seconds * 1000:.0f}{SPACE}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + f"{SPACE}s"
    whole = round(seconds)
    for length, name, smaller, small_name in (
        (DAY, "d", HOUR, "h"),
        (HOUR, "h", MINUTE, "min"),
        (MINUTE, "min", 1, "s"),
    ):
        if whole >= length:
            rest = whole % length // smaller
            return f"{whole // length}{SPACE}{name}" + (f" {rest}{SPACE}{small_name}" if rest else "")
    return f"{whole}{SPACE}s"


def size(num_bytes: int) -> str:
    """In binary units, with a digit after the point where there are few before it."""
    amount, unit = float(num_bytes), 0
    while amount >= 1000 and unit < len(UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    digits = 1 if unit and amount < 100 else 0
    return f"{amount:,.{digits}f}{SPACE}{UNITS[unit]}"


def count(number: float) -> str:
    """With its thousands set apart; only what is no whole number has digits after the point."""
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.1f}"


def moment(when: datetime) -> str:
    """To the minute, in UTC."""
    at = when.astimezone(UTC)
    return f"{at.day} {at:%b %Y, %H:%M} UTC"


def time_of_day(when: datetime) -> str:
    """Hours and minutes, in UTC."""
    return f"{when.astimezone(UTC):%H:%M}"
