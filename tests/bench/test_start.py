"""From a submit over HTTP to the first denoising step, on an idle embedded stack with the real engine.

The first step begins at the claim (the database's clock, which is this machine's) plus the job's own wait and encode.
"""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tables import milliseconds, report

from darkroom.client import Darkroom

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

NUM_JOBS = 100
NUM_WARM_UP_JOBS = 10
START_SECONDS = 120
JOB_SECONDS = 60


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Where an embedded stack of its own serves."""
    command = [sys.executable, "-m", "darkroom.cli", "up", "--port", "8765"]
    environment = {"DARKROOM_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "DARKROOM_WORKER_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout)), None)
        assert found, "the stack did not start"
        yield found[0]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=START_SECONDS)


def test_submit_to_first_denoising_step(url: str) -> None:
    seconds: dict[str, list[float]] = {"202 answered": [], "claimed": [], "first denoising step": []}
    with Darkroom(url) as client:
        for n in range(NUM_WARM_UP_JOBS + NUM_JOBS):
            began = time.time()
            job = client.submit("a red house", width=64, height=64, num_inference_steps=2, seed=n)
            answered = time.time() - began
            done = client.wait(job.id, seconds=JOB_SECONDS)
            assert done.state == "succeeded"
            claimed = done.started_at.timestamp() - began
            first_step = claimed + done.timings["wait"] + done.timings["encode"]
            if n >= NUM_WARM_UP_JOBS:
                for values, value in zip(seconds.values(), (answered, claimed, first_step), strict=True):
                    values.append(value)
    report("start", {name: milliseconds(values) for name, values in seconds.items()})
