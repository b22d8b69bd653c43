"""granian around the web face. Knows how it is served; knows no page.

granian's own process watches over one worker process and starts it anew when it dies. The application is made in the
worker. A thread serves a request from its first byte to its last, so there are as many as requests that are answered
and requests that wait.
"""

import gc
import os
import signal
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Flask
from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels

from darkroom import logs
from darkroom.config import Settings
from darkroom.errors import ConfigError
from darkroom.stack.leash import tie
from darkroom.web import create_app
from darkroom.web.guards import check_bind

GRACE_SECONDS = 10
# Connections that wait to be accepted, and beyond that for a thread.
BACKLOG = 4096


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. The application is made after the fork. Raises ConfigError."""
    check_bind(settings)
    serve_app(settings, partial(_load, settings))


def serve_app(settings: Settings, load: Callable[[], Any]) -> None:
    """Serve what `load` makes in the process that will serve it. Raises ConfigError when the address is taken."""
    _check_free(settings.host, settings.port)
    server = Granian(
        "darkroom",
        address=settings.host,
        port=settings.port,
        interface=Interfaces.WSGI,
        http=HTTPModes.http1,
        websockets=False,
        blocking_threads=settings.web_threads + settings.web_waiters,
        # A thread that has just taken a request still counts as idle for a moment. A request that comes in that moment
        # gets no thread of its own, and where no other is idle waits behind a stream: so the most that granian takes.
        blocking_threads_idle_timeout=600,
        backlog=BACKLOG,
        backpressure=BACKLOG,
        respawn_failed_workers=True,
        workers_kill_timeout=GRACE_SECONDS,
        log_level=LogLevels.error,  # it warns of as many threads as waiting takes
        log_dictconfig={"loggers": {"_granian": {"propagate": True}}},
    )
    logs.configure(settings)
    server.serve(target_loader=partial(_load_on_leash, os.getpid(), load), wrap_loader=False)


def _check_free(host: str, port: int) -> None:
    """The server would share the port with whoever listens there already, and each would get some of the requests."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"DARKROOM_HOST, DARKROOM_PORT: {host}:{port} cannot be listened on: {reason}") from error


def _load_on_leash(holder: int, load: Callable[[], Any]) -> Any:
    tie(holder)
    return load()


def _load(settings: Settings) -> Flask:
    logs.configure(settings)
    app = create_app(settings)
    _on_end(app.extensions["darkroom"].background.end_waits)
    gc.collect()
    gc.freeze()  # what is there now stays: to look through it for garbage stops every thread
    return app


def _on_end(call: Callable[[], None]) -> None:
    """Have a thread call when this process is told to end: the server then waits for the requests that are served.

    The server puts its own handlers in place later; the wake-up descriptor is written to whatever they are.
    """
    told, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.detach())

    def wait() -> None:
        while number := told.recv(1):
            if number[0] in {signal.SIGTERM, signal.SIGINT}:
                call()

    threading.Thread(target=wait, name="end", daemon=True).start()
