"""Which workers live, and what each says of itself. Knows nothing of jobs but their number."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import and_, delete, insert, select, update

from darkroom.db import Database, now
from darkroom.models import Worker, WorkerState

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
    """A worker as it was last heard of."""

    state: WorkerState
    num_jobs: int
    started_at: datetime
    heartbeat_at: datetime


def register(database: Database, facts: WorkerFacts) -> None:
    """Add a worker that is ready, in place of an earlier one of the same id."""
    with database.write() as session:
        session.execute(delete(Worker).where(Worker.id == facts.id))
        session.execute(insert(Worker).values(state=WorkerState.READY, **asdict(facts)))


def beat(database: Database, facts: WorkerFacts, *, state: WorkerState, num_jobs: int) -> None:
    """Note that a worker lives. One that was forgotten meanwhile is added again."""
    statement = update(Worker).where(Worker.id == facts.id).values(heartbeat_at=now(), state=state, num_jobs=num_jobs)
    with database.write() as session:
        known = session.scalar(statement.returning(Worker.id).execution_options(synchronize_session=False))
        if known is None:
            session.execute(insert(Worker).values(state=state, num_jobs=num_jobs, **asdict(facts)))


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


def list_workers(database: Database) -> list[WorkerRecord]:
    """Read every known worker, by host and process."""
    with database.read() as session:
        rows = session.scalars(select(Worker).order_by(Worker.host, Worker.pid))
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
                started_at=row.started_at,
                heartbeat_at=row.heartbeat_at,
            )
            for row in rows
        ]
