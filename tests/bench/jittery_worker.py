"""Run as a program: a whole worker whose engine notes how long its steps take, with and without pictures going out.

The engine steps the jobs it claimed; in every second phase a feeder keeps so many pictures between encode and upload as
are on the command line. The last line of the output is what came of it, as JSON.
"""

import itertools
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import numpy as np

from darkroom import logs
from darkroom.config import load_settings
from darkroom.fleet import WorkerFacts
from darkroom.jobs import Claim, JobClass
from darkroom.params import GenerationParams
from darkroom_engine import Engine, Output
from darkroom_worker.app import open_database, serve
from darkroom_worker.output import Outlet

MODEL = "darkroom-seeded"
SIDE = 1024
NUM_PHASES = 12
PHASE_SECONDS = 2.0
# The processes that pictures leave through start with the first of them.
WARM_UP_SECONDS = 3.0
PATIENCE_SECONDS = 60.0


class TimedEngine(Engine):
    """Notes when each of its steps began, and its seconds."""

    def __init__(self) -> None:
        super().__init__("cpu", num_threads=1)
        self.steps: list[tuple[float, float]] = []

    def step(self) -> bool:
        began = time.perf_counter()
        has_stepped = super().step()
        self.steps.append((began, time.perf_counter() - began))
        return has_stepped


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


def measure(engine: TimedEngine, outlet: Outlet, num_in_flight: int, num_jobs: int) -> None:
    """Measure by turns, print, and end the process."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while len(engine._scheduler.developments) < num_jobs and time.monotonic() < give_up_at:
        time.sleep(0.05)
    feed(outlet, num_in_flight, time.perf_counter() + WARM_UP_SECONDS)
    seconds: dict[str, list[float]] = {"idle output": [], "busy output": []}
    num_stored = 0
    for phase in range(NUM_PHASES):
        name = list(seconds)[phase % 2]
        began = time.perf_counter()
        until = began + PHASE_SECONDS
        if phase % 2:
            num_stored += feed(outlet, num_in_flight, until)
        else:
            time.sleep(PHASE_SECONDS)
        seconds[name] += [took for at, took in engine.steps if began <= at < until]
    rows = len(engine._scheduler.developments)
    print(json.dumps({"seconds": seconds, "num_stored": num_stored, "rows": rows}), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    num_in_flight, num_jobs = int(sys.argv[1]), int(sys.argv[2])
    settings = load_settings()
    logs.configure(settings)
    engine = TimedEngine()
    engine.load(MODEL, source="seeded:7")
    engine.start()
    facts = WorkerFacts("bench", "here", os.getpid(), "cpu", 0, "bench", [MODEL], settings.worker_slots, "0")
    outlet = Outlet(settings)
    threading.Thread(target=measure, args=(engine, outlet, num_in_flight, num_jobs), daemon=True).start()
    serve(settings, database=open_database(settings), engine=engine, outlet=outlet, facts=facts)
    os._exit(0)


if __name__ == "__main__":
    main()
