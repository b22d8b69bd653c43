"""How often a job ends within the interval that it was told: when it was submitted, and halfway through.

Jobs of many sizes come at random to the real worker, whose engine counts steps at a fixed pace; most of the time more
of them wait than run.
"""

import http.client
import json
import random
import time
from datetime import datetime
from typing import Any

import pytest
from deployment import Deployment
from tables import report

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

SLOTS = 4
STEP_SECONDS = 0.02
NUM_FIRST = 30
NUM_JOBS = 150
# On the average as many jobs come as are done.
MEAN_PAUSE_SECONDS = 0.12
FEWEST_STEPS, MOST_STEPS = 5, 40
PATIENCE_SECONDS = 120.0


class Client:
    """Submits jobs, and looks at them."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        self._chance = random.Random(1)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json"} if body else {}
        self._connection.request(method, path, json.dumps(body) if body else None, headers)
        return json.loads(self._connection.getresponse().read())

    def close(self) -> None:
        self._connection.close()

    def submit(self) -> Any:
        num_steps = self._chance.randint(FEWEST_STEPS, MOST_STEPS)
        time.sleep(self._chance.expovariate(1 / MEAN_PAUSE_SECONDS))
        return self.ask("POST", "/api/v1/jobs", {"prompt": "a red house", "num_inference_steps": num_steps})

    def ended(self, job: Any) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (found := self.ask("GET", job["urls"]["self"]))["finished_at"] is None:
            assert time.monotonic() < deadline, "the worker does not develop"
            time.sleep(0.05)
        return found


def row_of(told: list[tuple[float, Any, Any]]) -> dict[str, object]:
    """Of (asked at, ETA, ended job): how many ended in time, and how wide the intervals were."""
    seconds = [
        (datetime.fromisoformat(job["finished_at"]).timestamp() - asked_at, eta["min_seconds"], eta["max_seconds"])
        for asked_at, eta, job in told
    ]
    widths = sorted(high - low for _, low, high in seconds)
    return {
        "jobs": len(seconds),
        "within_%": round(100 * sum(low <= took <= high for took, low, high in seconds) / len(seconds)),
        "sooner_%": round(100 * sum(took < low for took, low, _ in seconds) / len(seconds)),
        "later_%": round(100 * sum(took > high for took, _, high in seconds) / len(seconds)),
        "median_took_s": round(sorted(took for took, *_ in seconds)[len(seconds) // 2], 1),
        "median_width_s": round(widths[len(widths) // 2], 1),
    }


def test_eta(deployment: Deployment) -> None:
    served = deployment.serve("darkroom")
    deployment.run("paced_worker.py", str(STEP_SECONDS), worker_slots=SLOTS)
    client = Client(served.port)
    for job in [client.submit() for _ in range(NUM_FIRST)]:
        client.ended(job)
    submitted = [(client.submit(), time.time()) for _ in range(NUM_JOBS)]
    at_once = [(asked_at, job["eta"], client.ended(job)) for job, asked_at in submitted if job["eta"]]
    running = []
    for _ in range(NUM_FIRST):
        job, asked_at = client.submit(), time.time()
        while not (job["progress"] or {}).get("step") and job["finished_at"] is None:
            time.sleep(0.01)
            job, asked_at = client.ask("GET", job["urls"]["self"]), time.time()
        if job["eta"]:
            running.append((asked_at, job["eta"], client.ended(job)))
    client.close()
    report("eta", {"when submitted": row_of(at_once), "while it runs": row_of(running)})
