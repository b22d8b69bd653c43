"""Jobs that develop nothing, the whole way: submitted over HTTP, claimed, ended, told; and the way of a cancel.

Beside it the reference: Flask, Celery, AsyncResult, on the same server and the same Redis, in turns. Darkroom's worker
is the real one; its engine counts one step, and its pictures go nowhere.
"""

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from deployment import Deployment, Served, medians_of
from load import offer, request
from tables import milliseconds, report

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

NUM_ROUNDS = int(os.environ.get("TEST_ROUNDS", "5"))
NUM_JOBS = 1000
NUM_CONNECTIONS = 8
SLOTS = 16
# A round that takes longer has lost something.
PATIENCE_SECONDS = 60.0
STEP_SECONDS = 0.05
NUM_CANCELS = 60
BODY = json.dumps({"prompt": "a red house", "seed": 1, "num_inference_steps": 1}).encode()


def submit_all(served: Served, path: str) -> None:
    payload = request("POST", path, body=BODY)
    load = offer(
        served.port, lambda _: payload, seconds=PATIENCE_SECONDS, num_connections=NUM_CONNECTIONS, most=NUM_JOBS
    )
    assert load.statuses == {202: NUM_JOBS}, load.statuses


def read_events(served: Served, stream: socket.socket) -> int:
    """How many jobs have ended by what the stream of all of them tells, as soon as it has told of all."""
    ended, rest = 0, b""
    while ended < NUM_JOBS:
        piece = stream.recv(1 << 20)
        assert piece, f"the stream ended after {ended} jobs"
        rest += piece
        ended += rest.count(b"event: done")
        rest = rest[-12:] if b"event: done" not in rest[-12:] else b""
    return ended


def darkroom_round(served: Served) -> float:
    """Submit, and learn of every end from one event stream; jobs a second."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_SECONDS) as stream:
        stream.sendall(request("GET", "/api/v1/events"))
        assert b" 200 " in stream.recv(4096)[:20]
        with ThreadPoolExecutor(1) as reader:
            told = reader.submit(read_events, served, stream)
            began = time.perf_counter()
            submit_all(served, "/api/v1/jobs")
            told.result(PATIENCE_SECONDS)
            return NUM_JOBS / (time.perf_counter() - began)


def reference_round(served: Served) -> float:
    """Submit, and learn of every end by AsyncResult.get, as many at once as the other has connections."""

    def wait(job_ids: list[str]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_SECONDS)
        for job_id in job_ids:
            connection.request("GET", f"/jobs/{job_id}/wait")
            assert json.loads(connection.getresponse().read())["result"]
        connection.close()

    def submit_and_wait(count: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_SECONDS)
        job_ids = []
        for _ in range(count):
            connection.request("POST", "/jobs", BODY, {"Content-Type": "application/json"})
            job_ids.append(json.loads(connection.getresponse().read())["id"])
        connection.close()
        wait(job_ids)

    began = time.perf_counter()
    with ThreadPoolExecutor(NUM_CONNECTIONS) as clients:
        list(clients.map(submit_and_wait, [NUM_JOBS // NUM_CONNECTIONS] * NUM_CONNECTIONS))
    return NUM_JOBS / (time.perf_counter() - began)


def test_jobs_that_develop_nothing(deployment: Deployment) -> None:
    darkroom, reference = deployment.serve("darkroom"), deployment.serve("reference")
    deployment.run("paced_worker.py", "0.001", worker_slots=SLOTS)
    deployment.run("reference_app.py", str(SLOTS))
    cases = {
        "darkroom": lambda: darkroom_round(darkroom),
        "Flask, Celery, AsyncResult": lambda: reference_round(reference),
    }
    for round_of in cases.values():
        round_of()  # warms up, and waits for the workers
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(NUM_ROUNDS):
        for name, round_of in cases.items():
            rates[name].append(round_of())
    middle = medians_of(rates)
    rows = {
        name: {
            "jobs_per_s": round(middle[name]),
            "best_per_s": round(max(rates[name])),
            "of_reference": round(middle[name] / middle["Flask, Celery, AsyncResult"], 2),
        }
        for name in cases
    }
    report("whole_way", rows)


def freed_at(worker: subprocess.Popen[str]) -> Iterator[tuple[int, float]]:
    """The seed of each canceled request, and when it left the engine."""
    assert worker.stdout
    for line in worker.stdout:
        word, seed, moment = line.split()
        assert word == "freed"
        yield int(seed), float(moment)


def test_cancel_to_a_free_row(deployment: Deployment) -> None:
    darkroom = deployment.serve("darkroom")
    worker = deployment.run("paced_worker.py", str(STEP_SECONDS), worker_slots=1)
    freed = freed_at(worker)
    client = http.client.HTTPConnection("127.0.0.1", darkroom.port, timeout=PATIENCE_SECONDS)

    def ask(method: str, path: str, body: bytes | None = None) -> dict[str, object]:
        client.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer: dict[str, object] = json.loads(client.getresponse().read())
        return answer

    seconds = []
    for seed in range(NUM_CANCELS):
        body = json.dumps({"prompt": "a red house", "seed": seed, "num_inference_steps": 50}).encode()
        path = f"/api/v1/jobs/{ask('POST', '/api/v1/jobs', body)['id']}"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (ask("GET", path)["progress"] or {}).get("step"):  # type: ignore[attr-defined]
            assert time.monotonic() < deadline, "the worker does not develop"
            time.sleep(0.01)
        began = time.time()
        ask("POST", f"{path}/cancel")
        found, moment = next(freed)
        assert found == seed
        seconds.append(moment - began)
    client.close()
    beyond = [max(value - STEP_SECONDS, 0.0) for value in seconds]
    report(
        "cancel",
        {"cancel to a free row": milliseconds(seconds), f"beyond one step of {STEP_SECONDS} s": milliseconds(beyond)},
    )
