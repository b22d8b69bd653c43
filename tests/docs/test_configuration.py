"""docs/configuration.md says what config.py does, and docs/retention.md gives the defaults that are in force."""

import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le
from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from darkroom.config import Settings

DOCS = Path(__file__).parents[2] / "docs"
CELL = re.compile(r"(?<!\\)\|")


def rows(text: str) -> dict[str, list[str]]:
    """The rows of every table in a page, by their first cell."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in CELL.split(line)[1:-1]] for line in lines]
    assert len({each[0] for each in cells}) == len(cells), "two rows begin alike"
    return {each[0].strip("`"): each[1:] for each in cells}


@pytest.fixture(scope="session")
def documented() -> dict[str, list[str]]:
    return rows((DOCS / "configuration.md").read_text())


def names(name: str, field: FieldInfo) -> list[str]:
    ours = f"DARKROOM_{name.upper()}"
    choices = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else [ours]
    return [str(choice) for choice in choices]


def default(field: FieldInfo) -> str:
    value = field.get_default()
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return (
        f"`{value:g}`"
        if isinstance(value, float) and value < 1e6
        else f"`{value}`"
        if value not in ("", None, ())
        else ""
    )


def limit(field: FieldInfo) -> str | None:
    """The limit as the page must word it; None where it is worded freely."""
    low = next((str(each.ge) for each in field.metadata if isinstance(each, Ge)), "")
    above = next((str(each.gt) for each in field.metadata if isinstance(each, Gt)), "")
    high = next((str(each.le) for each in field.metadata if isinstance(each, Le)), "")
    if low or above:
        first = f"from {low}" if low else f"more than {above}"
        return f"{first} to {high}" if low and high else f"{first}, at most {high}" if high else first
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(field.annotation))
    return "`true`, `false`" if field.annotation is bool else None


def test_every_setting_has_a_row_and_every_row_a_setting(documented: dict[str, list[str]]) -> None:
    assert set(documented) == {names(name, field)[0] for name, field in Settings.model_fields.items()}


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_row_tells_the_other_names_the_default_and_the_limit(documented: dict[str, list[str]], name: str) -> None:
    field = Settings.model_fields[name]
    first, *others = names(name, field)
    also, said_default, said_limit, meaning = documented[first]
    assert also == ", ".join(f"`{each}`" for each in others)
    assert said_default == default(field)
    assert said_limit == (limit(field) or said_limit)
    assert meaning


def test_retention_page_gives_the_defaults_in_force() -> None:
    table = rows((DOCS / "retention.md").read_text())
    shown = {name: cells[1] for name, cells in table.items() if len(cells) == 3}
    for name in ("retention_succeeded_days", "retention_other_days", "retention_uploads_days", "job_ttl_seconds"):
        field = Settings.model_fields[name]
        assert shown.pop(names(name, field)[0]) == default(field)
    assert shown == {}


def test_links_of_the_pages_lead_somewhere() -> None:
    at_the_top = [DOCS.parent / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md", "docker/README.md")]
    pages = [*DOCS.glob("*.md"), *at_the_top]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())]
    assert {page for page, _ in links} >= {DOCS.parent / "README.md", DOCS / "many-hosts.md"}
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []
