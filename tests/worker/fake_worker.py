"""A real worker around an engine without weights: a prompt is an order to it. Knows no torch.

Run as a program it is a nursery: it imports once what a worker needs, and forks one for each line on its standard
input. Every answer is one line on its standard output.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_engine
from fake_engine import FakeEngine

from darkroom import logs
from darkroom.config import load_settings
from darkroom.errors import DarkroomError
from darkroom.fleet import WorkerFacts
from darkroom.stack.leash import tie
from darkroom_worker.app import open_database, serve
from darkroom_worker.develop import Develops
from darkroom_worker.engine_host import EngineHost
from darkroom_worker.output import Outlet
from darkroom_worker.worker import StallLimits

ENGINE_COMMAND = (sys.executable, fake_engine.__file__)


@contextmanager
def engine_of(control: Path, *, is_apart: bool) -> Iterator[Develops]:
    """The fake engine: in this process, or in one of its own."""
    if not is_apart:
        yield FakeEngine(control)
        return
    host = EngineHost({"control": str(control)}, command=ENGINE_COMMAND)
    host.start()
    try:
        host.wait_until_open()
        yield host
    finally:
        host.stop()


def work(control: Path, limits: Mapping[str, float], *, is_apart: bool) -> None:
    """Be a worker until SIGTERM."""
    settings = load_settings()
    logs.configure(settings)
    facts = WorkerFacts(
        id=f"worker-{os.getpid()}",
        host="here",
        pid=os.getpid(),
        device="fake",
        device_memory_bytes=0,
        fingerprint="fake",
        models=["darkroom-seeded"],
        slots=settings.worker_slots,
        version="0",
    )
    database = open_database(settings)
    with engine_of(control, is_apart=is_apart) as engine:
        serve(
            settings,
            database=database,
            engine=engine,
            outlet=Outlet(settings),
            facts=facts,
            stall_limits=StallLimits(**limits),
        )


def _be_born(order: Mapping[str, Any], nursery: int) -> None:
    tie(nursery)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    del sys.modules["__main__"].__file__  # so that what this worker spawns need not run this file first
    os.environ.clear()
    os.environ.update(order["environment"])
    try:
        work(Path(order["control"]), order["stall_limits"], is_apart=order["is_apart"])
    except DarkroomError as error:
        sys.exit(str(error))


def _start(order: Mapping[str, Any]) -> int:
    nursery = os.getpid()
    if pid := os.fork():
        return pid
    _be_born(order, nursery)
    sys.exit(0)


def _exit_code(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who runs the tests; the leash does the rest
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        answer = _exit_code(order["pid"]) if "pid" in order else _start(order)
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
