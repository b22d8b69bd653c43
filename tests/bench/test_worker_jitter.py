"""How steady the engine's steps stay in a whole worker while eight pictures are encoded and uploaded.

The worker is the real one: Celery's consumer, poll, heartbeat, sweeper, uploads into a real S3 server. Phases with and
without output take turns in one run, so what else the machine does weighs on both; and so do phases in which a bare
process steps the same requests beside the worker: what is unsteady there is the machine's, not the interpreter's.
"""

import json
import statistics
from typing import Any

import pytest
from deployment import Deployment
from tables import milliseconds, percentile, report

from darkroom import jobs
from darkroom.config import Settings
from darkroom.db import Database
from darkroom.jobs import JobClass, NewJob
from darkroom.params import GenerationParams
from darkroom.storage import Storage

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

MODEL = "darkroom-seeded"
NUM_IN_FLIGHT = 8
NUM_JOBS = 4


def test_step_times_with_and_without_output(s3: Any, settings: Settings, deployment: Deployment) -> None:
    Storage(settings).ensure_bucket()
    database = Database(deployment.environment["DARKROOM_DATABASE_URL"])
    fields: dict[str, Any] = {"width": 128, "height": 128, "num_inference_steps": 1000, "guidance_scale": 1.0}
    for seed in range(NUM_JOBS):  # heun: 1999 steps, more than the measurement lasts
        params = GenerationParams(prompt="a red house", sampler="heun", seed=seed, **fields)
        jobs.submit(database, NewJob(MODEL, params, JobClass.BULK, ttl_seconds=600.0), owner="ann")
    stored = {"s3_endpoint_url": settings.s3_endpoint_url, "s3_bucket": settings.s3_bucket}
    worker = deployment.run("jittery_worker.py", str(NUM_IN_FLIGHT), str(NUM_JOBS), worker_slots=NUM_JOBS, **stored)
    assert worker.stdout
    found = json.loads(next(line for line in worker.stdout if line.startswith("{")))
    database.dispose()
    rows: dict[str, dict[str, object]] = {}
    for name, seconds in found["seconds"].items():
        ratio = percentile(seconds, 0.99) / statistics.median(seconds)
        rows[name] = {**milliseconds(seconds), "p99/p50": round(ratio, 2)}
    rows["worker, busy output"] |= {"stored": found["num_stored"], "rows": found["rows"]}
    report("worker_jitter", rows)
    assert found["rows"] == NUM_JOBS
