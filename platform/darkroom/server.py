"""gunicorn around the web face. Knows how it is served; knows no page."""

from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication

from darkroom import logs
from darkroom.config import Settings
from darkroom.stack.leash import tie
from darkroom.web import create_app
from darkroom.web.guards import check_bind

GRACE_SECONDS = 10


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        for name, value in _options(self._settings).items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        return create_app(self._settings)


def _options(settings: Settings) -> dict[str, Any]:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return {
        "bind": f"{host}:{settings.port}",
        "worker_class": "gthread",
        "threads": settings.web_threads,
        "graceful_timeout": GRACE_SECONDS,
        "control_socket_disable": True,  # it would lie in the home directory, one for all instances
        "post_fork": _tie_to_master,
        "proc_name": "darkroom-web",
    }


def _tie_to_master(_arbiter: Any, worker: Any) -> None:
    tie(worker.ppid)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. The application is made after the fork. Raises ConfigError."""
    check_bind(settings)
    logs.configure(settings)
    _Server(settings).run()
