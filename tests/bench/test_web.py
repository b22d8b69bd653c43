"""Submit, poll, batch, streams and waiting calls over HTTP, beside the least that a Flask application can do.

One server each, on the same PostgreSQL and the same machine, measured in turns: rounds of A, B, A, B. The ratio is that
of the medians. At a fixed rate a request's time counts from when it was due.
"""

import json
import os
import resource
import socket
from typing import Any

import psutil
import pytest
from deployment import Deployment, Served, medians_of
from load import Load, offer, request
from tables import report

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

NUM_ROUNDS = int(os.environ.get("TEST_ROUNDS", "7"))
ROUND_SECONDS = 3.0
WARM_UP_SECONDS = 2.0
NUM_CONNECTIONS = 8
FIXED_RATE = 400
FIXED_SECONDS = 10.0
BATCH_SIZE = 1000
NUM_BATCHES = 20
NUM_STREAMS = 500
AT_ONCE = {"Prefer": "wait=0"}
BODY = json.dumps({"prompt": "a red house by the sea", "seed": 1}).encode()


def submit_to(path: str) -> Any:
    payload = request("POST", path, body=BODY)
    return lambda _: payload


def in_turns(cases: dict[str, tuple[Served, Any]]) -> dict[str, list[Load]]:
    """Offer each case as much as it takes, in turns."""
    for served, request_of in cases.values():
        offer(served.port, request_of, seconds=WARM_UP_SECONDS, num_connections=NUM_CONNECTIONS)
    loads: dict[str, list[Load]] = {name: [] for name in cases}
    for _ in range(NUM_ROUNDS):
        for name, (served, request_of) in cases.items():
            loads[name].append(offer(served.port, request_of, seconds=ROUND_SECONDS, num_connections=NUM_CONNECTIONS))
    return loads


def rows_beside(loads: dict[str, list[Load]], bare: str) -> dict[str, dict[str, object]]:
    """One line per case: the middle round's rate, the best, all rounds' times, and the ratio to the bare one."""
    rates = {name: [load.rate for load in each] for name, each in loads.items()}
    middle = medians_of(rates)
    rows: dict[str, dict[str, object]] = {}
    for name, each in loads.items():
        together = Load([seconds for load in each for seconds in load.latencies], seconds=1.0)
        for load in each:
            together.statuses.update(load.statuses)
        more = {"best_per_s": round(max(rates[name])), "of_bare": round(middle[name] / middle[bare], 2)}
        rows[name] = together.row(**more) | {"per_s": round(middle[name])}
    return rows


def test_submit(deployment: Deployment) -> None:
    darkroom, bare = deployment.serve("darkroom"), deployment.serve("bare")
    cases = {"bare": (bare, submit_to("/jobs")), "darkroom": (darkroom, submit_to("/api/v1/jobs"))}
    rows = rows_beside(in_turns(cases), "bare")
    for name, (served, request_of) in cases.items():
        load = offer(
            served.port, request_of, seconds=FIXED_SECONDS, num_connections=4 * NUM_CONNECTIONS, rate=FIXED_RATE
        )
        rows[f"{name}, {FIXED_RATE}/s offered"] = load.row()
    report("submit", rows)


def first_jobs(served: Served, count: int) -> list[Any]:
    """Submit jobs, and return their documents."""
    return [ask(served, request("POST", "/api/v1/jobs", body=BODY, is_kept=False))[1] for _ in range(count)]


def ask(served: Served, payload: bytes) -> tuple[bytes, Any]:
    """One request: the head of its answer, and its document."""
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(payload)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, json.loads(body) if body else None


def etag_of(served: Served, path: str) -> str:
    head, _ = ask(served, request("GET", path, is_kept=False))
    return next(line.split(b": ", 1)[1].decode() for line in head.split(b"\r\n") if line.lower().startswith(b"etag"))


