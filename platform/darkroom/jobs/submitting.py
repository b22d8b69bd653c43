"""Into the queue: one job, or many in one transaction, each at its fair place; and the same request only once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

import structlog
import uuid_utils.compat
from sqlalchemy import Float, String, and_, bindparam, delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from darkroom import events
from darkroom.db import Database, now, table_of
from darkroom.errors import BatchNotFound, JobStillLive, RequestDiffers
from darkroom.jobs.admission import admit
from darkroom.jobs.inputs import check_inputs, input_keys
from darkroom.jobs.reading import get
from darkroom.jobs.records import BatchRecord, JobRecord, job_record
from darkroom.models import (
    LIVE_STATES,
    QUEUED,
    SERVED,
    UNFINISHED,
    Batch,
    IdempotentRequest,
    Job,
    JobClass,
    JobInput,
    JobState,
)
from darkroom.params import GenerationParams, cost

logger = structlog.get_logger(__name__)

REQUEST_LIFE_SECONDS = 86400.0
# What is said of a new job, beside its place and its times.
GIVEN = (
    *("id", "owner", "key_id", "model", "params", "state", "job_class"),
    *("client_metadata", "webhook", "retention_seconds", "retry_of", "event_seq"),
)
HOLD = select(func.pg_advisory_xact_lock(func.hashtextextended(bindparam("line", type_=String()), 0)))
# The columns' own defaults are left out of a statement that inserts into two tables.
FRESH: Mapping[str, Any] = {
    "attempt": 0,
    "is_alone": False,
    "crashes": 0,
    "shared_crashes": 0,
    "is_solo": False,
    "timings": {},
}


@dataclass(frozen=True)
class NewJob:
    """What a job is made of. `ttl_seconds` from now it expires unless it is done; it is kept `retention_seconds`."""

    model: str
    params: GenerationParams
    job_class: JobClass
    ttl_seconds: float
    metadata: Mapping[str, Any] | None = None
    webhook: Mapping[str, Any] | None = None
    retention_seconds: float | None = None
    retry_of: UUID | None = None


@dataclass(frozen=True)
class Request:
    """A submission that its sender may repeat: the key it was given, and the digest of all that was asked.

    With `is_new` its sender says that this is no repetition: whatever the key made before, it makes another now.
    """

    key: str
    sha256: str
    is_new: bool = False


def submit(
    database: Database,
    new: NewJob,
    *,
    owner: str,
    weight: float = 1.0,
    key_id: UUID | None = None,
    request: Request | None = None,
) -> JobRecord:
    """Queue a job and commit it; `weight` is its owner's share. A request that came before gets the job it made then.

    Raises IntakePaused, KeyRevoked or QuotaExceeded, InputGone, RequestDiffers, or JobNotFound if the job that the
    request made is gone; and then stores nothing.
    """
    job_id = uuid_utils.compat.uuid7()
    with database.write() as session:
        made_id = _settle(session, owner, request, job_id)
        if made_id == job_id:
            admit(session, key_id=key_id, cost=cost(new.params))
            hold_line(session, owner, new.model, new.job_class)
            record = _insert(session, job_id, new, {**_values(new, owner, key_id), "cost": cost(new.params) / weight})
            _need_inputs(session, owner, {job_id: new})
    if made_id != job_id:
        return get(database, made_id, owner=owner)
    names = {"owner": owner, "model": new.model, "job_class": new.job_class.name.lower()}
    logger.info("job_queued", job_id=str(job_id), **names)
    return record


def submit_batch(
    database: Database,
    new: Sequence[NewJob],
    *,
    owner: str,
    weight: float = 1.0,
    key_id: UUID | None = None,
    request: Request | None = None,
) -> BatchRecord:
    """Queue many jobs in one transaction, all or none, under one id. Raises as `submit` does, or BatchNotFound."""
    batch_id = uuid_utils.compat.uuid7()
    # In the order of their ids, so that whoever reads them finds them in the order of the request.
    made = dict(zip(sorted(uuid_utils.compat.uuid7() for _ in new), new, strict=True))
    with database.write() as session:
        made_id = _settle(session, owner, request, batch_id)
        if made_id == batch_id:
            total = sum(cost(each.params) for each in new)
            admit(session, key_id=key_id, cost=total, num_jobs=len(new))
            session.execute(insert(Batch).values(id=batch_id, owner=owner, num_jobs=len(new)))
            _insert_all(session, made, owner, key_id, weight, batch_id)
            _need_inputs(session, owner, made)
    if made_id == batch_id:
        logger.info("batch_queued", batch_id=str(batch_id), owner=owner, num_jobs=len(new))
    return get_batch(database, made_id, owner=owner)


def find_made(database: Database, request: Request, *, owner: str) -> UUID | None:
    """What an earlier request with this key made, if one did within its life. Raises RequestDiffers."""
    if request.is_new:
        return None
    with database.read() as session:
        return _made_before(session, owner, request)


def retry(
    database: Database,
    job_id: UUID,
    *,
    owner: str,
    ttl_seconds: float,
    job_class: JobClass | None = None,
    weight: float = 1.0,
    key_id: UUID | None = None,
) -> JobRecord:
    """Submit an ended job once more, as a new job that names it, in its class or another.

    Raises JobNotFound, JobStillLive or as `submit`.
    """
    ended = get(database, job_id, owner=owner)
    if ended.state in LIVE_STATES:
        raise JobStillLive(job_id, ended.state)
    again = NewJob(
        ended.model,
        ended.params,
        ended.job_class if job_class is None else job_class,
        ttl_seconds,
        metadata=ended.metadata,
        webhook=ended.webhook,
        retention_seconds=ended.retention_seconds,
        retry_of=job_id,
    )
    return submit(database, again, owner=owner, weight=weight, key_id=key_id)


def get_batch(database: Database, batch_id: UUID, *, owner: str) -> BatchRecord:
    """Read how far a batch is. Raises BatchNotFound, also for somebody else's."""
    mine = select(Batch).where(Batch.id == batch_id, Batch.owner == owner)
    by_state = select(Job.state, func.count()).where(Job.batch_id == batch_id, Job.owner == owner).group_by(Job.state)
    with database.read() as session:
        batch = session.scalar(mine)
        if batch is None:
            raise BatchNotFound(batch_id)
        states = {JobState(state): num for state, num in session.execute(by_state)}
        return BatchRecord(batch.id, batch.owner, batch.num_jobs, batch.created_at, states)


