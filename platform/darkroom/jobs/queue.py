"""Out of the queue: claim, and a job's place until then."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

import structlog
from pydantic import ValidationError
from sqlalchemy import (
    ARRAY,
    Float,
    Integer,
    Select,
    String,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal_column,
    null,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import aliased
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import ScalarSelect

from darkroom import events
from darkroom.db import Database, now, plain, table_of
from darkroom.errors import JobNotFound
from darkroom.jobs.ending import fail
from darkroom.jobs.line import Lines
from darkroom.jobs.records import MOST_COUNTED, Claim
from darkroom.models import QUEUED, RUNNING, SUSPECT, Job, JobClass, JobState
from darkroom.params import GenerationParams

logger = structlog.get_logger(__name__)

# What of a claimed row is wanted.
CLAIMED = ("id", "owner", "model", "job_class", "params", "attempt", "is_solo", "start_tag", "event_seq")
NO_IDS: Any = literal_column("'{}'::uuid[]")
# A worker that claims another job holds none alone any more.
COMPANY: Any = (
    update(table_of(Job)).where(RUNNING, Job.worker_id == bindparam("worker", type_=String()), Job.is_alone)
).values(is_alone=False)


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
    most: int = 1,
) -> list[Claim]:
    """Take up to so many jobs from the front of a line: by class, then start tag, then id. Several models take turns.

    `num_held` is how many jobs the worker already runs; one that runs none takes a single job, which may be a suspect.
    A suspect goes only to such a worker, and before all else to the one that ran empty for it. `whole_line` looks at
    the whole line, not from where the worker remembers it to begin. A job whose parameters this version cannot read is
    failed, so that it does not block its line.
    """
    models, job_classes = tuple(models), tuple(job_classes)
    turns = _by_turn(database, models, lines)
    for model in turns:
        looks = []
        for job_class in job_classes:
            begins_at = -1.0 if whole_line else lines.of(model, job_class).begins_at
            # A line that seems empty is looked at from its very front before the next class has its turn.
            looks += [(job_class, start_tag) for start_tag in sorted({begins_at, -1.0}, reverse=True)]
        fronts: dict[str, float] = {f"class_{n}": int(job_class) for n, (job_class, _) in enumerate(looks)}
        fronts |= {f"tag_{n}": start_tag for n, (_, start_tag) in enumerate(looks)}
        values = {
            "worker": worker_id,
            "lease_seconds": lease_seconds,
            "this_model": model,
            "all_models": list(models),
            "most": most if num_held and len(turns) == 1 else 1,
            **fronts,
        }
        while found := _claim_first(database, values, num_looks=len(looks), is_empty=num_held == 0):
            for each in found:
                lines.passed(each.model, each.job_class, each.start_tag)
            if claimed := [claim for each in found if (claim := _read(database, each))]:
                return claimed
        lines.forget(model)
    return []


def _by_turn(database: Database, models: tuple[str, ...], lines: Lines) -> tuple[str, ...]:
    """The models in whose line somebody waits: interactive fronts first, then the model served longest ago."""
    if len(models) < 2:
        return models
    with database.read() as session:
        fronts = [(model, session.execute(_front_of(model)).one_or_none()) for model in models]
    waiting = [(front.job_class, lines.turn_of(model), front.queued_at, model) for model, front in fronts if front]
    return tuple(model for *_, model in sorted(waiting))


def _front_of(model: str) -> Any:
    columns = (Job.job_class, Job.queued_at)
    return select(*columns).where(QUEUED, Job.model == model).order_by(Job.job_class, Job.start_tag, Job.id).limit(1)


def _claim_first(database: Database, values: Mapping[str, Any], *, num_looks: int, is_empty: bool) -> list[_Found]:
    """Claim what the first look that finds something finds; the databases do not even begin the looks after it."""
    if database.is_sqlite:
        rows = _claim_on_sqlite(database, values, num_looks=num_looks, is_empty=is_empty)
    else:
        rows = database.in_one_trip((_claiming_and_telling(num_looks=num_looks, is_empty=is_empty), values))
        events.tell(database, [row[0] for row in rows])
    found = sorted((_found(*row) for row in rows), key=lambda each: (each.job_class, each.start_tag, each.job_id))
    for each in found:
        logger.info("job_claimed", job_id=str(each.job_id), attempt=each.attempt, worker=values["worker"])
    return found


def _found(job_id: UUID, owner: str, model: str, job_class: int, *rest: Any) -> _Found:
    """A row of CLAIMED, and behind it the seconds that are left."""
    params, attempt, is_solo, start_tag, _, seconds_left = rest
    return _Found(job_id, owner, model, JobClass(job_class), params, attempt, is_solo, float(seconds_left), start_tag)


def _claim_on_sqlite(database: Database, values: Mapping[str, Any], *, num_looks: int, is_empty: bool) -> list[Any]:
    """One after another, in one transaction: SQLite has one writer at a time, and each commit goes to the disk."""
    rows: list[Any] = []
    with database.write() as session:
        connection = session.connection()
        claiming = _claiming(num_looks=num_looks, is_empty=is_empty, is_postgresql=False)
        while len(rows) < values["most"] and (row := connection.execute(claiming, values).one_or_none()):
            rows.append(row)
            payload = {"attempt": row.attempt, "worker": values["worker"]}
            events.append(session, row.id, seq=row.event_seq, type=JobState.RUNNING, payload=payload)
        if rows and not is_empty:
            connection.execute(COMPANY, {"worker": values["worker"]})
    return rows


@cache
def _claiming_and_telling(*, num_looks: int, is_empty: bool) -> Any:
    """The whole claim in one statement of PostgreSQL: the job, its event, and that nobody else is alone any more."""
    claimed = _claiming(num_looks=num_looks, is_empty=is_empty, is_postgresql=True).cte("claimed")
    payload = func.json_build_object("attempt", claimed.c.attempt, "worker", bindparam("worker", type_=String()))
    event = events.lines_of(claimed, type=JobState.RUNNING, payload=payload).cte("event")
    statement = select(claimed).add_cte(event)
    if not is_empty:
        statement = statement.add_cte(COMPANY.where(exists(select(claimed.c.id))).cte("company"))
    return statement


@cache
def _claiming(*, num_looks: int, is_empty: bool, is_postgresql: bool) -> Any:
    """The claim's own statement: built once for each number of looks, because building it takes longer than executing.

    The look has locked the job as queued. Saying so again would offer the planner the index of the whole queue.
    """
    fronts = [_front(n, is_empty=is_empty) for n in range(num_looks)]
    table: Any = Job.__table__
    is_first: Any
    if is_empty:
        looks = [_reserved(is_postgresql=is_postgresql), *(front.limit(1).scalar_subquery() for front in fronts)]
        is_first = table.c.id == func.coalesce(*looks, null())
    elif is_postgresql:
        most = bindparam("most", type_=Integer())
        some = [func.nullif(func.array(front.limit(most).scalar_subquery()), NO_IDS) for front in fronts]
        is_first = table.c.id == func.any(func.coalesce(*some, NO_IDS))
    else:
        is_first = table.c.id == func.coalesce(*(front.limit(1).scalar_subquery() for front in fronts), null())
    return (
        update(table)
        .where(is_first, table.c.lease_expires_at.is_(None))
        .values(
            state=JobState.RUNNING,
            attempt=table.c.attempt + 1,
            worker_id=bindparam("worker", type_=String()),
            lease_expires_at=now(bindparam("lease_seconds", type_=Float())),
            started_at=now(),
            is_alone=is_empty,
            solo_worker_id=None,
            solo_reserved_until=None,
            event_seq=table.c.event_seq + 1,
        )
        .returning(*(table.c[name] for name in CLAIMED), _seconds_left(is_postgresql=is_postgresql))
    )


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


def _front(n: int, *, is_empty: bool) -> Select[Any]:
    job_class, start_tag = bindparam(f"class_{n}", type_=Integer()), bindparam(f"tag_{n}", type_=Float())
    mine = (
        Job.model == bindparam("this_model", type_=String()),
        Job.job_class == job_class,
        Job.start_tag >= start_tag,
    )
    front = select(Job.id).where(QUEUED, *mine)
    if not is_empty:
        front = front.where(~Job.is_solo)
    return front.order_by(Job.start_tag, Job.id).with_for_update(skip_locked=True)


def _reserved(*, is_postgresql: bool) -> ScalarSelect[UUID]:
    """The suspect that this worker has run empty for, wherever it stands in its line."""
    is_held: ColumnElement[bool] = (
        Job.model == func.any(bindparam("all_models", type_=ARRAY(String())))
        if is_postgresql
        else Job.model.in_(bindparam("all_models", expanding=True))
    )
    mine = and_(Job.solo_worker_id == bindparam("worker", type_=String()), Job.solo_reserved_until >= now())
    suspect = select(Job.id).where(QUEUED, SUSPECT, is_held, mine)
    return suspect.order_by(Job.queued_at).limit(1).with_for_update(skip_locked=True).scalar_subquery()


def _seconds_left(*, is_postgresql: bool) -> ColumnElement[float]:
    left: ColumnElement[float] = (
        cast(func.extract("epoch", Job.deadline_at - now()), Float)
        if is_postgresql
        else (func.julianday(Job.deadline_at) - func.julianday("now")) * 86400.0
    )
    return left.label("seconds_left")


def front_of_queue(database: Database, *, model: str, limit: int) -> list[UUID]:
    """The first jobs in a model's line: whom to ring for."""
    with database.read() as session:
        line = select(Job.id).where(QUEUED, Job.model == model)
        return list(session.scalars(line.order_by(Job.job_class, Job.start_tag, Job.id).limit(limit)))


