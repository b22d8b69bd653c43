"""What is missing or wrong on this host, each with its cure. Looks and asks; writes only an object that it removes.

Works whether or not a stack runs: then its addresses are used, else what `darkroom up` would bring along is looked for.
"""

import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import redis

from darkroom.addresses import is_loopback
from darkroom.brokers import impatient_redis
from darkroom.catalog import Catalog, ModelEntry
from darkroom.config import Settings, load_settings
from darkroom.db import Database, is_migrated
from darkroom.errors import ConfigError, DarkroomError, StackError
from darkroom.fleet import list_workers
from darkroom.stack.run_directory import RunDirectory
from darkroom.stack.servers import answers_http, find_rclone, find_valkey, port_problem
from darkroom.storage import Storage

OLDEST_PYTHON = (3, 11)
REDIS_SECONDS = 3
DEVICE_SECONDS = 120  # a first import of torch from a cold disk
WORKER_MODULES = ("darkroom_worker", "darkroom_engine", "torch", "diffusers", "transformers")
# Asked in a process of its own: the platform imports no torch.
DEVICES = (
    "from torch import backends, cuda; cards = [f'cuda:{n}' for n in range(cuda.device_count())]; "
    "print('cpu', *['mps'] * backends.mps.is_available(), *cards[:1] and ['cuda', *cards])"
)
# How boto3 is told who we are when S3 has no address of its own: then it is Amazon's.
AMAZON = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. It is wrong when `is_wrong`; a cure may also stand beside what is merely absent."""

    name: str
    fact: str
    cure: str = ""
    is_wrong: bool = False

    @property
    def mark(self) -> str:
        """Two characters before its line: ok, absent, or wrong."""
        return "!!" if self.is_wrong else "--" if self.cure else "ok"


def good(name: str, fact: str) -> Finding:
    """Find a thing as it should be."""
    return Finding(name, fact)


def absent(name: str, fact: str, cure: str) -> Finding:
    """Find a thing missing that need not be here."""
    return Finding(name, fact, cure)


def wrong(name: str, fact: str, cure: str) -> Finding:
    """Find a thing that keeps Darkroom from working."""
    return Finding(name, fact, cure, is_wrong=True)


def examine(environment: MutableMapping[str, str]) -> list[Finding]:
    """Look at everything. Where a stack runs, its addresses and keys are added to the environment, for boto3 too."""
    findings = [check_python(sys.version_info[:2])]
    try:
        settings = load_settings()
        record = RunDirectory(settings.home).running()
        if record:
            environment.update(record.environment)
            settings = load_settings()
    except ConfigError as error:
        return [*findings, wrong("settings", str(error), "set the variable to a value within its limit, or unset it")]
    findings.append(good("settings", f"home is {settings.home}"))
    if record:
        findings.append(good("stack", f"runs (pid {record.pid}) at {record.url}"))
    else:
        findings.append(absent("stack", "is not running here", "darkroom up starts one, if this host shall have one"))
    is_amazon = any(name in environment for name in AMAZON)
    checks: list[Callable[[], Iterator[Finding]]] = [
        lambda: check_database(settings),
        lambda: check_redis(settings),
        lambda: check_s3(settings, is_amazon=is_amazon),
        lambda: check_catalog(settings),
        lambda: check_worker(settings),
        lambda: check_port(settings, is_ours=record is not None),
    ]
    return findings + [finding for check in checks for finding in check()]


def check_python(running: tuple[int, ...]) -> Finding:
    """Whether this interpreter is new enough."""
    words = f"{platform.python_version()} at {sys.executable}"
    if running < OLDEST_PYTHON:
        return wrong("python", words, "install Python 3.11 or newer")
    return good("python", words)


def check_database(settings: Settings) -> Iterator[Finding]:
    """Whether it answers, has the schema of this version, and knows a living worker."""
    path = settings.home / "darkroom.db"
    if not settings.database_url and not path.exists():
        yield absent("database", f"SQLite, not made yet: {path}", "darkroom up or darkroom migrate makes it")
        return
    try:
        database = Database(settings.database)
    except (ConfigError, ImportError) as error:
        yield wrong("database", str(error), "correct DATABASE_URL; for PostgreSQL: pip install 'darkroom[postgres]'")
        return
    try:
        if not is_migrated(database):
            yield wrong("database", "its schema is not the one of this version", "darkroom migrate")
            return
        yield good("database", f"{'SQLite' if database.is_sqlite else 'PostgreSQL'}, schema up to date")
        yield _fleet(database, settings)
    except DarkroomError as error:
        yield wrong("database", str(error), "start it, or correct DATABASE_URL")
    finally:
        database.dispose()


def _fleet(database: Database, settings: Settings) -> Finding:
    silent_since = datetime.now(UTC).timestamp() - settings.lease_seconds
    living = [worker for worker in list_workers(database) if worker.heartbeat_at.timestamp() > silent_since]
    if not living:
        return absent("workers", "none lives: jobs will wait", "start one: darkroom up, or darkroom-worker")
    return good("workers", ", ".join(f"{worker.host} ({worker.device}: {worker.state})" for worker in living))


def check_redis(settings: Settings) -> Iterator[Finding]:
    """Whether it answers, wants a password where strangers reach it, and throws nothing away."""
    if "redis_url" not in settings.model_fields_set:
        yield _brought_along("redis", lambda: find_valkey(settings.redis_server_bin))
        return
    url = urlsplit(settings.redis_url)
    where = f"{url.hostname}:{url.port or 6379}" if url.hostname else url.path
    if url.hostname and not url.password and not is_loopback(url.hostname):
        yield wrong(
            "redis", f"{where} has no password in REDIS_URL", "give it one (requirepass): redis://:PASSWORD@HOST/0"
        )
    try:
        with impatient_redis(settings.redis_url, seconds=REDIS_SECONDS, decode_responses=True) as client:
            client.ping()
            yield _eviction(client, where)
    except (redis.RedisError, ValueError) as error:
        yield wrong("redis", f"{where}: {error}", "start it, or correct REDIS_URL")


def _eviction(client: redis.Redis, where: str) -> Finding:
    try:
        policy = dict(client.config_get("maxmemory-policy"))["maxmemory-policy"]
    except (redis.ResponseError, KeyError):
        return good("redis", f"{where} answers; it does not tell its maxmemory-policy, which should be noeviction")
    if policy != "noeviction":
        return wrong("redis", f"{where} may throw doorbells away ({policy})", "CONFIG SET maxmemory-policy noeviction")
    return good("redis", f"{where} answers, {policy}")


def check_s3(settings: Settings, *, is_amazon: bool) -> Iterator[Finding]:
    """Whether the bucket is there and can be written, read and deleted from."""
    if settings.s3_endpoint_url is None and not is_amazon:
        yield _brought_along("s3", find_rclone)
        return
    where = f"bucket {settings.s3_bucket} at {settings.s3_endpoint_url or 'Amazon'}"
    try:
        storage = Storage(settings)
        storage.check()
        storage.check_writing()
    except DarkroomError as error:
        cure = "check S3_ENDPOINT_URL, S3_BUCKET, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; the bucket must exist"
        yield wrong("s3", f"{where}: {error}", cure)
    else:
        yield good("s3", f"{where} can be read and written")


def _brought_along(name: str, find: Callable[[], Path]) -> Finding:
    try:
        return good(name, f"no address given: darkroom up starts {find()}")
    except StackError as error:
        fact, _, cure = str(error).partition(": ")
        return wrong(name, fact, cure)


def check_catalog(settings: Settings) -> Iterator[Finding]:
    """Whether the catalog can be read and each model's folder is there."""
    try:
        catalog = Catalog.load(settings)
    except DarkroomError as error:
        yield wrong("catalog", str(error), "correct the file, or unset DARKROOM_CATALOG and DARKROOM_MODELS_DIR")
        return
    for entry in catalog.models:
        yield _model(entry, is_default=entry is catalog.default)
    for name in settings.worker_models:
        if name not in {entry.name for entry in catalog.models}:
            yield wrong("model", f"{name} is in DARKROOM_WORKER_MODELS and not in the catalog", "name one that is")


