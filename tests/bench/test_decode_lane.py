"""Where pictures are decoded on a CPU: in a thread beside the steps, as the engine does, or between two of them."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import pytest
from tables import percentile, report
from torch import Tensor

from darkroom_engine import Engine, Handle, Request
from darkroom_engine.families.base import Family
from darkroom_engine.lanes import Lane, Pixels, Running, ThreadLane

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

NUM_ROUNDS = 5
NUM_REQUESTS = 24
IN_FLIGHT = 4
SIZE = 256


@dataclass(frozen=True)
class Done:
    """A decode that is over before anybody asks."""

    found: Pixels
    is_done: bool = True

    def pixels(self) -> Pixels:
        return self.found


class InlineLane:
    """Decodes between two steps: waits for what a thread does."""

    def __init__(self) -> None:
        self._lane = ThreadLane()

    def start(self, model: Family, latents: Tensor, size: tuple[int, int]) -> Running:
        running: Any = self._lane.start(model, latents, size)
        return Done(running.future.result())

    def close(self) -> None:
        self._lane.close()


def request(seed: int, num_steps: int) -> Request:
    fields: dict[str, Any] = {"model": "tiny", "prompt": "a red house", "width": SIZE, "height": SIZE}
    return Request(**fields, num_inference_steps=num_steps, guidance_scale=1.0, sampler="euler", seed=seed)


def develop_all(lane: Lane) -> dict[str, list[float]]:
    """Develop requests of 4 to 8 steps, a few at a time, beside a long one; give the seconds of all and of each."""
    engine = Engine("cpu", num_threads=1)
    engine.load("tiny", source="seeded:7")
    engine._decoder._lane = lane
    engine.submit(request(NUM_REQUESTS, 900))
    waiting = [request(seed, 4 + seed % 5) for seed in range(NUM_REQUESTS)]
    live: list[Handle] = []
    steps: list[float] = []
    began = time.perf_counter()
    while waiting or live:
        while waiting and len(live) < IN_FLIGHT:
            live.append(engine.submit(waiting.pop()))
        at = time.perf_counter()
        engine.step()
        steps.append(time.perf_counter() - at)
        live = [handle for handle in live if not handle.done]
    total = time.perf_counter() - began
    engine.stop()
    return {"total": [total], "steps": steps}


def test_pictures_decoded_in_a_thread_and_between_steps() -> None:
    found: dict[str, dict[str, list[float]]] = {name: {"total": [], "steps": []} for name in ("thread", "inline")}
    for _ in range(NUM_ROUNDS):
        for name, lane in (("thread", ThreadLane()), ("inline", InlineLane())):
            for key, values in develop_all(lane).items():
                found[name][key] += values
    rows: dict[str, dict[str, object]] = {}
    for name, seconds in found.items():
        rows[name] = {
            "total_s": round(statistics.median(seconds["total"]), 2),
            "step_p50_ms": round(statistics.median(seconds["steps"]) * 1000, 1),
            "step_p95_ms": round(percentile(seconds["steps"], 0.95) * 1000, 1),
            "step_max_ms": round(max(seconds["steps"]) * 1000, 1),
        }
    report("decode_lane", rows)
