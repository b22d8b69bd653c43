"""Into the queue: one job, or many in one transaction, each at its fair place; and the same request only once."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from functools import cache
from typing import Any, NoReturn
from uuid import UUID

import structlog
import uuid_utils.compat
from sqlalchemy import (
    JSON,
    Float,
    String,
    Text,
    and_,
    bindparam,
    cast,
    column,
    delete,
    exists,
    func,
    insert,
    literal_column,
    select,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from darkroom import events, intake
from darkroom.db import Database, now
from darkroom.errors import BatchNotFound, IntakePaused, JobStillLive, RequestDiffers
from darkroom.jobs.admission import admit
from darkroom.jobs.inputs import check_inputs, input_keys
from darkroom.jobs.reading import get
from darkroom.jobs.records import MOST_COUNTED, BatchRecord, JobRecord
from darkroom.models import (
    LIVE_STATES,
    QUEUED,
    SERVED,
    UNFINISHED,
    Batch,
    IdempotentRequest,
    Intake,
    Job,
    JobClass,
    JobInput,
    JobState,
)
from darkroom.params import GenerationParams, cost

logger = structlog.get_logger(__name__)

REQUEST_LIFE_SECONDS = 86400.0
# What is said of a new job as it is, and what as JSON; and what is needed of its row afterwards.
GIVEN = ("id", "owner", "key_id", "model", "job_class", "retention_seconds", "retry_of")
DOCUMENTS = ("params", "client_metadata", "webhook")
TOLD = ("id", "event_seq", "model", "job_class", "start_tag", "created_at", "deadline_at")
HOLD = select(func.pg_advisory_xact_lock(func.hashtextextended(bindparam("line", type_=String()), 0)))
# What every job begins with, as the statement itself says it.
FRESH: Mapping[str, str] = {
    "state": f"'{JobState.QUEUED}'",
    "event_seq": "1",
    "attempt": "0",
    "is_alone": "false",
    "crashes": "0",
    "shared_crashes": "0",
    "is_solo": "false",
    "timings": "'{}'",
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
    values = _values(job_id, new, owner=owner, weight=weight, key_id=key_id)
    if not (database.is_sqlite or request or key_id or input_keys(new.params)):
        record = _record(job_id, new, owner, _submit_in_one_trip(database, values))
    else:
        with database.write() as session:
            made_id = _settle(session, owner, request, job_id)
            if made_id == job_id:
                admit(session, key_id=key_id, cost=cost(new.params))
                hold_line(session, owner, new.model, new.job_class)
                record = _record(job_id, new, owner, _insert(session, values))
                _need_inputs(session, owner, {job_id: new})
        if made_id != job_id:
            return get(database, made_id, owner=owner)
    names = {"owner": owner, "model": new.model, "job_class": new.job_class.name.lower()}
    logger.info("job_queued", job_id=str(job_id), **names)
    return record


def _submit_in_one_trip(database: Database, values: Mapping[str, Any]) -> Any:
    """Submit where nothing is to be asked before: whether the intake is open is asked by the statement itself."""
    line = {"line": _line(values["owner"], values["model"], JobClass(values["job_class"]))}
    rows = database.in_one_trip((HOLD, line), (_insertion(is_postgresql=True), values))
    if not rows:
        with database.read() as session:
            _refuse(session)
    events.tell(database, [values["id"]])
    return rows[0]


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
            stored = insert(Batch).values(id=batch_id, owner=owner, num_jobs=len(new)).returning(Batch.created_at)
            created_at = session.execute(stored).scalar_one()
            _insert_all(session, made, owner, key_id, weight, batch_id)
            _need_inputs(session, owner, made)
    if made_id != batch_id:
        return get_batch(database, made_id, owner=owner)
    logger.info("batch_queued", batch_id=str(batch_id), owner=owner, num_jobs=len(new))
    return BatchRecord(batch_id, owner, len(new), created_at, {JobState.QUEUED: len(new)}, tuple(made))


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
    rows: list[dict[str, Any]] = []
    # The lines in one order for everybody: no two batches wait for each other's.
    for model, job_class in sorted({(new.model, new.job_class) for new in made.values()}):
        start_tag = start_tag_of(session, owner, model, job_class)
        for job_id, new in made.items():
            if (new.model, new.job_class) != (model, job_class):
                continue
            row = _values(job_id, new, owner=owner, weight=weight, key_id=key_id)
            finish_tag = start_tag + row.pop("cost")
            rows.append(row | {"batch_id": batch_id, "start_tag": start_tag, "finish_tag": finish_tag})
            # Behind a job of one's own, it decides: its finish tag is greater than all that the line has seen.
            start_tag = finish_tag
    rows.sort(key=lambda row: row["id"])
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        text = json.dumps(rows, default=str)
        connection.execute(_insertion_of_many(is_postgresql=True), {"rows": text})
        events.note_all_moved(session, made)
        return
    connection.execute(_insertion_of_many(is_postgresql=False), rows)
    events.append_first(session, batch_id, made, type=JobState.QUEUED)


@cache
def _insertion_of_many(*, is_postgresql: bool) -> Any:
    """The statement that stores jobs whose places are known; on PostgreSQL all of them at once, with their events."""
    table: Any = Job.__table__
    names = (*GIVEN, *DOCUMENTS, "batch_id", "start_tag", "finish_tag")
    types: dict[str, Any] = {name: table.c[name].type for name in names}
    types |= dict.fromkeys(DOCUMENTS, Text()) | {"ttl_seconds": Float()}
    rows = func.json_to_recordset(cast(bindparam("rows", type_=Text()), JSON()))
    row: Any = (
        rows.table_valued(*(column(name, each) for name, each in types.items()))
        .render_derived(name="rows", with_types=True)
        .c
        if is_postgresql
        else {name: bindparam(name, type_=each) for name, each in types.items()}
    )
    columns = {
        **{name: row[name] for name in names},
        **{name: literal_column(text) for name, text in FRESH.items()},
        "created_at": now(),
        "queued_at": now(),
        "deadline_at": now(row["ttl_seconds"]),
    }
    if not is_postgresql:
        return insert(table).values(columns).inline()
    columns |= {name: cast(columns[name], JSON()) for name in DOCUMENTS}
    insertion = insert(table).from_select(list(columns), select(*columns.values()), include_defaults=False)
    new = insertion.returning(table.c.id, table.c.event_seq).cte("new")
    event = events.lines_of(new, type=JobState.QUEUED, payload=literal_column("'{}'")).cte("event")
    return select(func.count()).select_from(new).add_cte(event)


def _insert(session: Session, values: Mapping[str, Any]) -> Any:
    """Insert a job at its place in the line, and its first event."""
    connection = session.connection()
    is_postgresql = connection.dialect.name == "postgresql"
    row = connection.execute(_insertion(is_postgresql=is_postgresql), values).one_or_none()
    if row is None:
        _refuse(session)
    if is_postgresql:
        events.note_moved(session, values["id"])
    else:
        events.append(session, values["id"], seq=1, type=JobState.QUEUED, payload={})
    return row


def _refuse(session: Session) -> NoReturn:
    """Say why nothing was stored: jobs were not taken at that moment."""
    intake.check(session)
    raise IntakePaused("it was paused until just now")


@cache
def _insertion(*, is_postgresql: bool) -> Any:
    """The statement that submits: built once, because building it takes longer than executing it.

    It stores nothing while no jobs are taken. On PostgreSQL it has the event in it: others wait for this transaction,
    and each round trip is time they wait.
    """
    table: Any = Job.__table__
    given: dict[str, Any] = {name: bindparam(name, type_=table.c[name].type) for name in GIVEN}
    given |= {name: _json(name, is_postgresql=is_postgresql) for name in DOCUMENTS}
    fresh: dict[str, Any] = {name: literal_column(text) for name, text in FRESH.items()}
    tag = _start_tag(given["owner"], given["model"], given["job_class"], is_postgresql=is_postgresql)
    place = select(tag.label("tag")).cte("place").prefix_with("MATERIALIZED", dialect="postgresql")
    columns = {
        **given,
        **fresh,
        "start_tag": place.c.tag,
        "finish_tag": place.c.tag + bindparam("cost", type_=Float()),
        "created_at": now(),
        "queued_at": now(),
        "deadline_at": now(bindparam("ttl_seconds", type_=Float())),
    }
    row = select(*columns.values()).select_from(place).where(~exists(select(Intake.id)))
    insertion = insert(table).from_select(list(columns), row, include_defaults=False)
    if not is_postgresql:
        return insertion.returning(table.c.created_at, table.c.deadline_at)
    new = insertion.returning(*(table.c[name] for name in TOLD)).cte("new")
    event = events.lines_of(new, type=JobState.QUEUED, payload=literal_column("'{}'")).cte("event")
    ahead = select(Job.id).where(
        QUEUED,
        Job.model == new.c.model,
        tuple_(Job.job_class, Job.start_tag, Job.id) < tuple_(new.c.job_class, new.c.start_tag, new.c.id),
    )
    counted = select(func.count()).select_from(ahead.correlate(new).limit(MOST_COUNTED + 1).subquery())
    return select(new.c.created_at, new.c.deadline_at, counted.scalar_subquery()).add_cte(event)


def _json(name: str, *, is_postgresql: bool) -> Any:
    """A document that is written already: the row takes the text as it is."""
    return cast(bindparam(name, type_=Text()), JSON()) if is_postgresql else bindparam(name, type_=Text())


def _values(job_id: UUID, new: NewJob, *, owner: str, weight: float, key_id: UUID | None) -> dict[str, Any]:
    """What `_insertion` is executed with, as both drivers know it."""
    return {
        "id": job_id,
        "owner": owner,
        "key_id": key_id,
        "model": new.model,
        "params": new.params.model_dump_json(),
        "job_class": int(new.job_class),
        "client_metadata": None if new.metadata is None else json.dumps(new.metadata),
        "webhook": None if new.webhook is None else json.dumps(new.webhook),
        "retention_seconds": new.retention_seconds,
        "retry_of": new.retry_of,
        "cost": cost(new.params) / weight,
        "ttl_seconds": new.ttl_seconds,
    }


def _record(job_id: UUID, new: NewJob, owner: str, row: Any) -> JobRecord:
    """A job as whoever reads it now finds it."""
    created_at, deadline_at, *counted = row
    return JobRecord(
        id=job_id,
        owner=owner,
        model=new.model,
        state=JobState.QUEUED,
        job_class=new.job_class,
        params=new.params,
        attempt=0,
        crashes=0,
        worker_id=None,
        created_at=created_at.astimezone(UTC),
        started_at=None,
        finished_at=None,
        deadline_at=deadline_at.astimezone(UTC),
        error_code=None,
        error_message=None,
        retry_of=new.retry_of,
        timings={},
        metadata=new.metadata,
        webhook=new.webhook,
        batch_id=None,
        retention_seconds=new.retention_seconds,
        walk_key=None,
        event_seq=1,
        images=(),
        num_ahead=counted[0] if counted else None,
    )


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


def num_ahead_of_next(database: Database, *, owner: str, model: str, job_class: JobClass) -> int:
    """How many queued jobs would go before an owner's next one, counted no further than just beyond MOST_COUNTED.

    Holds no line: whoever submits meanwhile may come before it, or be the one it is told of.
    """
    start_tag = select(_start_tag(owner, model, job_class, is_postgresql=not database.is_sqlite)).scalar_subquery()
    place = tuple_(Job.job_class, Job.start_tag) <= tuple_(int(job_class), start_tag)
    ahead = select(Job.id).where(QUEUED, Job.model == model, place).limit(MOST_COUNTED + 1)
    with database.look() as connection:
        return connection.scalar(select(func.count()).select_from(ahead.subquery())) or 0


def hold_line(session: Session, owner: str, model: str, job_class: JobClass) -> None:
    """Let no other submit of this owner join the line meanwhile: both would take one tag, and two places in one turn.

    A statement of its own: the next one must see what the other submit has committed.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.connection().execute(HOLD, {"line": _line(owner, model, job_class)})


def _line(owner: str, model: str, job_class: JobClass) -> str:
    return f"{owner}\n{model}\n{job_class}"


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
