"""The real embedded stack for browser tests: `darkroom up` in a process, its worker, and people with keys of their own.

Knows processes, files and the client library; knows no browser.
"""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import httpx
import psutil
from claiming import claim_one
from freezing import freeze

from darkroom import fleet, intake, jobs, keys
from darkroom.client import Darkroom, Job
from darkroom.db import Database
from darkroom.jobs import Lines
from darkroom.stack.leash import held_by, leashed
from darkroom.stack.servers import answers_http, free_port, wait_until

READY = "Ctrl-C stops everything"
# Two cores may be busy with another stack and its browser; nothing waits so long when all is well.
START_SECONDS = 180
PATIENCE_SECONDS = 60

QUICK_MODEL = "darkroom-seeded"
SLOW_MODEL = "slow-seeded"
# Beside the models that ship, one whose jobs take long enough to be watched, reloaded and called off.
CATALOG = f"""
default = "{QUICK_MODEL}"

[models.{SLOW_MODEL}]
title = "Slow seeded weights"
description = "As small and as abstract as the other, with more to do."
family = "sd"
source = "seeded:9"
license = "Apache-2.0"
example_prompts = ["a lighthouse in fog", "an orchard in spring, seen from a balloon"]

[models.{SLOW_MODEL}.defaults]
width = 384
height = 384
num_inference_steps = 100
guidance_scale = 3.0
sampler = "euler"

[models.{SLOW_MODEL}.limits]
min_size = 64
max_size = 512
size_multiple = 8
max_pixels = 262144
max_steps = 200
"""


class Person:
    """Somebody with a key and a gallery of their own. `client` is the client library, with that key."""

    def __init__(self, url: str, *, owner: str, key: str) -> None:
        self.owner = owner
        self.key = key
        self.client = Darkroom(url, api_key=key)

    def submit(self, prompt: str = "a red house by the sea", **fields: Any) -> Job:
        """Queue a job that is quick, unless `model` or a field says otherwise."""
        return self.client.submit(prompt, **{"priority": "interactive", "walk": True} | fields)

    def submit_slow(self, prompt: str = "a lighthouse in fog", **fields: Any) -> Job:
        """Queue a job that develops for many seconds. What still runs when the test ends is called off."""
        return self.submit(prompt, **{"model": SLOW_MODEL} | fields)

    def develop(self, prompt: str = "a red house by the sea", **fields: Any) -> Job:
        """Queue a quick job and wait for its pictures."""
        job = self.client.wait(self.submit(prompt, **fields).id, seconds=PATIENCE_SECONDS)
        assert job.state == "succeeded", job
        return job

    def leave(self) -> None:
        """Call off whatever waits or runs."""
        for state in ("queued", "running"):
            for job in self.client.jobs(limit=100, state=state):
                self.client.cancel(job.id)
        self.client.close()