def test_poll(deployment: Deployment) -> None:
    darkroom, bare = deployment.serve("darkroom"), deployment.serve("bare")
    queued, ended = first_jobs(darkroom, 2)
    ask(darkroom, request("POST", ended["urls"]["cancel"], is_kept=False))
    path, ended_path = queued["urls"]["self"], ended["urls"]["self"]
    conditional = {
        name: request("GET", each, headers={"If-None-Match": etag_of(darkroom, each)})
        for name, each in {"queued": path, "ended": ended_path}.items()
    }
    cases = {
        "bare": (bare, lambda _: request("GET", f"/jobs/{queued['id']}")),
        "queued, not changed": (darkroom, lambda _: conditional["queued"]),
        "ended, not changed": (darkroom, lambda _: conditional["ended"]),
        "queued, whole": (darkroom, lambda _: request("GET", path)),
        "ended, whole": (darkroom, lambda _: request("GET", ended_path)),
    }
    report("poll", rows_beside(in_turns(cases), "bare"))


def test_batch_submit(deployment: Deployment) -> None:
    darkroom = deployment.serve("darkroom")
    body = json.dumps({"jobs": [{"prompt": f"house {n}", "seed": n} for n in range(BATCH_SIZE)]}).encode()
    payload = request("POST", "/api/v1/jobs/batch", body=body)
    seconds = []
    for _ in range(NUM_BATCHES):
        load = offer(darkroom.port, lambda _: payload, seconds=WARM_UP_SECONDS, num_connections=1, most=1)
        assert set(load.statuses) == {202}, load.statuses
        seconds += load.latencies
    row = Load(seconds, seconds=sum(seconds)).row()
    report(
        "batch_submit",
        {f"batches of {BATCH_SIZE}": row | {"jobs_per_s": round(BATCH_SIZE * len(seconds) / sum(seconds))}},
    )


def memory_mebibytes(served: Served) -> int:
    processes = [psutil.Process(served.pid), *psutil.Process(served.pid).children(recursive=True)]
    return round(sum(process.memory_info().rss for process in processes) / 2**20)


def test_idle_streams_beside_plain_gets(deployment: Deployment) -> None:
    _let_open(4 * NUM_STREAMS)
    darkroom = deployment.serve("darkroom")
    jobs = first_jobs(darkroom, 10)
    plain = request("GET", jobs[0]["urls"]["self"])
    rows: dict[str, dict[str, object]] = {}
    streams: list[socket.socket] = []
    for count in (0, NUM_STREAMS):
        while len(streams) < count:
            path = "/api/v1/events" if len(streams) % 2 else f"{jobs[len(streams) % 10]['urls']['self']}/events"
            streams.append(socket.create_connection(("127.0.0.1", darkroom.port)))
            streams[-1].sendall(request("GET", path))
        for stream in streams:
            assert b" 200 " in stream.recv(4096)[:20]
        load = offer(darkroom.port, lambda _: plain, seconds=FIXED_SECONDS, num_connections=NUM_CONNECTIONS, rate=50)
        rows[f"{count} streams"] = load.row(rss_mib=memory_mebibytes(darkroom))
    for stream in streams:
        stream.close()
    report("streams", rows)


def test_waiting_calls_beside_plain_gets(deployment: Deployment) -> None:
    _let_open(4 * NUM_STREAMS)
    darkroom = deployment.serve("darkroom", web_waiters=NUM_STREAMS)
    plain = request("GET", first_jobs(darkroom, 1)[0]["urls"]["self"])
    waiting = request("POST", "/api/v1/jobs", body=BODY, headers={"Prefer": "wait=60"})
    rows: dict[str, dict[str, object]] = {}
    calls: list[socket.socket] = []
    for count in (0, NUM_STREAMS):
        while len(calls) < count:
            calls.append(socket.create_connection(("127.0.0.1", darkroom.port)))
            calls[-1].sendall(waiting)
        while (
            count
            and ask(darkroom, request("POST", "/api/v1/jobs", body=BODY, headers=AT_ONCE, is_kept=False))[0][9:12]
            != b"503"
        ):
            pass  # until all of them wait
        load = offer(darkroom.port, lambda _: plain, seconds=FIXED_SECONDS, num_connections=NUM_CONNECTIONS, rate=50)
        rows[f"{count} waiting calls"] = load.row(rss_mib=memory_mebibytes(darkroom))
    load = offer(darkroom.port, lambda _: waiting, seconds=WARM_UP_SECONDS, num_connections=1)
    rows["one more waiting call"] = load.row()
    for call in calls:
        call.close()
    report("waiting", rows)


def _let_open(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count) if hard < 0 else min(max(soft, count), hard), hard))
