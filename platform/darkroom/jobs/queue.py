"""Out of the queue: claim, and a job's place until then."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from pydantic import ValidationError
from sqlalchemy import Float, and_, bindparam, case, cast, func, null, select, tuple_, update
from sqlalchemy.orm import aliased
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import ScalarSelect

from darkroom import events
from darkroom.db import Database, now
from darkroom.errors import JobNotFound
from darkroom.jobs.ending import fail
from darkroom.jobs.line import Lines
from darkroom.jobs.records import Claim
from darkroom.models import QUEUED, RUNNING, SUSPECT, Job, JobClass, JobState
from darkroom.params import GenerationParams

logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Found:
    """A claimed job as its row has it; nobody has read its parameters yet."""

    job_id: UUID
    owner: str
    model: str
    job_class: JobClass
    params: dict[str, Any]
    attempt: int
    is_solo: bool
    seconds_left: float
    start_tag: float


def claim(
    database: Database,
    *,
    worker_id: str,
    models: Iterable[str],
    num_held: int,
    lease_seconds: float,
    lines: Lines,
    whole_line: bool = False,
    job_classes: Iterable[JobClass] = tuple(JobClass),
) -> Claim | None:
    """Take the front job of these models: by class, then start tag, then id. Several models take turns.

    `num_held` is how many jobs the worker already runs. A suspect goes only to a worker that runs none, and before all
    else to the one that ran empty for it. `whole_line` looks at the whole line, not from where the worker remembers it
    to begin. A job whose parameters this version cannot read is failed, so that it does not block its line.
    """
    models, job_classes = tuple(models), tuple(job_classes)
    for model in _by_turn(database, models, lines):
        looks = [] if num_held else [_reserved(worker_id, models)]
        for job_class in job_classes:
            begins_at = -1.0 if whole_line else lines.of(model, job_class).begins_at
            # A line that seems empty is looked at from its very front before the next class has its turn.
            for start_tag in sorted({begins_at, -1.0}, reverse=True):
                looks.append(_front_id(model, job_class, start_tag, is_empty=num_held == 0))
        while found := _claim_first(database, looks, worker_id, num_held, lease_seconds):
            lines.passed(found.model, found.job_class, found.start_tag)
            if claimed := _read(database, found):
                return claimed
        lines.forget(model)
    return None


def _by_turn(database: Database, models: tuple[str, ...], lines: Lines) -> tuple[str, ...]:
    """The models in whose line somebody waits: interactive fronts first, then the model served longest ago."""
    if len(models) < 2:
        return models
    with database.read() as session:
        fronts = [(model, session.execute(_front(model)).one_or_none()) for model in models]
    waiting = [(front.job_class, lines.turn_of(model), front.queued_at, model) for model, front in fronts if front]
    return tuple(model for *_, model in sorted(waiting))


def _front(model: str) -> Any:
    columns = (Job.job_class, Job.queued_at)
    return select(*columns).where(QUEUED, Job.model == model).order_by(Job.job_class, Job.start_tag, Job.id).limit(1)


def _claim_first(
    database: Database,
    looks: list[ScalarSelect[UUID]],
    worker_id: str,
    num_held: int,
    lease_seconds: float,
) -> _Found | None:
    """Claim what the first look that finds something finds; the databases do not even begin the looks after it.

    The look has locked the job as queued. Saying so again would offer the planner the index of the whole queue.
    """
    statement = (
        update(Job)
        .where(Job.id == func.coalesce(*looks, null()), Job.lease_expires_at.is_(None))
        .values(
            state=JobState.RUNNING,
            attempt=Job.attempt + 1,
            worker_id=worker_id,
            lease_expires_at=now(lease_seconds),
            started_at=now(),
            is_alone=num_held == 0,
            solo_worker_id=None,
            solo_reserved_until=None,
            event_seq=Job.event_seq + 1,
        )
        .returning(Job, _seconds_left(database))
        .execution_options(synchronize_session=False)
    )
    with database.write() as session:
        row = session.execute(statement).one_or_none()
        if row is None:
            return None
        job, seconds_left = row
        if num_held:
            session.execute(update(Job).where(RUNNING, Job.worker_id == worker_id, Job.is_alone).values(is_alone=False))
        payload = {"attempt": job.attempt, "worker": worker_id}
        events.append(session, job.id, seq=job.event_seq, type=JobState.RUNNING, payload=payload)
        found = _Found(
            job_id=job.id,
            owner=job.owner,
            model=job.model,
            job_class=JobClass(job.job_class),
            params=job.params,
            attempt=job.attempt,
            is_solo=job.is_solo,
            seconds_left=float(seconds_left),
            start_tag=job.start_tag,
        )
    logger.info("job_claimed", job_id=str(found.job_id), attempt=found.attempt, worker=worker_id)
    return found


def _read(database: Database, found: _Found) -> Claim | None:
    try:
        params = GenerationParams.model_validate(found.params)
    except ValidationError:
        message = "this version of the worker cannot read the job's parameters"
        fail(database, found.job_id, attempt=found.attempt, code="unreadable-parameters", message=message)
        return None
    return Claim(
        job_id=found.job_id,
        owner=found.owner,
        model=found.model,
        job_class=found.job_class,
        params=params,
        attempt=found.attempt,
        is_solo=found.is_solo,
        seconds_left=found.seconds_left,
    )


def _front_id(model: str, job_class: JobClass, begins_at: float, *, is_empty: bool) -> ScalarSelect[UUID]:
    front = select(Job.id).where(QUEUED, Job.model == model, Job.job_class == job_class, Job.start_tag >= begins_at)
    if not is_empty:
        front = front.where(~Job.is_solo)
    return front.order_by(Job.start_tag, Job.id).limit(1).with_for_update(skip_locked=True).scalar_subquery()


def _reserved(worker_id: str, models: tuple[str, ...]) -> ScalarSelect[UUID]:
    """The suspect that this worker has run empty for, wherever it stands in its line."""
    mine = and_(Job.solo_worker_id == worker_id, Job.solo_reserved_until >= now())
    suspect = select(Job.id).where(QUEUED, SUSPECT, Job.model.in_(models), mine)
    return suspect.order_by(Job.queued_at).limit(1).with_for_update(skip_locked=True).scalar_subquery()


def _seconds_left(database: Database) -> ColumnElement[float]:
    if database.is_sqlite:
        return (func.julianday(Job.deadline_at) - func.julianday("now")) * 86400.0
    return cast(func.extract("epoch", Job.deadline_at - now()), Float)


def front_of_queue(database: Database, *, model: str, limit: int) -> list[UUID]:
    """The first jobs in a model's line: whom to ring for."""
    with database.read() as session:
        line = select(Job.id).where(QUEUED, Job.model == model)
        return list(session.scalars(line.order_by(Job.job_class, Job.start_tag, Job.id).limit(limit)))