def batch_job_ids(database: Database, batch_id: UUID, *, owner: str) -> list[UUID]:
    """The jobs of a batch that are left, in the order in which they were asked for."""
    mine = select(Job.id).where(Job.batch_id == batch_id, Job.owner == owner)
    with database.read() as session:
        return list(session.scalars(mine.order_by(Job.id)))


def forget_requests(database: Database) -> None:
    """Forget the requests that nobody repeats any more."""
    with database.write() as session:
        old = IdempotentRequest.created_at < now(-REQUEST_LIFE_SECONDS)
        session.execute(delete(IdempotentRequest).where(old))


def _settle(session: Session, owner: str, request: Request | None, new_id: UUID) -> UUID:
    """Say what a request makes: `new_id`, or what it made before. Of equal ones at once, the others wait for the first.

    Raises RequestDiffers.
    """
    if request is None:
        return new_id
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    row = {"sha256": request.sha256, "made_id": new_id, "created_at": now()}
    statement = (
        dialect.insert(IdempotentRequest)
        .values(owner=owner, key=request.key, **row)
        .on_conflict_do_update(
            index_elements=["owner", "key"],
            set_=row,
            where=None if request.is_new else IdempotentRequest.created_at < now(-REQUEST_LIFE_SECONDS),
        )
        .returning(IdempotentRequest.made_id)
    )
    made_id = session.scalar(statement)
    return made_id or _made_before(session, owner, request) or new_id


def _made_before(session: Session, owner: str, request: Request) -> UUID | None:
    lives = IdempotentRequest.created_at >= now(-REQUEST_LIFE_SECONDS)
    columns = select(IdempotentRequest.sha256, IdempotentRequest.made_id)
    mine = columns.where(IdempotentRequest.owner == owner, IdempotentRequest.key == request.key, lives)
    found = session.execute(mine).one_or_none()
    if found is None:
        return None
    if found.sha256 != request.sha256:
        raise RequestDiffers(request.key)
    made_id: UUID = found.made_id
    return made_id


def _insert_all(
    session: Session, made: Mapping[UUID, NewJob], owner: str, key_id: UUID | None, weight: float, batch_id: UUID
) -> None:
    """Insert many jobs and their first events. A line's start tag is looked up once, however many jobs join it."""
    rows: dict[UUID, dict[str, Any]] = {}
    # The lines in one order for everybody: no two batches wait for each other's.
    for model, job_class in sorted({(new.model, new.job_class) for new in made.values()}):
        start_tag = start_tag_of(session, owner, model, job_class)
        for job_id, new in made.items():
            if (new.model, new.job_class) != (model, job_class):
                continue
            place = _place(new, start_tag, weight)
            # Behind a job of one's own, it decides: its finish tag is greater than all that the line has seen.
            start_tag = place["finish_tag"]
            rows[job_id] = {"id": job_id, "batch_id": batch_id, **_values(new, owner, key_id), **place}
    for ttl_seconds in {new.ttl_seconds for new in made.values()}:
        group = [rows[job_id] for job_id, new in made.items() if new.ttl_seconds == ttl_seconds]
        session.execute(insert(table_of(Job)).values(deadline_at=now(ttl_seconds)).inline(), group)
    events.append_first(session, batch_id, made, type=JobState.QUEUED)


