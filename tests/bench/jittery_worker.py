"""Run as a program: a whole worker whose engine notes how long its steps take, with and without pictures going out.

The engine steps the jobs it claimed; in every second phase a feeder keeps so many pictures between encode and upload as
are on the command line. A bare process steps the same requests in phases of its own, beside the same worker and the
same output: its steps share the machine with them and not the interpreter. The last line of the output is what came of
it, as JSON.
"""

import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import numpy as np

from darkroom import logs
from darkroom.config import load_settings
from darkroom.fleet import WorkerFacts
from darkroom.jobs import Claim, JobClass
from darkroom.params import GenerationParams
from darkroom_engine import Engine, Output, Request
from darkroom_worker.app import open_database, serve
from darkroom_worker.output import Outlet

MODEL = "darkroom-seeded"
SIDE = 1024
NUM_ROUNDS = 4
PHASE_SECONDS = 2.0
# After a change of turns, until what was under way has ended.
SETTLE_SECONDS = 0.2
# So often an engine whose turn it is not looks whether it is to end.
IDLE_SECONDS = 0.1
# The processes that pictures leave through start with the first of them.
WARM_UP_SECONDS = 3.0
PATIENCE_SECONDS = 60.0


class TimedEngine(Engine):
    """Notes when each of its steps began, and its seconds; steps in its turns."""

    def __init__(self, turn: Any) -> None:
        super().__init__("cpu", num_threads=1)
        self._turn = turn
        self.steps: list[tuple[float, float]] = []
        self.load(MODEL, source="seeded:7")

    def step(self) -> bool:
        if not self._turn.wait(IDLE_SECONDS):
            return True
        began = time.perf_counter()
        has_stepped = super().step()
        self.steps.append((began, time.perf_counter() - began))
        return has_stepped


def step_without_worker(num_jobs: int, turn: Any, connection: Connection) -> None:
    """Step requests like the jobs' in this process, until the other end says a word; then say what the steps took."""
    engine = TimedEngine(turn)
    fields: dict[str, Any] = {"width": 128, "height": 128, "num_inference_steps": 1000, "guidance_scale": 1.0}
    for seed in range(num_jobs):
        engine.submit(Request(model=MODEL, prompt="a red house", sampler="heun", seed=seed, **fields))
    connection.send("ready")
    while not connection.poll():
        engine.step()
    connection.send(engine.steps)


@dataclass
class Attempt:
    """A job of which only the pictures matter."""

    claim: Claim
    is_lost: bool = False


def picture() -> Output:
    """A picture as hard to encode as a photograph."""
    generator = np.random.default_rng(0)
    soft = np.kron(generator.normal(128, 40, (SIDE // 16, SIDE // 16, 3)), np.ones((16, 16, 1)))
    image = (soft + generator.normal(0, 4, soft.shape)).clip(0, 255).astype(np.uint8)
    return Output(image, 0, "euler", MappingProxyType({}), 1, "bench")


def attempt() -> Attempt:
    fields = {"width": SIDE, "height": SIDE, "num_inference_steps": 1, "guidance_scale": 1.0, "sampler": "euler"}
    params = GenerationParams(prompt="p", seed=0, **fields)  # type: ignore[arg-type]
    return Attempt(Claim(uuid4(), "bench", MODEL, JobClass.BULK, params, 1, False, 60.0))


def feed(outlet: Outlet, num_in_flight: int, until: float) -> int:
    """Keep so many pictures on their way until a moment, and say how many were stored."""
    output, held, numbers = picture(), attempt(), itertools.count()
    under_way: set[Future[Any]] = set()
    num_stored = 0
    while under_way or time.perf_counter() < until:
        while len(under_way) < num_in_flight and time.perf_counter() < until:
            under_way.add(outlet.store_picture(held, next(numbers), output, texts={}))
        done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
        num_stored += sum(1 for future in done if future.result())
    return num_stored


@dataclass
class Bare:
    """The bare process, seen from the worker's."""

    turn: Any
    connection: Connection

    @classmethod
    def start(cls, num_jobs: int) -> "Bare":
        context = multiprocessing.get_context("spawn")
        bare, theirs = context.Pipe()
        turn = context.Event()
        context.Process(target=step_without_worker, args=(num_jobs, turn, theirs), daemon=True).start()
        assert bare.recv() == "ready"
        return cls(turn, bare)

    def end(self) -> list[tuple[float, float]]:
        """End it, and give its steps."""
        self.connection.send("end")
        steps: list[tuple[float, float]] = self.connection.recv()
        return steps


def measure(engine: TimedEngine, bare: Bare, outlet: Outlet, num_in_flight: int, num_jobs: int) -> None:
    """Measure by turns, print, and end the process."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while len(engine._scheduler.developments) < num_jobs and time.monotonic() < give_up_at:
        time.sleep(0.05)
    feed(outlet, num_in_flight, time.perf_counter() + WARM_UP_SECONDS)
    turns = {"worker": engine._turn, "bare process": bare.turn}
    phases: list[tuple[str, str, float]] = []
    num_stored = 0
    for _, who, output in itertools.product(range(NUM_ROUNDS), turns, ("idle", "busy")):
        for name, turn in turns.items():
            (turn.set if name == who else turn.clear)()
        time.sleep(SETTLE_SECONDS)
        began = time.perf_counter()
        phases.append((who, output, began))
        if output == "busy":
            num_stored += feed(outlet, num_in_flight, began + PHASE_SECONDS)
        else:
            time.sleep(PHASE_SECONDS)
    rows = len(engine._scheduler.developments)
    steps = {"worker": engine.steps, "bare process": bare.end()}
    seconds: dict[str, list[float]] = {}
    for who, output, began in phases:
        during = [took for at, took in steps[who] if began <= at < began + PHASE_SECONDS]
        seconds.setdefault(f"{who}, {output} output", []).extend(during)
    print(json.dumps({"seconds": seconds, "num_stored": num_stored, "rows": rows}), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    num_in_flight, num_jobs = int(sys.argv[1]), int(sys.argv[2])
    settings = load_settings()
    logs.configure(settings)
    bare = Bare.start(num_jobs)
    turn = threading.Event()
    turn.set()
    engine = TimedEngine(turn)
    engine.start()
    facts = WorkerFacts("bench", "here", os.getpid(), "cpu", 0, "bench", [MODEL], settings.worker_slots, "0")
    outlet = Outlet(settings)
    threading.Thread(target=measure, args=(engine, bare, outlet, num_in_flight, num_jobs), daemon=True).start()
    serve(settings, database=open_database(settings), engine=engine, outlet=outlet, facts=facts)
    os._exit(0)


if __name__ == "__main__":
    main()
