"""docs/compatibility.md: its programs run as they stand, and its tables are the ones in force."""

import gc
import re
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from darkroom.web.compat import BLUEPRINTS, a1111, hugging_face, openai, replicate
from darkroom.web.compat.calls import STAND_INS

PAGE = (Path(__file__).parents[3] / "docs/compatibility.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SECTIONS = {title.partition("\n")[0]: title for title in PAGE.split("\n## ")}
ROW = re.compile(r"^\| `(\w+)` \| `(\w+)` \|$", re.MULTILINE)


@pytest.mark.parametrize("program", PROGRAMS, ids=["openai", "hugging_face", "replicate"])
# The page does not tidy up, nor would its reader.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_program_runs_as_it_stands(
    deployment: Any, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    program = program.replace("http://127.0.0.1:8000", deployment.url).replace("dk_your_key", deployment.keys["ann"])
    program = program.replace("darkroom-128", "darkroom-seeded")  # what the worker of these tests holds
    exec(program, names)
    names.clear()
    gc.collect()


@pytest.mark.parametrize(
    ("title", "module"),
    [
        ("OpenAI", openai),
        ("AUTOMATIC1111's web UI", a1111),
        ("Hugging Face", hugging_face),
        ("Replicate", replicate),
    ],
)
def test_table_of_names_is_the_one_in_force(title: str, module: Any) -> None:
    assert dict(ROW.findall(SECTIONS[title])) == module.NAMES


def test_page_names_every_field_that_is_refused_and_every_stand_in() -> None:
    told = set(re.findall(r"`([\w.-]+)`", PAGE))
    assert set(a1111.NOT_OFFERED) <= told
    assert set(STAND_INS) <= told
    assert set(openai.IGNORED) <= told


def test_routes_stay_out_of_the_document(app: Flask) -> None:
    names = {blueprint.name for blueprint in BLUEPRINTS}
    ours = {route.rule for route in app.url_map.iter_rules() if route.endpoint.split(".")[0] in names}
    roots = {rule.split("/")[1] for rule in ours}
    assert roots == {"v1", "sdapi", "hf", "replicate"}
    document = app.test_client().get("/openapi.json").json
    assert {path.split("/")[1] for path in document["paths"]} & roots == set()
