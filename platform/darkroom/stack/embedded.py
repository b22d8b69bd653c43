"""The embedded stack: the same parts as in production, started together on one machine for `darkroom up`.

Knows in which order they come and go, and when each is ready. What each part does is its own affair.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import func, select

from darkroom import keys
from darkroom.addresses import is_loopback
from darkroom.catalog import Catalog
from darkroom.config import Settings
from darkroom.db import Database, migrate, now
from darkroom.errors import StackError
from darkroom.models import Worker, WorkerState
from darkroom.stack import model_folder
from darkroom.stack.parts import Plan, plan
from darkroom.stack.run_directory import Record, RunDirectory
from darkroom.stack.servers import S3Server, ValkeyServer, answers_http, port_problem, wait_until
from darkroom.stack.supervisor import Supervisor, responds

SERVER_SECONDS = 30
WEB_SECONDS = 60
WORKER_SECONDS = 600  # weights may have to be fetched first
LEFTOVER_SECONDS = 10

# What somebody needs who wants to speak to the parts of a stack that runs.
ADDRESSES = (
    "DARKROOM_DATABASE_URL",
    "DARKROOM_REDIS_URL",
    "DARKROOM_S3_ENDPOINT_URL",
    "DARKROOM_S3_BUCKET",
    "DARKROOM_S3_ADDRESSING_STYLE",
    "DARKROOM_HOST",
    "DARKROOM_PORT",
    "DARKROOM_CATALOG",
    "DARKROOM_MODELS_DIR",
    "DARKROOM_WORKER_MODELS",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_REGION",
)

Report = Callable[[str], None]


class Stack:
    """The stack of one home, held by this process: when it ends, however it ends, the stack ends."""

    def __init__(self, settings: Settings, *, workers: int = 1, model: Path | None = None, report: Report) -> None:
        self._settings = settings
        self._num_workers = workers
        self._model = model
        self._report = report
        self._run = RunDirectory(settings.home)
        self._socket: Path | None = None
        self._supervisor: Supervisor | None = None

    @property
    def url(self) -> str:
        """Where the web face is, seen from this machine."""
        host = self._settings.host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - looked at, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self._settings.port}"

    @property
    def logs(self) -> Path:
        """The folder of the parts' logs."""
        return self._settings.home / "logs"

    def start(self) -> None:
        """Start every part and wait until each is ready. Raises StackError; call stop() in either case."""
        leftover = self._run.claim()
        if leftover:
            self._clean_up_after(leftover)
        self._run.clear()
        _check_port(self._settings)
        if self._model:
            self._settings = model_folder.offer(self._model, self._settings, run=self._run.path)
        Catalog.load(self._settings)  # its faults are better told here than in two logs
        chosen = plan(self._settings, workers=self._num_workers)
        self._settings = chosen.settings
        began_at = time.monotonic()
        supervisor = self._start_supervisor(chosen)
        self._start_servers(chosen, supervisor)
        self._report("starting the web face and the worker, which loads torch and the model")
        supervisor.start_part("worker")
        supervisor.start_part("web")
        self._await(supervisor, "web", self._web_answers, seconds=WEB_SECONDS)
        self._await_workers(supervisor, began_at)

    def check(self) -> None:
        """Report each part that has died and was started again. Raises StackError when one could not be."""
        for name in self._require_supervisor().check():
            self._report(f"{name} had ended and was started again; see {self.logs}/{name}.log")

    def stop(self) -> None:
        """Stop every part in order and leave no process and no run directory. Idempotent, also before start()."""
        if self._supervisor:
            began_at = time.monotonic()
            self._report("stopping the web, the worker, then the servers (again: at once)")
            self._supervisor.stop()
            self._supervisor = None
            self._say("stack", began_at, "stopped")
        if self._socket:
            self._run.forget_socket(self._socket)
            self._socket = None
        self._run.release()

    def kill(self) -> None:
        """End every process at once, also while stop() waits."""
        if self._supervisor:
            self._supervisor.kill()

    def log_tail(self, name: str) -> str:
        """Read the end of a part's log."""
        return self._require_supervisor().log_tail(name)

    def _require_supervisor(self) -> Supervisor:
        if self._supervisor is None:
            raise StackError("the stack is not running")
        return self._supervisor

    def _clean_up_after(self, leftover: Record) -> None:
        """Deal with a stack that was killed: its parts die within moments, its files stay."""
        socket = Path(leftover.socket)
        wait_until(
            lambda: not responds(socket),
            seconds=LEFTOVER_SECONDS,
            refusal=lambda: (
                f"the parts of an earlier Darkroom (pid {leftover.pid}) still run at {self._run.home}; "
                f"stop the supervisord whose number is in {self._run.path}/supervisord.pid"
            ),
        )
        self._run.forget_socket(socket)
        self._report(f"cleaned up after an earlier Darkroom that did not stop properly (pid {leftover.pid})")

    def _start_supervisor(self, chosen: Plan) -> Supervisor:
        self._socket = self._run.socket_path()
        self._supervisor = Supervisor(chosen.parts, run=self._run.path, logs=self.logs, socket=self._socket)
        self._run.write(
            Record(
                os.getpid(),
                self.url,
                str(self._socket),
                {name: chosen.environment[name] for name in ADDRESSES if name in chosen.environment},
            )
        )
        self._supervisor.start(chosen.environment)
        return self._supervisor

    def _start_servers(self, chosen: Plan, supervisor: Supervisor) -> None:
        servers: list[ValkeyServer | S3Server] = [server for server in (chosen.valkey, chosen.s3) if server]
        if chosen.s3:
            chosen.s3.create_bucket(self._settings.s3_bucket)
        for server in servers:
            server.prepare()
            supervisor.start_part(server.name)
        began_at = time.monotonic()
        migrate(self._settings.database)
        self._say("database", began_at, "up to date")
        self._make_first_key()
        for server in servers:
            self._await(supervisor, server.name, server.is_ready, seconds=SERVER_SECONDS)

    def _make_first_key(self) -> None:
        """Where other machines can reach a stack that has no key yet, make one, and tell it this once."""
        if is_loopback(self._settings.host) or self._settings.keyless_anywhere:
            return
        database = Database(self._settings.database)
        try:
            if keys.any_exist(database):
                return
            # Of the owner that a stack without keys has: what was made before stays in its gallery.
            _, key = keys.create(
                database, name="admin", owner=keys.KEYLESS_OWNER, scopes=keys.SCOPES, quotas=keys.Quotas()
            )
        finally:
            database.dispose()
        self._report(f"the first key, which is shown only now, and which everybody needs from now on: {key}")

    def _await(self, supervisor: Supervisor, part: str, condition: Callable[[], bool], *, seconds: float) -> None:
        began_at = time.monotonic()

        def is_ready() -> bool:
            if condition():
                return True
            supervisor.check_start()
            return False

        wait_until(is_ready, seconds=seconds, refusal=lambda: f"{part}: is not ready after {seconds:.0f} s")
        self._say(part, began_at, "ready")

    def _say(self, part: str, began_at: float, what: str) -> None:
        self._report(f"{part:<9} {what} ({time.monotonic() - began_at:.1f} s)")

    def _web_answers(self) -> bool:
        host = self.url.removeprefix("http://").rpartition(":")[0].strip("[]")
        return answers_http(self._settings.port, "/healthz", host=host)

    def _await_workers(self, supervisor: Supervisor, began_at: float) -> None:
        database = Database(self._settings.database)

        def are_ready() -> bool:
            pids = [state.pid for state in supervisor.states() if state.part == "worker"]
            started = Worker.started_at > now(began_at - time.monotonic())  # a number may be an old worker's
            ready = select(func.count()).where(Worker.pid.in_(pids), Worker.state == WorkerState.READY, started)
            with database.read() as session:
                return session.scalar(ready) == self._num_workers

        try:
            self._await(supervisor, "worker", are_ready, seconds=WORKER_SECONDS)
        finally:
            database.dispose()


def _check_port(settings: Settings) -> None:
    if problem := port_problem(settings.host, settings.port):
        raise StackError(
            f"port {settings.port} of {settings.host} cannot be used ({problem}): "
            "stop what uses it, or choose another with --port (or PORT)"
        )
