"""What a stack is made of, for given settings: which parts, at which addresses, in which environment.

Decides; starts nothing. A part whose address the settings were given is left out.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from darkroom.config import Settings
from darkroom.errors import StackError
from darkroom.stack.servers import S3Server, ValkeyServer, find_rclone, find_valkey, free_port
from darkroom.stack.supervisor import Part

# boto3 would rather believe these than the keys of our own S3 server.
FOREIGN_CREDENTIALS = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
SERVER_STOP_SECONDS = 10
WEB_STOP_SECONDS = 15
WORKER_START_SECONDS = 20  # importing torch takes most of it
WORKER_STOP_MARGIN_SECONDS = 10


@dataclass(frozen=True)
class Plan:
    """A stack before it is started. `settings` are those that its parts will read from `environment`."""

    settings: Settings
    valkey: ValkeyServer | None
    s3: S3Server | None
    parts: Sequence[Part]
    environment: Mapping[str, str]


def plan(settings: Settings, *, workers: int) -> Plan:
    """Choose the parts and their addresses. Raises StackError when a program is not installed."""
    check_installed("supervisor", extra="local")
    check_installed("darkroom_worker", "torch", "diffusers", extra="worker")
    valkey = s3 = None
    given: dict[str, str | None] = {"database_url": settings.database}
    if "redis_url" not in settings.model_fields_set or not settings.redis_url:
        valkey = ValkeyServer(find_valkey(settings.redis_server_bin), settings.home / "valkey", free_port())
        given["redis_url"] = valkey.url
    if settings.s3_endpoint_url is None:
        s3 = S3Server(find_rclone(), settings.home / "s3", free_port())
        given["s3_endpoint_url"] = s3.endpoint_url
        given["s3_addressing_style"] = "path"  # no bucket has a host name here
    settings = settings.model_copy(update=given)
    return Plan(settings, valkey, s3, _parts(settings, valkey, s3, workers), _environment(settings, valkey, s3))


def check_installed(*modules: str, extra: str) -> None:
    """Raise StackError, with its cure, when a module of an extra is missing. Imports none of them."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise StackError(f"{', '.join(missing)}: not installed; pip install 'darkroom[{extra}]'")


def _parts(settings: Settings, valkey: ValkeyServer | None, s3: S3Server | None, workers: int) -> list[Part]:
    python = [sys.executable, "-P"]
    servers = [
        Part(server.name, server.command, priority=priority, start_seconds=1, stop_seconds=SERVER_STOP_SECONDS)
        for server, priority in ((valkey, 100), (s3, 200))
        if server
    ]
    worker = Part(
        "worker",
        [*python, "-m", "darkroom_worker"],
        priority=300,
        start_seconds=WORKER_START_SECONDS,
        stop_seconds=int(settings.worker_grace_seconds) + WORKER_STOP_MARGIN_SECONDS,
        copies=workers,
    )
    web = Part(
        "web",
        [*python, "-m", "darkroom.cli", "web"],
        priority=400,
        start_seconds=3,
        stop_seconds=WEB_STOP_SECONDS,
    )
    return [*servers, worker, web]


def _environment(settings: Settings, valkey: ValkeyServer | None, s3: S3Server | None) -> dict[str, str]:
    environment = dict(os.environ)
    environment |= {
        "DARKROOM_HOME": str(settings.home),
        "DARKROOM_DATABASE_URL": settings.database,
        "DARKROOM_REDIS_URL": settings.redis_url,
        "DARKROOM_S3_ENDPOINT_URL": settings.s3_endpoint_url or "",
        "DARKROOM_S3_BUCKET": settings.s3_bucket,
        "DARKROOM_S3_ADDRESSING_STYLE": settings.s3_addressing_style,
        "DARKROOM_HOST": settings.host,
        "DARKROOM_PORT": str(settings.port),
        "PYTHONUNBUFFERED": "1",
    }
    if settings.catalog:
        environment["DARKROOM_CATALOG"] = str(settings.catalog)
    if settings.models_dir:
        environment["DARKROOM_MODELS_DIR"] = str(settings.models_dir)
    if settings.worker_models:
        environment["DARKROOM_WORKER_MODELS"] = ",".join(settings.worker_models)
    for server in (valkey, s3):
        environment |= server.environment if server else {}
    if s3:
        environment |= s3.credentials
        for name in FOREIGN_CREDENTIALS:
            environment.pop(name, None)
    return environment
