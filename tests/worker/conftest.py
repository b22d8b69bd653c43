"""A place to work in (short leases, real servers) and workers in it, each a process that is always ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from darkroom import events, fleet, jobs
from darkroom.config import Settings
from darkroom.db import Database
from darkroom.jobs import JobClass, JobRecord, JobState, NewJob
from darkroom.params import GenerationParams
from darkroom.stack.leash import held_by, leashed
from darkroom.storage import Storage

MODEL = "darkroom-seeded"
SHORT = {
    "lease_seconds": 2.0,
    "heartbeat_seconds": 0.5,
    "poll_seconds": 0.5,
    "sweep_seconds": 0.2,
    "relay_seconds": 0.2,
    "worker_grace_seconds": 3.0,
    "solo_wait_seconds": 1.0,
    "upload_limit_seconds": 20.0,
}
# Long enough for a machine that is busy with other things; nothing waits for it when all is well.
PATIENCE_SECONDS = 30.0


class Nursery:
    """Where workers are forked from, ready to start."""

    def __init__(self) -> None:
        environment = {**os.environ, **held_by(os.getpid()), "OPENBLAS_NUM_THREADS": "1"}
        command = leashed([sys.executable, str(Path(__file__).with_name("fake_worker.py"))])
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, order: Mapping[str, Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        with self._process:
            self._process.kill()  # its workers die with it


class WorkerProcess:
    """One worker."""

    def __init__(self, nursery: Nursery, pid: int, log: Path) -> None:
        self._nursery = nursery
        self.pid = pid
        self.id = f"worker-{pid}"
        self._log = log
        self._exit_code: int | None = None

    def send(self, signal_number: signal.Signals) -> None:
        os.kill(self.pid, signal_number)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        if self._exit_code is None:
            self._exit_code = self._nursery.ask({"pid": self.pid})
        return self._exit_code

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def end(self) -> None:
        if self.exit_code is None:
            self.send(signal.SIGKILL)
            until(lambda: self.exit_code is not None, "the worker is dead")


def until(condition: Callable[[], Any], what: str, *, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until a condition holds; fail, saying what did not come true, when it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


class Place:
    """One deployment: its settings, its truth, its pictures, and the workers started in it."""

    patience_seconds = PATIENCE_SECONDS
    until = staticmethod(until)

    def __init__(self, settings: Settings, database: Database, *, nursery: Nursery, folder: Path) -> None:
        self.settings = settings
        self.database = database
        self.storage = Storage(settings)
        self.storage.ensure_bucket()
        self._nursery = nursery
        self.folder = folder
        folder.mkdir()
        self.workers: list[WorkerProcess] = []

    def start_worker(self, **changes: Any) -> WorkerProcess:
        """Start a worker whose settings differ from the place's as said, and wait until it is known."""
        worker = self.launch_worker(**changes)
        self.until(lambda: self.knows(worker) or worker.exit_code is not None, "the worker is ready")
        assert worker.exit_code is None, worker.log
        return worker

    def launch_worker(
        self, *, stall_limits: Mapping[str, float] | None = None, is_apart: bool = False, **changes: Any
    ) -> WorkerProcess:
        """Start a worker, its engine perhaps apart in a process of its own, and do not wait."""
        log = self.folder / f"{len(self.workers)}.log"
        environment = environment_of(self.settings.model_copy(update=changes))
        order = {"environment": environment, "control": str(self.folder), "log": str(log), "is_apart": is_apart}
        pid = self._nursery.ask({**order, "stall_limits": dict(stall_limits or {})})
        self.workers.append(WorkerProcess(self._nursery, pid, log))
        return self.workers[-1]

    def knows(self, worker: WorkerProcess) -> bool:
        return worker.id in [record.id for record in fleet.list_workers(self.database)]

    def end(self) -> None:
        for worker in self.workers:
            worker.end()
            print(f"--- {worker.id}, exit code {worker.exit_code}\n{worker.log}")  # pytest shows it when a test fails

    def submit(self, prompt: str = "a red house", *, ttl_seconds: float = 3600.0, **fields: Any) -> UUID:
        """Queue a job and ring for nobody."""
        values = {"width": 64, "height": 64, "num_inference_steps": 5, "guidance_scale": 3.0} | fields
        params = GenerationParams(prompt=prompt, **{"sampler": "euler", "seed": 0} | values)
        return jobs.submit(self.database, NewJob(MODEL, params, JobClass.BULK, ttl_seconds), owner="ann").id

    def job(self, job_id: UUID) -> JobRecord:
        return jobs.get(self.database, job_id)

    def events(self, job_id: UUID) -> list[str]:
        return [event.type for event in events.read(self.database, job_id)]

    def until_state(self, state: JobState, *job_ids: UUID, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until all these jobs are in a state."""
        left = set(job_ids)

        def all_are() -> bool:
            left.difference_update([job_id for job_id in left if self.job(job_id).state is state])
            return not left

        self.until(all_are, f"{len(job_ids)} jobs {state}", seconds=seconds)

    def until_developing(self, *job_ids: UUID) -> None:
        """Wait until these jobs are in an engine, not only claimed."""
        prompts = {self.job(job_id).params.prompt for job_id in job_ids}
        self.until(lambda: prompts <= set(self.journal("began")), f"{prompts} began")

    def release(self, file: str) -> None:
        """Let the engines go on with what waits for this file."""
        (self.folder / file).touch()

    def journal(self, word: str, *, worker: WorkerProcess | None = None) -> list[str]:
        """The prompts of the requests of which the engines (or one of them) noted this word."""
        path = self.folder / "journal"
        lines = [line.split(" ", 2) for line in path.read_text().splitlines()] if path.exists() else []
        return [prompt for pid, what, prompt in lines if what == word and (not worker or int(pid) == worker.pid)]

    def process_of(self, prompt: str) -> int:
        """The process in which an engine began with a prompt last."""
        lines = [line.split(" ", 2) for line in (self.folder / "journal").read_text().splitlines()]
        return [int(pid) for pid, what, began in lines if (what, began) == ("began", prompt)][-1]


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment in which a process of its own reads these settings."""
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    values = settings.model_dump(exclude_none=True)
    words = {name: ",".join(value) if isinstance(value, tuple) else str(value) for name, value in values.items()}
    return {**kept, **aws, **{f"DARKROOM_{name.upper()}": value for name, value in words.items()}}


@pytest.fixture(name="until")
def _until() -> Callable[..., None]:
    """`until`, for tests without a place."""
    return until


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def place(settings: Settings, database: Database, nursery: Nursery, tmp_path: Path) -> Iterator[Place]:
    """A deployment with nobody in it yet."""
    place = Place(settings.model_copy(update=SHORT), database, nursery=nursery, folder=tmp_path / "place")
    yield place
    place.end()