_MINE = aliased(Job)
_AHEAD = (
    select(func.count())
    .select_from(Job)
    .where(
        QUEUED,
        Job.model == _MINE.model,
        tuple_(Job.job_class, Job.start_tag, Job.id) < tuple_(_MINE.job_class, _MINE.start_tag, _MINE.id),
    )
    .correlate(_MINE)
    .scalar_subquery()
)
_POSITION = select(case((_MINE.state == JobState.QUEUED, _AHEAD)).label("position"))
_PLACE = _POSITION.where(_MINE.id == bindparam("job_id"))
_GLIMPSE = _POSITION.add_columns(_MINE.event_seq, _MINE.state).where(
    _MINE.id == bindparam("job_id"), _MINE.owner == bindparam("owner")
)


def position(database: Database, job_id: UUID) -> int | None:
    """How many queued jobs of its model are claimed before this one; None when it does not wait."""
    with database.look() as connection:
        return connection.scalar(_PLACE, {"job_id": job_id})


@dataclass(frozen=True)
class Glimpse:
    """What tells whether a job has changed: the number of its last event, its state, and its place while it waits."""

    event_seq: int
    state: JobState
    position: int | None


def glimpse(database: Database, job_id: UUID, *, owner: str) -> Glimpse:
    """Look only whether an owner's job has changed, in one narrow statement. Raises JobNotFound."""
    with database.look() as connection:
        found = connection.execute(_GLIMPSE, {"job_id": job_id, "owner": owner}).one_or_none()
    if found is None:
        raise JobNotFound(job_id)
    return Glimpse(found.event_seq, JobState(found.state), found.position)