@dataclass
class WorkerProcess:
    """The stack's worker. Frozen it claims nothing and develops nothing: jobs stay where they are until it goes on."""

    home: Path
    is_frozen: bool = False

    def freeze(self) -> None:
        """Stop it between two of its writes: a frozen writer would lock the database for everybody."""
        process = part_of(self.home, "darkroom_worker")

        def is_still() -> bool:
            self.is_frozen = True
            freeze(process.pid)
            if not self._holds_the_database():
                return True
            self.go_on()
            return False

        wait_until(is_still, seconds=PATIENCE_SECONDS, refusal=lambda: "the worker writes without an end")

    def go_on(self) -> None:
        """Let it work again. Fine also where it was not frozen."""
        if self.is_frozen:
            part_of(self.home, "darkroom_worker").resume()
            self.is_frozen = False

    def _holds_the_database(self) -> bool:
        with closing(sqlite3.connect(self.home / "darkroom.db", timeout=1, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            connection.execute("ROLLBACK")
            return False


class EmbeddedStack:
    """`darkroom up` with a home of its own, until `end()`."""

    def __init__(self, home: Path, *options: str, environment: Mapping[str, str]) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / "up.log"
        self.worker = WorkerProcess(home)
        self._process = self._start(options, environment)
        wait_until(self._is_ready, seconds=START_SECONDS, refusal=lambda: f"not ready:\n{self.log.read_text()}")
        self.database = Database(f"sqlite:///{home}/darkroom.db")

    @classmethod
    def for_tests(cls, home: Path) -> Self:
        """Start one with a quick and a slow model, and a door that asks for keys."""
        home.mkdir()
        catalog = home / "catalog.toml"
        catalog.write_text(CATALOG)
        stack = cls(home, environment={"DARKROOM_CATALOG": str(catalog), "DARKROOM_WORKER_THREADS": "1"})
        stack.person(owner="first")
        wait_until(stack._is_locked, seconds=PATIENCE_SECONDS, refusal=lambda: "the door stays open")
        return stack

    def _start(self, options: tuple[str, ...], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        said = {
            "DARKROOM_HOME": str(self.home),
            # A frozen worker keeps its jobs for as long as any test may take.
            "DARKROOM_LEASE_SECONDS": "600",
            "DARKROOM_HEARTBEAT_SECONDS": "1",
            "DARKROOM_POLL_SECONDS": "0.5",
        }
        command = leashed([sys.executable, "-m", "darkroom.cli", "up", "--port", str(self.port), *options])
        with self.log.open("wb") as output:
            return subprocess.Popen(
                command,
                env={**os.environ, **held_by(os.getpid()), **said, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, f"it has ended:\n{self.log.read_text()}"
        return READY in self.log.read_text()

    def _is_locked(self) -> bool:
        return httpx.get(f"{self.url}/api/v1/me", trust_env=False).status_code == 401

    def person(self, *, owner: str | None = None, scopes: tuple[str, ...] = keys.SCOPES) -> Person:
        """Let in somebody new, an operator unless the scopes say otherwise."""
        owner = owner or f"somebody-{uuid4().hex[:12]}"
        name = f"{owner}-{uuid4().hex[:6]}"
        _, key = keys.create(self.database, name=name, owner=owner, scopes=scopes, quotas=keys.Quotas())
        return Person(self.url, owner=owner, key=key)

    def kill_web(self) -> None:
        """End the process that serves the pages as a crash would. The stack starts another."""
        web = part_of(self.home, "web")
        family = [web, *web.children(recursive=True)]
        web.kill()
        assert not psutil.wait_procs(family, timeout=PATIENCE_SECONDS)[1]

    def until_web_answers(self) -> None:
        """Wait until pages are served again."""
        wait_until(
            lambda: answers_http(self.port, "/healthz"), seconds=PATIENCE_SECONDS, refusal=lambda: "no web answers"
        )

    def fail_front(self) -> None:
        """Do to the front job of the slow model what a worker does that has run out of memory."""
        held = {"worker_id": "by-hand", "num_held": 0, "lease_seconds": 600.0, "lines": Lines()}
        claim = claim_one(self.database, models=[SLOW_MODEL], **held)
        assert claim
        reason = {"code": "out_of_memory", "message": "The device ran out of memory."}
        jobs.fail(self.database, claim.job_id, attempt=claim.attempt, **reason)

    def restore(self) -> None:
        """Undo what a test has done to everybody: a frozen or draining worker, a paused intake."""
        self.worker.go_on()
        if intake.read(self.database):
            intake.resume(self.database, resumed_by="the tests")
        for worker in fleet.list_workers(self.database):
            if worker.is_drain_wanted:
                fleet.undrain(self.database, worker.id)

    def end(self) -> None:
        """End it at once; its parts die with it."""
        self.database.dispose()
        family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(family, timeout=PATIENCE_SECONDS)


def part_of(home: Path, *words: str) -> psutil.Process:
    """The process that lives in this home and whose command line ends so; of several, the first."""
    found = [one for one in psutil.process_iter() if _is_part(one, home, words)]
    assert found, f"{words} does not run"
    return min(found, key=lambda process: process.create_time())


def _is_part(process: psutil.Process, home: Path, words: tuple[str, ...]) -> bool:
    try:
        return tuple(process.cmdline()[-len(words) :]) == words and process.environ().get("DARKROOM_HOME") == str(home)
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return False


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until a condition holds; fail, saying what did not come true, when it does not."""
    wait_until(lambda: bool(condition()), seconds=PATIENCE_SECONDS, refusal=lambda: f"never came true: {what}")