_MINE = aliased(Job)
_THOSE_AHEAD = select(Job.id).where(
    QUEUED,
    Job.model == _MINE.model,
    tuple_(Job.job_class, Job.start_tag, Job.id)
    < tuple_(plain(_MINE.job_class), plain(_MINE.start_tag), plain(_MINE.id)),
)
_IS_QUEUED = _MINE.state == JobState.QUEUED
_ALL_AHEAD = select(func.count()).select_from(_THOSE_AHEAD.correlate(_MINE).subquery()).scalar_subquery()
_FEW_AHEAD = (
    select(func.count()).select_from(_THOSE_AHEAD.correlate(_MINE).limit(MOST_COUNTED + 1).subquery()).scalar_subquery()
)
_PLACE = select(case((_IS_QUEUED, _ALL_AHEAD))).where(_MINE.id == bindparam("job_id"))
_PLACES = select(_MINE.id, _FEW_AHEAD).where(
    plain(_MINE.state) == JobState.QUEUED, _MINE.id.in_(bindparam("job_ids", expanding=True))
)
_GLIMPSE = select(_MINE.event_seq, _MINE.state, case((_IS_QUEUED, _FEW_AHEAD))).where(
    _MINE.id == bindparam("job_id", type_=Uuid()), _MINE.owner == bindparam("owner", type_=String())
)


