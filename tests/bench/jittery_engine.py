"""Run as a program: an engine that notes how long its steps take, and steps only when it is told that it may.

Either a worker's engine process ("<worker> <connection>", as the worker says), or alone ("alone <address> <jobs>"),
stepping as many requests with nothing else in its process. Whoever listens at the address gives the turns.
"""

import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Client
from typing import Any

from darkroom_engine import Engine, Request
from darkroom_worker.engine_plan import EngineFacts, describe
from darkroom_worker.engine_process import main

MODEL = "darkroom-seeded"
# So often an engine whose turn it is not looks whether it is to end.
IDLE_SECONDS = 0.1


class TimedEngine(Engine):
    """Notes when each of its steps began, and its seconds; steps in its turns."""

    def __init__(self, address: str, name: str) -> None:
        super().__init__("cpu", num_threads=1)
        self._turn = threading.Event()
        self._turn.set()
        self.steps: list[tuple[float, float]] = []
        self.load(MODEL, source="seeded:7")
        self._orders = Client(address)
        self._orders.send(name)
        threading.Thread(target=self._obey, daemon=True).start()

    def step(self) -> bool:
        if not self._turn.wait(IDLE_SECONDS):
            return True
        began = time.perf_counter()
        has_stepped = super().step()
        self.steps.append((began, time.perf_counter() - began))
        return has_stepped

    def _obey(self) -> None:
        answers = {"rows": lambda: len(self._scheduler.developments), "steps": lambda: self.steps}
        orders = {"go": self._turn.set, "wait": self._turn.clear}
        while True:
            order = self._orders.recv()
            if order in orders:
                orders[order]()
            else:
                self._orders.send(answers[order]())


def open_engine(words: Mapping[str, Any]) -> tuple[TimedEngine, EngineFacts]:
    engine = TimedEngine(words["address"], "worker")
    engine.start()
    return engine, describe(engine)


def step_alone(address: str, num_jobs: int) -> None:
    """Step requests like the jobs'."""
    engine = TimedEngine(address, "bare process")
    fields: dict[str, Any] = {"width": 128, "height": 128, "num_inference_steps": 1000, "guidance_scale": 1.0}
    for seed in range(num_jobs):
        engine.submit(Request(model=MODEL, prompt="a red house", sampler="heun", seed=seed, **fields))
    while True:
        engine.step()


if __name__ == "__main__":
    if sys.argv[1] == "alone":
        step_alone(sys.argv[2], int(sys.argv[3]))
    main(open_engine)
