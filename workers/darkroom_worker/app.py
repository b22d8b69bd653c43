"""The worker's process: puts the parts together, then lives inside Celery until it is told to drain."""

import logging
import math
import os
import signal
import socket
import sys
import threading
import uuid
from dataclasses import asdict
from typing import Any

import click
import structlog
from celery import Celery, Task
from celery.signals import worker_shutting_down

from darkroom import __version__, db, logs
from darkroom.catalog import Catalog, ModelEntry
from darkroom.config import Settings, load_settings
from darkroom.db import Database
from darkroom.dispatch import BROKER_ERRORS, TASK, Doorbell, celery_app, consume, model_of
from darkroom.errors import ConfigError, DarkroomError
from darkroom.fleet import WorkerFacts
from darkroom.news import Crier
from darkroom.storage import Storage
from darkroom.sweeper import Sweeper
from darkroom_engine import EngineError
from darkroom_worker.develop import Developer, Develops
from darkroom_worker.engine_host import EngineHost
from darkroom_worker.engine_plan import EngineFacts, EnginePlan, ModelPlan
from darkroom_worker.output import Outlet
from darkroom_worker.transport import TRANSPORT, Waker
from darkroom_worker.worker import Parts, StallLimits, Worker, is_alive, max_held

logger = structlog.get_logger(__name__)

# After the drain nothing is left to wait for: past this the process is stuck, in a broker or on a device that does not
# answer.
SHUTDOWN_SECONDS = 5.0


@click.command()
@click.option("--health", is_flag=True, help="Exit 0 if a worker on this host has lately shown a sign of life.")
def main(health: bool) -> None:
    """Run a Darkroom worker on one device: claim jobs, develop them, store their pictures."""
    try:
        settings = load_settings()
        if health:
            sys.exit(0 if is_alive(settings) else 1)
        logs.configure(settings)
        run(settings)
    except (DarkroomError, EngineError) as error:
        click.echo(f"darkroom-worker: {error}", err=True)
        sys.exit(1)
    # Everything was closed in order; what Python would still do is collect torch's garbage, for seconds (7 s measured).
    logging.shutdown()
    sys.stderr.flush()
    os._exit(0)


def run(settings: Settings) -> None:
    """Open the engine, then work until SIGTERM. Raises what keeps a worker from starting."""
    signal.signal(signal.SIGTERM, _exit_once)  # until Celery puts its own in place; as PID 1 there is no default
    engine = EngineHost(asdict(engine_plan(settings)))
    engine.start()  # it brings torch: seconds in which the rest is made ready
    try:
        database = open_database(settings)
        outlet = Outlet(settings)
        outlet.warm_up()
        facts = worker_facts(settings, engine.wait_until_open())
        try:
            serve(settings, database=database, engine=engine, outlet=outlet, facts=facts)
        finally:
            database.dispose()
    finally:
        engine.stop()


def engine_plan(settings: Settings) -> EnginePlan:
    """Say what engine the settings and the catalog want. Raises ConfigError."""
    return EnginePlan(
        settings.worker_device,
        settings.max_rows,
        settings.worker_threads,
        settings.worker_model_bytes,
        [_model_plan(entry) for entry in _entries(settings)],
    )


def _model_plan(entry: ModelEntry) -> ModelPlan:
    limits = entry.limits
    return ModelPlan(
        name=entry.name,
        family=entry.family,
        source=entry.source,
        revision=entry.revision,
        dtype=entry.dtype,
        tuning=entry.tuning.model_dump(),
        loras=dict(entry.loras),
        usual_size=(entry.defaults.width, entry.defaults.height),
        longest_side=min(limits.max_size, math.isqrt(limits.max_pixels)) // limits.size_multiple * limits.size_multiple,
        promised_pixels=limits.max_pixels,
    )


def open_database(settings: Settings) -> Database:
    """Open a database that is migrated, and local if it is a file. Raises ConfigError or DatabaseUnavailable."""
    database = Database(settings.database, pool_size=settings.worker_slots + 6)
    if database.is_sqlite and db.is_on_network(settings.database):
        raise ConfigError(
            "DATABASE_URL: this SQLite file lies on a network filesystem, where its locks do not hold; "
            "workers on other hosts need PostgreSQL"
        )
    if not db.is_migrated(database):
        raise ConfigError("DATABASE_URL: the schema is not this version's; run `darkroom migrate` first")
    return database


