"""Run as a program: a whole worker whose engine notes how long its steps take, with and without pictures going out.

The engine steps the jobs it claimed; in every second phase a feeder keeps so many pictures between encode and upload as
are on the command line. A bare process steps the same requests in phases of its own, beside the same worker and the
same output: its steps share the machine with them and nothing else. The last line of the output is what came of
it, as JSON.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from multiprocessing.connection import Listener
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import jittery_engine
import numpy as np
from jittery_engine import MODEL

from darkroom import logs
from darkroom.config import load_settings
from darkroom.fleet import WorkerFacts
from darkroom.jobs import Claim, JobClass
from darkroom.params import GenerationParams
from darkroom.stack.leash import held_by, leashed
from darkroom_engine import Output
from darkroom_worker.app import open_database, serve
from darkroom_worker.engine_host import EngineHost
from darkroom_worker.output import Outlet

SIDE = 1024
NUM_ROUNDS = 4
PHASE_SECONDS = 2.0
# After a change of turns, until what was under way has ended.
SETTLE_SECONDS = 0.2
# The processes that pictures leave through start with the first of them.
WARM_UP_SECONDS = 3.0
PATIENCE_SECONDS = 60.0


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


class Engines:
    """The worker's engine and the bare one, each in its process, as far as they take turns."""

    def __init__(self, listener: Listener) -> None:
        accepted = [listener.accept() for _ in range(2)]
        self._connections = {connection.recv(): connection for connection in accepted}

    def give_turn(self, name: str) -> None:
        for other, connection in self._connections.items():
            connection.send("go" if other == name else "wait")

    def ask(self, name: str, what: str) -> Any:
        self._connections[name].send(what)
        return self._connections[name].recv()


def measure(engines: Engines, outlet: Outlet, num_in_flight: int, num_jobs: int) -> None:
    """Measure by turns, print, and end the process."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while engines.ask("worker", "rows") < num_jobs and time.monotonic() < give_up_at:
        time.sleep(0.05)
    feed(outlet, num_in_flight, time.perf_counter() + WARM_UP_SECONDS)
    names = ("worker", "bare process")
    phases: list[tuple[str, str, float]] = []
    num_stored = 0
    for _, who, output in itertools.product(range(NUM_ROUNDS), names, ("idle", "busy")):
        engines.give_turn(who)
        time.sleep(SETTLE_SECONDS)
        began = time.perf_counter()
        phases.append((who, output, began))
        if output == "busy":
            num_stored += feed(outlet, num_in_flight, began + PHASE_SECONDS)
        else:
            time.sleep(PHASE_SECONDS)
    rows = engines.ask("worker", "rows")
    steps = {name: engines.ask(name, "steps") for name in names}
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
    with tempfile.TemporaryDirectory() as folder, Listener(f"{folder}/turns") as listener:
        address = str(listener.address)
        engine = EngineHost({"address": address}, command=[sys.executable, jittery_engine.__file__])
        engine.start()
        alone = [sys.executable, jittery_engine.__file__, "alone", address, str(num_jobs)]
        bare = subprocess.Popen(leashed(alone), env={**os.environ, **held_by(os.getpid())})
        facts = WorkerFacts("bench", "here", os.getpid(), "cpu", 0, "bench", [MODEL], settings.worker_slots, "0")
        outlet = Outlet(settings)
        engines = Engines(listener)
        engine.wait_until_open()
        threading.Thread(target=measure, args=(engines, outlet, num_in_flight, num_jobs), daemon=True).start()
        serve(settings, database=open_database(settings), engine=engine, outlet=outlet, facts=facts)
        bare.kill()
        bare.wait()
        engine.stop()
    os._exit(0)


if __name__ == "__main__":
    main()
