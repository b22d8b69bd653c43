"""What the files in docker/ are compared with: this repository, its packaging, its settings. No Docker engine."""

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import AliasChoices

from darkroom.config import Settings

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Instruction:
    word: str
    argument: str

    @property
    def command(self) -> list[str]:
        """The words of an exec form, ["like", "this"]; empty for a shell form."""
        start = self.argument.find("[")
        return json.loads(self.argument[start:]) if start >= 0 else []


@dataclass(frozen=True)
class Stage:
    name: str
    parent: str
    instructions: tuple[Instruction, ...]

    def last(self, word: str) -> Instruction:
        return next(each for each in reversed(self.instructions) if each.word == word)


def parse(text: str) -> Iterator[Instruction]:
    """Read a Dockerfile's instructions: comments dropped, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        word, _, argument = line.partition(" ")
        yield Instruction(word, argument.strip())


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def stages() -> dict[str, Stage]:
    """Every stage of the Dockerfile, with the instructions that it inherits from its parents put before its own."""
    found: dict[str, Stage] = {}
    for each in parse((ROOT / "docker/Dockerfile").read_text()):
        if each.word == "FROM":
            parent, _, name = each.argument.split()
            inherited = found[parent].instructions if parent in found else ()
            found[name] = Stage(name, parent, inherited)
        elif found:
            stage = found[name]
            found[name] = Stage(name, stage.parent, (*stage.instructions, each))
    return found


@pytest.fixture(scope="session")
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


@pytest.fixture(scope="session")
def programs(project: dict[str, Any]) -> set[str]:
    """The commands that are in the images: ours, Python, and tini."""
    return {*project["scripts"], "python", "tini"}


@pytest.fixture(scope="session")
def known_names() -> set[str]:
    """Every environment name that means something to Darkroom or to the libraries it stands on."""
    names = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_HOME"}
    for name, field in Settings.model_fields.items():
        names.add(f"DARKROOM_{name.upper()}")
        if isinstance(field.validation_alias, AliasChoices):
            names.update(str(each) for each in field.validation_alias.choices)
    return names