def position(database: Database, job_id: UUID) -> int | None:
    """How many queued jobs of its model are claimed before this one; None when it does not wait."""
    with database.look() as connection:
        return connection.scalar(_PLACE, {"job_id": job_id})


def places(database: Database, job_ids: Collection[UUID]) -> dict[UUID, int]:
    """How many are claimed before each of these jobs that waits, counted no further than just beyond MOST_COUNTED."""
    if not job_ids:
        return {}
    with database.look() as connection:
        return {job_id: num for job_id, num in connection.execute(_PLACES, {"job_ids": list(job_ids)})}


@dataclass(frozen=True)
class Glimpse:
    """What tells whether a job has changed: the number of its last event, its state, and its place while it waits.

    The place is counted no further than just beyond MOST_COUNTED.
    """

    event_seq: int
    state: JobState
    position: int | None


def glimpse(database: Database, job_id: UUID, *, owner: str) -> Glimpse:
    """Look only whether an owner's job has changed, in one narrow statement. Raises JobNotFound."""
    values = {"job_id": job_id, "owner": owner}
    if database.is_sqlite:
        with database.look() as connection:
            found = connection.execute(_GLIMPSE, values).one_or_none()
    else:
        found = next(iter(database.in_one_trip((_GLIMPSE, values))), None)
    if found is None:
        raise JobNotFound(job_id)
    event_seq, state, position = found
    return Glimpse(event_seq, JobState(state), position)