def _model(entry: ModelEntry, *, is_default: bool) -> Finding:
    words = f"{entry.name}{' (default)' if is_default else ''}, {entry.family}, from {entry.source}"
    if entry.source.startswith(("/", "~", ".")) and not (Path(entry.source) / "model_index.json").is_file():
        return wrong("model", f"{words}: no such folder of a pipeline", "correct its source in the catalog")
    return good("model", words)


def check_worker(settings: Settings) -> Iterator[Finding]:
    """Whether this host could run a worker, on the device that is asked for."""
    missing = [name for name in WORKER_MODULES if find_spec(name) is None]
    if missing:
        fact = f"cannot run here ({', '.join(missing)} not installed); the web face can"
        yield absent("worker", fact, "pip install 'darkroom[worker]', if this host shall develop pictures")
        return
    yield good("worker", f"installed, torch {version('torch')}")
    code = [sys.executable, "-P", "-c", DEVICES]
    try:
        answer = subprocess.run(code, capture_output=True, text=True, timeout=DEVICE_SECONDS, check=True)  # noqa: S603
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        last = (str(error.stderr or "").strip().splitlines() or [str(error)])[-1]
        yield wrong("device", f"torch cannot be used: {last}", "pip install --force-reinstall torch")
        return
    yield check_device(settings.worker_device, answer.stdout.split())


def check_device(wanted: str, devices: list[str]) -> Finding:
    """Whether a worker finds the device that it is told to use."""
    if wanted not in ("auto", *devices):
        cure = "set DARKROOM_WORKER_DEVICE=auto, or install a torch build and a driver for that device"
        return wrong("device", f"{wanted} is asked for; torch sees {', '.join(devices)}", cure)
    return good("device", f"{wanted}; torch sees {', '.join(devices)}")


def check_port(settings: Settings, *, is_ours: bool) -> Iterator[Finding]:
    """Whether the web face answers on its port, or could listen there."""
    where = f"{settings.host}:{settings.port}"
    problem = port_problem(settings.host, settings.port)
    if problem is None:
        yield good("port", f"{where} is free")
    elif is_ours or answers_http(settings.port, "/healthz", host=settings.host):
        yield good("port", f"{where} is in use by a web server that answers")
    else:
        yield wrong("port", f"{where} cannot be used ({problem})", "stop what uses it, or set PORT")
