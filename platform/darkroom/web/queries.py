"""What stands behind the question mark of an address, read and refused by field. Knows no route."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from darkroom.errors import DarkroomError, FieldError, InvalidParameters

DEFAULT_PAGE = 50
LARGEST_PAGE = 100
LONGEST_TEXT = 200


@dataclass(frozen=True)
class Filter:
    """How one parameter is read, and its limit in words. A reader raises ValueError or one of our own errors."""

    read: Callable[[str], Any]
    limit: str
    default: Any = None


def read_query(args: Mapping[str, str], filters: Mapping[str, Filter]) -> dict[str, Any]:
    """Read every parameter; one that is not there gets its default. Raises InvalidParameters naming all bad ones."""
    query: dict[str, Any] = {name: each.default for name, each in filters.items()}
    errors = []
    for name, text in args.items():
        if name not in filters:
            errors.append(FieldError(name, "is not a filter", f"one of {', '.join(filters) or 'none'}"))
            continue
        try:
            query[name] = filters[name].read(text)
        except (ValueError, DarkroomError):
            errors.append(FieldError(name, "is not taken", filters[name].limit))
    if errors:
        raise InvalidParameters(errors)
    return query


def one_of(*words: str, default: str | None = None) -> Filter:
    """One of a few words."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text

    return Filter(read, f"one of {', '.join(words)}", default)


def words(limit: str) -> Filter:
    """Some text, not too long."""

    def read(text: str) -> str:
        if "\x00" in text or len(text) > LONGEST_TEXT:
            raise ValueError(text)
        return text

    return Filter(read, f"{limit}, at most {LONGEST_TEXT} characters")


def page_size() -> Filter:
    """How many of a list are wanted at once."""

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= LARGEST_PAGE:
            raise ValueError(text)
        return int(text)

    return Filter(read, f"a whole number from 1 to {LARGEST_PAGE}", DEFAULT_PAGE)
