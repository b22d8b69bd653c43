"""How many jobs a second a batch of a thousand brings into the queue: read, checked, stored, answered; one process."""

import time
from typing import Any

import pytest
from tables import report

from darkroom.config import Settings
from darkroom.web import create_app

ROUNDS = 7
JOBS = 1000
BODIES = {
    "list of jobs": {"jobs": [{"prompt": f"a red house, number {n}", "seed": n} for n in range(JOBS)]},
    "matrix of prompts and seeds": {"matrix": {"prompt": "a {red|blue} {house|boat}", "seed": list(range(JOBS // 4))}},
}


@pytest.mark.bench
@pytest.mark.timeout(300)
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_batch_submit(database_url: str, settings: Settings) -> None:
    app = create_app(settings, with_background=False)
    client = app.test_client()
    rows: dict[str, dict[str, Any]] = {}
    for name, body in BODIES.items():
        seconds = []
        for _ in range(ROUNDS + 1):
            began = time.perf_counter()
            response = client.post("/api/v1/jobs/batch", json=body)
            seconds.append(time.perf_counter() - began)
            assert response.status_code == 202
        best, median = min(seconds[1:]), sorted(seconds[1:])[ROUNDS // 2]
        rows[name] = {"jobs/s (median)": round(JOBS / median), "jobs/s (best)": round(JOBS / best)}
    app.extensions["darkroom"].database.dispose()
    report("batch", rows)
