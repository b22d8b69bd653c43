"""docs/how-pictures-are-made.md: every function it points to is there, and so is its command."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from darkroom_train.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-pictures-are-made.md").read_text()
README = (ROOT / "README.md").read_text()
NAMED = re.findall(r"`(\w+/[\w/]+\.py): ([\w.]+)`", PAGE)


def defined_in(path: Path) -> set[str]:
    """The names of a module's functions and classes, and of classes' methods behind a dot."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    top = [node for node in ast.parse(path.read_text()).body if isinstance(node, kinds)]
    methods = {
        f"{node.name}.{inner.name}"
        for node in top
        if isinstance(node, ast.ClassDef)
        for inner in node.body
        if isinstance(inner, ast.FunctionDef)
    }
    return {node.name for node in top} | methods


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_function_that_the_page_points_to_is_there(file: str, name: str) -> None:
    assert name in defined_in(ROOT / "workers" / file)


def test_every_paragraph_of_the_parts_points_to_a_function() -> None:
    parts = PAGE.split("\n## ")[1:-1]
    for part in parts:
        assert re.search(r"`\w+/[\w/]+\.py: ", part), part.splitlines()[0]
    assert len(NAMED) > 20


@pytest.mark.parametrize("text", [PAGE, README], ids=["page", "readme"])
def test_training_commands_are_understood_as_they_stand(text: str) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if "darkroom-train" in line]
    assert commands
    for _, name, *words in commands:
        main.commands[name].make_context(name, words)  # fails for what it does not know


def test_readme_links_the_page() -> None:
    assert "(docs/how-pictures-are-made.md)" in README
