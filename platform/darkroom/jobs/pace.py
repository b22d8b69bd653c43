"""How fast jobs were done lately, and what waits: figures for those who ask when. Decides nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select

from darkroom.db import Database, now
from darkroom.models import QUEUED, RUNNING, Job, JobClass, JobState
from darkroom.params import GenerationParams, cost

# The latest successes of a model, as far back as its workers are likely to be the same ones.
NUM_LATEST = 40
LATELY_SECONDS = 3600.0


@dataclass(frozen=True)
class Done:
    """A job that was done: how long a worker had it, and its cost in megapixel-steps."""

    seconds: float
    cost: float


@dataclass(frozen=True)
class LineRecord:
    """One line of the queue. `oldest_seconds` is how long its oldest job has waited."""

    model: str
    job_class: JobClass
    queued: int
    running: int
    oldest_seconds: float | None


def latest_done(database: Database, model: str) -> list[Done]:
    """Read the latest successes of a model."""
    columns = select(Job.started_at, Job.finished_at, Job.params)
    done = columns.where(Job.state == JobState.SUCCEEDED, Job.finished_at > now(-LATELY_SECONDS), Job.model == model)
    with database.read() as session:
        rows = session.execute(done.order_by(Job.finished_at.desc()).limit(NUM_LATEST)).all()
    return [
        Done((finished_at - started_at).total_seconds(), cost(GenerationParams.model_validate(params)))
        for started_at, finished_at, params in rows
    ]


def lines(database: Database) -> list[LineRecord]:
    """Read how long every line is in which anybody waits or runs."""
    line = (Job.model, Job.job_class)
    waiting = select(*line, func.count(), func.min(Job.queued_at)).where(QUEUED).group_by(*line)
    held = select(*line, func.count()).where(RUNNING).group_by(*line)
    with database.read() as session:
        queued = {row[:2]: row[2:] for row in session.execute(waiting).all()}
        running: Mapping[tuple[str, int], int] = {row[:2]: row[2] for row in session.execute(held).all()}
        clock: datetime = session.execute(select(now())).scalar_one()
    records = []
    for model, job_class in sorted(queued.keys() | running.keys()):
        num_queued, oldest = queued.get((model, job_class), (0, None))
        waited = max(0.0, (clock.astimezone(UTC) - oldest).total_seconds()) if oldest else None
        records.append(LineRecord(model, JobClass(job_class), num_queued, running.get((model, job_class), 0), waited))
    return records
