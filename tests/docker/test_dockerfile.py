"""The Dockerfile, read and not built: it names what exists, runs as nobody special, and keeps torch out of the web."""

import re
import subprocess
import sys
import sysconfig
import threading
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Protocol

import pytest

from darkroom.config import load_settings


class Instruction(Protocol):
    @property
    def word(self) -> str: ...
    @property
    def argument(self) -> str: ...
    @property
    def command(self) -> list[str]: ...


class Stage(Protocol):
    @property
    def parent(self) -> str: ...
    @property
    def instructions(self) -> tuple[Instruction, ...]: ...
    def last(self, word: str) -> Instruction: ...


Stages = Mapping[str, Stage]
IMAGES = ["web", "worker"]


def test_there_is_a_stage_for_each_image_and_both_stand_on_one_base(stages: Stages) -> None:
    assert list(stages) == ["build", "base", "web", "worker"]
    assert {stages[image].parent for image in IMAGES} == {"base"}


@pytest.mark.parametrize("image", IMAGES)
def test_image_runs_as_a_numbered_user_who_is_not_root(stages: Stages, image: str) -> None:
    user = stages[image].last("USER").argument
    created = next(each.argument for each in stages[image].instructions if "useradd" in each.argument)
    number = re.search(r"--uid ([1-9]\d+)", created)
    assert number, "kubernetes compares numbers, not names"
    assert user == f"{number[1]}:{number[1]}"
    words = [each.word for each in stages[image].instructions]
    assert not {"RUN", "COPY", "ADD"} & set(words[len(words) - words[::-1].index("USER") :])


def test_web_image_never_hears_of_torch(stages: Stages) -> None:
    text = " ".join(each.argument for each in stages["web"].instructions)
    assert "torch" not in text
    assert _extras(stages["web"]) == {"postgres"}


def test_worker_image_brings_torch_and_the_worker(stages: Stages) -> None:
    assert any(re.search(r"pip install .*\btorch$", each.argument) for each in stages["worker"].instructions)
    assert _extras(stages["worker"]) == {"worker", "postgres"}


def test_extras_are_those_of_the_project(stages: Stages, project: dict[str, Any]) -> None:
    for image in IMAGES:
        assert _extras(stages[image]) <= set(project["optional-dependencies"])


def _extras(stage: Stage) -> set[str]:
    found = re.findall(r"\.whl\)\[([a-z,]+)\]", " ".join(each.argument for each in stage.instructions))
    assert len(found) == 1
    return set(found[0].split(","))


def test_wheel_is_installed_and_no_source_is_left_in_an_image(stages: Stages) -> None:
    for image in IMAGES:
        copied = [each.argument for each in stages[image].instructions if each.word in {"COPY", "ADD"}]
        assert copied == ["constraints.txt /etc/darkroom/constraints.txt"]


def test_what_is_copied_is_in_the_repository_and_in_the_build_context(stages: Stages, root: Path) -> None:
    context = (root / "docker/Dockerfile.dockerignore").read_text().split()
    assert context[0] == "*", "nothing enters the context unnamed: no .env, no .git"
    for stage in (stages["build"], stages["base"]):
        for each in stage.instructions:
            if each.word == "COPY":
                for source in each.argument.split()[:-1]:
                    assert (root / source).exists(), source
                    assert "!" + source.removeprefix("./") in context


def test_wheel_can_be_built_from_what_the_build_stage_copies(stages: Stages, root: Path) -> None:
    """Everything that pyproject.toml names for the wheel is copied; otherwise the build fails, or worse, goes on."""
    copied = {
        source for each in stages["build"].instructions if each.word == "COPY" for source in each.argument.split()
    }
    table = tomllib.loads((root / "pyproject.toml").read_text())
    wheel = table["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel.get("force-include", ()), table["project"]["readme"]]
    assert {Path(each).parts[0] for each in [*needed, *table["project"]["license-files"]]} <= copied


@pytest.mark.parametrize("image", IMAGES)
def test_commands_are_programs_of_the_image(stages: Stages, programs: set[str], image: str) -> None:
    for word in ("ENTRYPOINT", "HEALTHCHECK", "CMD"):
        command = stages[image].last(word).command
        assert command, f"{word} is in exec form, so that signals arrive"
        assert command[0] in programs
    assert any("tini" in each.argument for each in stages["base"].instructions if each.word == "RUN")


def test_web_image_serves_what_the_command_line_calls_web(stages: Stages) -> None:
    assert stages["web"].last("CMD").command == ["darkroom", "web"]
    assert _run(["darkroom", "web", "--help"]).returncode == 0


def test_worker_health_command_fails_where_no_worker_is(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    done = _run(stages["worker"].last("HEALTHCHECK").command)
    assert done.returncode == 1, done.stderr  # 2 would say that there is no such option
    assert "Traceback" not in done.stderr


def test_worker_health_command_does_not_wait_for_torch() -> None:
    """It is run every half minute, and importing torch takes seconds of a core."""
    code = "import sys, darkroom_worker.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    program = Path(sysconfig.get_path("scripts")) / command[0]
    return subprocess.run([str(program), *command[1:]], timeout=60, capture_output=True, text=True)


@pytest.mark.parametrize("image", IMAGES)
def test_environment_names_are_known_and_their_values_pass(
    stages: Stages, known_names: set[str], image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in _environment(stages[image]).items():
        if not name.startswith(("PIP_", "PYTHON")):
            assert name in known_names
            monkeypatch.setenv(name, value)
    assert load_settings().home == Path("/var/lib/darkroom")


def _environment(stage: Stage) -> dict[str, str]:
    text = " ".join(each.argument for each in stage.instructions if each.word == "ENV")
    return dict(pair.split("=", 1) for pair in text.split())


def test_no_secret_is_baked_in(stages: Stages) -> None:
    for stage in stages.values():
        for each in stage.instructions:
            if each.word in {"ENV", "ARG", "LABEL"}:
                assert not re.search(r"secret|password|token|_key", each.argument, re.IGNORECASE)


def test_base_image_is_of_a_python_that_the_project_takes_and_pinned_to_a_minor(root: Path) -> None:
    text = (root / "docker/Dockerfile").read_text()
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.(\d+)-slim-\w+$", text, re.MULTILINE)
    assert "latest" not in text


@contextmanager
def _answering(status: int) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(5)


@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (503, False)])
def test_web_health_command_tells_a_healthy_server_from_a_sick_one(
    stages: Stages, status: int, is_healthy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # a proxy for the outside world must not matter
    with _answering(status) as port:
        assert _health(stages, port) is is_healthy


def test_web_health_command_fails_when_nothing_listens(stages: Stages) -> None:
    with _answering(200) as port:
        pass
    assert not _health(stages, port)


def _health(stages: Stages, port: int) -> bool:
    program, *words = stages["web"].last("HEALTHCHECK").command
    assert program == "python"
    command = [sys.executable, *(word.replace("8000", str(port)) for word in words)]
    return subprocess.run(command, timeout=20, capture_output=True).returncode == 0
