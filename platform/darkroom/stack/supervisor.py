"""supervisord, run for one stack: its configuration, its socket, its end. Knows processes and nothing of what they do.

It starts a part when it is told to, restarts one that dies, and stops all in order: the highest priority first.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from darkroom.errors import StackError
from darkroom.stack.leash import held_by, leashed
from darkroom.stack.servers import wait_until

ANSWER_SECONDS = 15
STOP_POLL_SECONDS = 0.05
LOG_TAIL_LINES = 15

# Paths and commands come in through the environment: the file's own syntax has no way to quote them.
CONFIG = """\
[supervisord]
nodaemon = true
logfile = /dev/null
logfile_maxbytes = 0
pidfile = %(ENV_DARKROOM_RUN)s/supervisord.pid
umask = 077

[unix_http_server]
file = %(ENV_DARKROOM_SOCKET)s

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""
PART = """
[program:{name}]
command = %(ENV_DARKROOM_COMMAND_{variable})s
process_name = {process_name}
numprocs = {copies}
numprocs_start = 1
priority = {priority}
autostart = false
autorestart = true
startsecs = {start_seconds}
startretries = 3
stopsignal = TERM
stopwaitsecs = {stop_seconds}
killasgroup = true
redirect_stderr = true
stdout_logfile = %(ENV_DARKROOM_LOGS)s/{process_name}.log
stdout_logfile_maxbytes = 20MB
stdout_logfile_backups = 2
"""


@dataclass(frozen=True)
class Part:
    """A program of the stack. One that ends within `start_seconds` has failed to start."""

    name: str
    command: Sequence[str]
    priority: int
    start_seconds: int
    stop_seconds: int
    copies: int = 1

    @property
    def variable(self) -> str:
        """Its name within the names of environment variables."""
        return self.name.upper()

    @property
    def process_name(self) -> str:
        """What supervisord calls each copy; the second half is for it to fill in."""
        return f"{self.name}-%(process_num)d" if self.copies > 1 else self.name


@dataclass(frozen=True)
class PartState:
    """How one process of a part is. `has_failed`: it has ended and is not wanted to."""

    name: str
    part: str
    pid: int
    has_failed: bool
    is_given_up: bool
    description: str


class Supervisor:
    """One supervisord and what it looks after. It dies with this process, and its parts with it."""

    def __init__(self, parts: Sequence[Part], *, run: Path, logs: Path, socket: Path) -> None:
        self._parts = {part.name: part for part in parts}
        self._run = run
        self._logs = logs
        self._socket = socket
        self._process: subprocess.Popen[bytes] | None = None
        self._log_starts: dict[Path, int] = {}
        self._pids: dict[str, int] = {}

    def start(self, environment: Mapping[str, str]) -> None:
        """Start supervisord, and none of the parts. Raises StackError."""
        config = self._run / "supervisord.conf"
        config.write_text(CONFIG + "".join(_section(part) for part in self._parts.values()))
        self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log_starts = {path: path.stat().st_size for path in self._logs.glob("*.log")}
        commands = {
            f"DARKROOM_COMMAND_{part.variable}": shlex.join(leashed(list(part.command)))
            for part in self._parts.values()
        }
        logs = str(self._logs).replace("%", "%%")  # supervisord expands the path of a log twice
        ways = {"DARKROOM_RUN": str(self._run), "DARKROOM_LOGS": logs, "DARKROOM_SOCKET": str(self._socket)}
        with (self._logs / "supervisord.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own file
                leashed([sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(config)]),
                env={**environment, **commands, **ways, **held_by(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us alone: we stop the parts in order
            )
        wait_until(self._answers, seconds=ANSWER_SECONDS, refusal=lambda: self._blame("supervisord"))

    def start_part(self, name: str) -> None:
        """Start every copy of a part, and wait for none."""
        self._call("startProcessGroup", name, False)

    def states(self) -> list[PartState]:
        """Ask how every process is. Raises StackError when supervisord does not answer."""
        return [_state(answer) for answer in self._call("getAllProcessInfo")]

    def check_start(self) -> None:
        """Raise StackError, with the end of its log, when a part that was started has ended, even if it runs again."""
        for state in self.states():
            if state.pid and state.pid != self._pids.setdefault(state.name, state.pid):
                raise StackError(self._blame(state.name, "it ended while it was starting"))
            if state.has_failed:
                raise StackError(self._blame(state.name, state.description))

    def check(self) -> list[str]:
        """Name the processes that were started again since this was asked last.

        Raises StackError, with the end of its log, for one that cannot be kept running.
        """
        restarted = []
        for state in self.states():
            if state.is_given_up:
                raise StackError(self._blame(state.name, state.description))
            if state.pid and state.pid != self._pids.setdefault(state.name, state.pid):
                self._pids[state.name] = state.pid
                restarted.append(state.name)
        return restarted

    def stop(self) -> None:
        """Stop every part in order, however long its own limit allows. Idempotent."""
        if not self._process:
            return
        self._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + sum(part.stop_seconds for part in self._parts.values()) + ANSWER_SECONDS
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
            responds(self._socket)  # wakes it: by itself it looks once a second whether a part has ended
            time.sleep(STOP_POLL_SECONDS)
        self._process = None

    def kill(self) -> None:
        """End everything at once. Idempotent; a signal handler may call it while stop() waits."""
        if self._process:
            self._process.kill()

    def log_tail(self, name: str) -> str:
        """Read the last lines that a process has written since this supervisor started."""
        path = self._logs / f"{name}.log"
        if not path.exists():
            return ""
        with path.open("rb") as log:
            log.seek(min(self._log_starts.get(path, 0), path.stat().st_size))
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def _blame(self, name: str, description: str = "it does not start") -> str:
        tail = self.log_tail(name)
        return f"{name}: {description}; see {self._logs / name}.log" + (f"\n{tail}" if tail else "")

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise StackError(self._blame("supervisord"))
        return self._socket.exists() and responds(self._socket)

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return call(self._socket, method, *arguments)
        except (OSError, HTTPException, Fault) as error:
            raise StackError(self._blame("supervisord", f"it does not answer ({error})")) from error


def call(socket: Path, method: str, *arguments: Any) -> Any:
    """Call a method of the supervisord behind a socket. Raises OSError, HTTPException or Fault."""
    with ServerProxy("http://localhost", transport=SupervisorTransport(serverurl=f"unix://{socket}")) as proxy:
        return getattr(proxy.supervisor, method)(*arguments)


def responds(socket: Path) -> bool:
    """Whether a supervisord lives behind a socket."""
    try:
        call(socket, "getPID")
    except (OSError, HTTPException, Fault):
        return False
    return True


def _section(part: Part) -> str:
    return PART.format(
        name=part.name,
        variable=part.variable,
        process_name=part.process_name,
        copies=part.copies,
        priority=part.priority,
        start_seconds=part.start_seconds,
        stop_seconds=part.stop_seconds,
    )


def _state(answer: Mapping[str, Any]) -> PartState:
    word = answer["statename"]
    return PartState(
        name=answer["name"],
        part=answer["group"],
        pid=answer["pid"],
        has_failed=word in {"BACKOFF", "FATAL", "EXITED"},
        is_given_up=word == "FATAL",
        description=answer["spawnerr"] or answer["description"] or word.lower(),
    )
