"""Which workers live, and what each says of itself. Knows nothing of jobs but their number."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import and_, case, delete, insert, select, update

from darkroom.db import Database, now
from darkroom.errors import WorkerNotFound
from darkroom.models import Worker, WorkerState

logger = structlog.get_logger(__name__)

# A worker that has been silent for this many leases is forgotten; its jobs went back to the queue after one.
SILENT_LEASES = 10


@dataclass(frozen=True)
class WorkerFacts:
    """What a worker says of itself when it starts. Memory in bytes; `fingerprint` is its device's."""

    id: str
    host: str
    pid: int
    device: str
    device_memory_bytes: int
    fingerprint: str
    models: list[str]
    slots: int
    version: str


@dataclass(frozen=True)
class WorkerRecord(WorkerFacts):
    """A worker as it was last heard of, `heartbeat_age_seconds` ago by the database's clock.

    `rows_per_step` is of the denoiser's forwards before that heartbeat, on average; None where none ran.
    """

    state: WorkerState
    num_jobs: int
    rows_per_step: float | None
    is_drain_wanted: bool
    started_at: datetime
    heartbeat_at: datetime
    heartbeat_age_seconds: float


def register(database: Database, facts: WorkerFacts) -> None:
    """Add a worker that is ready, in place of an earlier one of the same id."""
    with database.write() as session:
        session.execute(delete(Worker).where(Worker.id == facts.id))
        session.execute(insert(Worker).values(state=WorkerState.READY, **asdict(facts)))


def beat(
    database: Database,
    facts: WorkerFacts,
    *,
    state: WorkerState,
    num_jobs: int,
    rows_per_step: float | None = None,
) -> bool:
    """Note that a worker lives, and return whether it is to claim nothing more until further notice.

    One that was forgotten meanwhile is added again.
    """
    said = case((Worker.is_drain_wanted, WorkerState.DRAINING.value), else_=state.value)
    load = {"num_jobs": num_jobs, "rows_per_step": rows_per_step}
    statement = update(Worker).where(Worker.id == facts.id).values(heartbeat_at=now(), state=said, **load)
    with database.write() as session:
        wanted = session.scalar(
            statement.returning(Worker.is_drain_wanted).execution_options(synchronize_session=False)
        )
        if wanted is None:
            session.execute(insert(Worker).values(state=state, **load, **asdict(facts)))
    return bool(wanted)


def drain(database: Database, worker_id: str) -> None:
    """Have a worker claim nothing more until `undrain`; what it runs goes on. Again is fine. Raises WorkerNotFound.

    Its next heartbeat tells it. A worker that starts anew is a new one, which knows nothing of it.
    """
    _change(database, worker_id, is_drain_wanted=True, state=WorkerState.DRAINING)
    logger.info("drain_wanted", worker=worker_id)


def undrain(database: Database, worker_id: str) -> None:
    """Have a drained worker claim again, from its next heartbeat on. Again is fine. Raises WorkerNotFound."""
    _change(database, worker_id, is_drain_wanted=False)
    logger.info("drain_ended", worker=worker_id)


def _change(database: Database, worker_id: str, **values: Any) -> None:
    statement = update(Worker).where(Worker.id == worker_id).values(**values).returning(Worker.id)
    with database.write() as session:
        if session.scalar(statement.execution_options(synchronize_session=False)) is None:
            raise WorkerNotFound(worker_id)


def leave(database: Database, worker_id: str) -> None:
    """Remove a worker that ends in good order."""
    with database.write() as session:
        session.execute(delete(Worker).where(Worker.id == worker_id))


def forget_silent(database: Database, *, lease_seconds: float) -> None:
    """Remove the workers nobody has heard of for SILENT_LEASES leases."""
    with database.write() as session:
        session.execute(delete(Worker).where(Worker.heartbeat_at < now(-SILENT_LEASES * lease_seconds)))


def num_slots(database: Database, models: Iterable[str], *, lease_seconds: float) -> dict[str, int]:
    """How many jobs of each model the workers that live and take any can hold at once."""
    takes_jobs = and_(Worker.heartbeat_at > now(-lease_seconds), Worker.state == WorkerState.READY)
    with database.read() as session:
        rows = session.execute(select(Worker.models, Worker.slots).where(takes_jobs)).all()
    return {model: sum(slots for held, slots in rows if model in held) for model in models}


def list_workers(database: Database, *, heard_within_seconds: float | None = None) -> list[WorkerRecord]:
    """Read every known worker, or those heard of lately, by host and process."""
    known = select(Worker, now()).order_by(Worker.host, Worker.pid)
    if heard_within_seconds is not None:
        known = known.where(Worker.heartbeat_at > now(-heard_within_seconds))
    with database.read() as session:
        rows = session.execute(known)
        return [
            WorkerRecord(
                id=row.id,
                host=row.host,
                pid=row.pid,
                device=row.device,
                device_memory_bytes=row.device_memory_bytes,
                fingerprint=row.fingerprint,
                models=row.models,
                slots=row.slots,
                version=row.version,
                state=WorkerState(row.state),
                num_jobs=row.num_jobs,
                rows_per_step=row.rows_per_step,
                is_drain_wanted=row.is_drain_wanted,
                started_at=row.started_at,
                heartbeat_at=row.heartbeat_at,
                heartbeat_age_seconds=max(0.0, (clock - row.heartbeat_at).total_seconds()),
            )
            for row, clock in rows
        ]