def _insert(session: Session, job_id: UUID, new: NewJob, values: Mapping[str, Any]) -> JobRecord:
    """Insert a job at its place in the line, and its first event."""
    connection = session.connection()
    is_postgresql = connection.dialect.name == "postgresql"
    given = {**FRESH, **values, "id": job_id, "ttl_seconds": new.ttl_seconds}
    parameters = {f"new_{name}": value for name, value in given.items()}
    job: Any = connection.execute(_insertion(is_postgresql=is_postgresql), parameters).one()
    if is_postgresql:
        events.note_moved(session, job_id)
    else:
        events.append(session, job_id, seq=1, type=JobState.QUEUED, payload={})
    return job_record(job, images=())


@cache
def _insertion(*, is_postgresql: bool) -> Any:
    """The statement that submits: built once, because building it takes longer than executing it.

    On PostgreSQL it has the event in it: others wait for this transaction, and each round trip is time they wait.
    """
    table: Any = Job.__table__
    new = {name: bindparam(f"new_{name}", type_=table.c[name].type) for name in (*GIVEN, *FRESH)}
    tag = _start_tag(new["owner"], new["model"], new["job_class"], is_postgresql=is_postgresql)
    statement = insert(table).values(
        **new,
        start_tag=tag,
        finish_tag=tag + bindparam("new_cost", type_=Float()),
        created_at=now(),
        queued_at=now(),
        deadline_at=now(bindparam("new_ttl_seconds", type_=Float())),
    )
    if is_postgresql:
        event = events.line(new["id"], seq=1, type=JobState.QUEUED, payload={}, is_postgresql=True)
        statement = statement.add_cte(event.cte("event"))
    return statement.returning(*table.c)


def _values(new: NewJob, owner: str, key_id: UUID | None) -> dict[str, Any]:
    return {
        "owner": owner,
        "key_id": key_id,
        "model": new.model,
        "params": new.params.model_dump(mode="json"),
        "state": JobState.QUEUED,
        "job_class": new.job_class,
        "client_metadata": new.metadata,
        "webhook": new.webhook,
        "retention_seconds": new.retention_seconds,
        "retry_of": new.retry_of,
        "event_seq": 1,
    }


def _place(new: NewJob, start_tag: float, weight: float) -> dict[str, float]:
    return {"start_tag": start_tag, "finish_tag": start_tag + cost(new.params) / weight}


def _need_inputs(session: Session, owner: str, made: Mapping[UUID, NewJob]) -> None:
    """Keep what jobs begin from until they have ended. Raises InputGone for what is not there any more."""
    needs = [
        {"job_id": job_id, "key": key} for job_id, new in made.items() for key in dict.fromkeys(input_keys(new.params))
    ]
    if needs:
        check_inputs(session, {str(need["key"]) for need in needs}, owner=owner)
        session.execute(insert(JobInput), needs)


def start_tag_of(session: Session, owner: str, model: str, job_class: JobClass) -> float:
    """The tag at which an owner's next job joins a line, which is held until the transaction ends."""
    hold_line(session, owner, model, job_class)
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    return session.scalars(select(_start_tag(owner, model, job_class, is_postgresql=is_postgresql))).one()


def hold_line(session: Session, owner: str, model: str, job_class: JobClass) -> None:
    """Let no other submit of this owner join the line meanwhile: both would take one tag, and two places in one turn.

    A statement of its own: the next one must see what the other submit has committed.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.connection().execute(HOLD, {"line": f"{owner}\n{model}\n{job_class}"})


def _start_tag(owner: Any, model: Any, job_class: Any, *, is_postgresql: bool) -> ColumnElement[float]:
    """Start-time fair queueing (Goyal, Vin & Cheng 1996, eq. 1-2): S = max(v, the owner's last finish tag).

    v, the virtual time, is the start tag of the front job that nobody has claimed yet. A job that came back has a tag
    of long ago: who took that as the time would pass everybody who waits. When no such job is queued, v is the greatest
    tag that was ever claimed: a line that ran empty goes on where it was, so that no worker's memory of it (jobs.line)
    is ahead of what is queued next. Nothing is stored per owner; tags of different lines are never compared.
    """
    line = and_(Job.model == model, Job.job_class == job_class)
    front = (
        select(Job.start_tag)
        .where(QUEUED, line, Job.attempt == 0)
        .order_by(Job.start_tag, Job.id)
        .limit(1)
        .scalar_subquery()
    )
    served = select(Job.start_tag).where(SERVED, line).order_by(Job.start_tag.desc()).limit(1).scalar_subquery()
    share = (
        select(Job.finish_tag)
        .where(UNFINISHED, Job.owner == owner, line)
        .order_by(Job.finish_tag.desc())
        .limit(1)
        .scalar_subquery()
    )
    greatest = func.greatest if is_postgresql else func.max
    tag: ColumnElement[float] = greatest(func.coalesce(front, served, 0.0), func.coalesce(share, 0.0))
    return tag
