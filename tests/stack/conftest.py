"""`darkroom` as people run it: a process of its own, with a home of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from darkroom.stack.leash import held_by, leashed
from darkroom.stack.servers import free_port

END_SECONDS = 60


class Command:
    """A `darkroom` command that runs, and what it has said so far."""

    def __init__(self, *words: str, home: Path, environment: dict[str, str]) -> None:
        self.home = home
        self.said = ""
        self.process = subprocess.Popen(
            leashed([sys.executable, "-m", "darkroom.cli", *words]),
            env={**os.environ, **environment, "DARKROOM_HOME": str(home), **held_by(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def until(self, words: str) -> str:
        """Read what it says until these words; return all of it."""
        assert self.process.stdout
        while words not in self.said:
            line = self.process.stdout.readline()
            assert line, f"it ended without saying {words!r}:\n{self.said}"
            self.said += line
        return self.said

    def ended(self) -> int:
        """Wait until it has ended; return its exit status."""
        assert self.process.stdout
        self.said += self.process.stdout.read()
        return self.process.wait(END_SECONDS)

    def interrupt(self) -> None:
        """Press Ctrl-C: a terminal sends the signal to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def family(self) -> list[psutil.Process]:
        """Every process that lives in its home."""
        return [process for process in psutil.process_iter() if _home_of(process) == str(self.home)]

    def part(self, *words: str) -> psutil.Process:
        """The process of the family whose command line ends so; of several, the one that started the others."""
        return min(
            (one for one in self.family() if one.cmdline()[-len(words) :] == list(words)),
            key=lambda process: process.create_time(),
        )

    def close(self) -> None:
        self.process.kill()
        assert self.process.stdout
        self.process.stdout.close()
        self.process.wait()


def _home_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("DARKROOM_HOME")
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return None


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose name means something to shells, to configuration files and to format strings."""
    return tmp_path / 'a "home"; #1 of 100% (ü)'


@pytest.fixture
def darkroom(home: Path) -> Iterator[Callable[..., Command]]:
    """Run a `darkroom` command."""
    commands: list[Command] = []

    def run(*words: str, home: Path = home, **environment: str) -> Command:
        commands.append(Command(*words, home=home, environment=environment))
        return commands[-1]

    yield run
    for command in commands:
        command.close()


@pytest.fixture
def up(darkroom: Callable[..., Command]) -> Callable[..., Command]:
    """Run `darkroom up` on a free port; its `url` is where it will be."""

    def run(*words: str, **environment: str) -> Command:
        port = str(free_port())
        command = darkroom("up", "--port", port, *words, **environment)
        command.url = f"http://127.0.0.1:{port}"
        return command

    return run