def serve(
    settings: Settings,
    *,
    database: Database,
    engine: Develops,
    outlet: Outlet,
    facts: WorkerFacts,
    stall_limits: StallLimits = StallLimits(),  # noqa: B008 - frozen
) -> None:
    """Work with these parts until SIGTERM or SIGINT, then drain."""
    storage = Storage(settings)
    developer = Developer(
        engine,
        storage=storage,
        outlet=outlet,
        database=database,
        embeds_metadata=settings.embed_metadata,
    )
    worker = Worker(Parts(settings, facts, database, storage, developer, stall_limits))
    if isinstance(engine, EngineHost):  # else it lives and dies with this process
        worker.on_hang = engine.kill
        engine.listen(worker)
    sweeper = Sweeper(settings, database=database, storage=storage)
    crier = Crier(settings.redis_url)
    database.on_commit = crier.on_commit
    app = _celery(settings, worker)

    worker_shutting_down.connect(lambda **_: _leave_in_background(worker), weak=False)
    signal.signal(signal.SIGTERM, _exit_once)  # until Celery puts its own in place
    consumer = _consumer(app, facts)
    try:
        worker.start()
        sweeper.ensure_alive()
        crier.ensure_alive()
        consumer.start()
    finally:
        _leave(worker)
        sweeper.stop()
        outlet.close()
        crier.stop()
        logger.info("worker_left", worker=facts.id)
    if consumer.exitcode:
        sys.exit(consumer.exitcode)  # Celery broke: whoever supervises this process is to start it again


def _exit_once(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would break into the drain
    sys.exit(0)


def _consumer(app: Celery, facts: WorkerFacts) -> Any:
    return app.Worker(
        pool="threads",
        concurrency=max_held(facts) + 1,  # one more than the jobs, to hand on a doorbell that reached a full worker
        hostname=facts.id,
        loglevel="WARNING",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )


def _celery(settings: Settings, worker: Worker) -> Celery:
    """Celery with the one task, consuming its models' doorbells only while the worker has room."""
    app = celery_app(settings, transport=TRANSPORT)
    app.conf.broker_transport_options |= {"is_open": worker.has_room}
    consume(app, worker.models)
    waker = Waker()
    app.steps["consumer"].add(waker.step())
    worker.on_room = waker.wake
    doorbell = Doorbell(settings)

    @app.task(name=TASK, bind=True)  # type: ignore[untyped-decorator]
    def develop(task: Task, job_id: str | None = None) -> None:
        """Claim and develop what waits. The id only says whom the doorbell was rung for."""
        if worker.work_off() or job_id is None:
            return
        try:  # this worker was filled while the doorbell was on its way: hand it on
            doorbell.ring(uuid.UUID(job_id), model=model_of(task.request.delivery_info["routing_key"]))
        except BROKER_ERRORS as error:
            logger.warning("doorbell_not_handed_on", job_id=job_id, reason=str(error))

    worker.look = lambda: develop.apply(throw=True)
    return app


def _leave_in_background(worker: Worker) -> None:
    """Drain while Celery's warm shutdown waits for the same tasks."""
    threading.Thread(target=_leave, args=(worker,), name="leave", daemon=True).start()


def _leave(worker: Worker) -> None:
    """Drain and leave the fleet; from then on the process has SHUTDOWN_SECONDS to end by itself. Again is fine."""
    worker.drain()
    end = threading.Timer(SHUTDOWN_SECONDS, _end_process)
    end.daemon = True
    end.start()
    worker.stop()


def _end_process() -> None:
    logger.warning("exit_with_threads_left")
    os._exit(0)


def _entries(settings: Settings) -> list[ModelEntry]:
    catalog = Catalog.load(settings)
    if not settings.worker_models:
        return list(catalog.models)
    return [catalog.get(name) for name in settings.worker_models]


def worker_facts(settings: Settings, engine: EngineFacts) -> WorkerFacts:
    """Say what the fleet is to know of this worker."""
    host = socket.gethostname()
    return WorkerFacts(
        id=f"{host[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
        host=host,
        pid=os.getpid(),
        device=engine.device,
        device_memory_bytes=engine.device_memory_bytes,
        fingerprint=engine.fingerprint,
        models=list(engine.models),
        slots=settings.worker_slots,
        version=__version__,
    )
