"""The README's program for the engine does what the README says of it, as it stands there."""

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "README.md"


def test_ten_lines_of_the_readme_develop_ten_prompts() -> None:
    [program] = re.findall(r"```python\n(from darkroom_engine .*?)```", README.read_text(), re.DOTALL)
    assert len(list(filter(None, program.splitlines()))) == 10
    names: dict[str, Any] = {}
    exec(compile(program, str(README), "exec"), names)
    assert not names["engine"].is_alive
    assert {picture.shape for picture in names["pictures"]} == {(128, 128, 3)}
    assert len({picture.tobytes() for picture in names["pictures"]}) == len(names["prompts"]) == 10
