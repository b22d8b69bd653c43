"""A job's history in SQL, and its lossy signals in Redis. Decides no state.

The history is complete and ordered: page, poll and stream read this one log. The signals (how far a picture has come,
"stop now") may be lost at any time, and nothing depends on them.
"""

import json
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

import redis
import structlog
from sqlalchemy import (
    JSON,
    BigInteger,
    Insert,
    Integer,
    String,
    Text,
    bindparam,
    cast,
    func,
    insert,
    literal,
    literal_column,
    select,
    text,
    tuple_,
)
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import FromClause

from darkroom.brokers import REDIS_REST_SECONDS, LossyRedis
from darkroom.db import Database, now, table_of
from darkroom.models import Job, JobEvent

logger = structlog.get_logger(__name__)

PROGRESS_LIFE_SECONDS = 60
PROGRESS_KEY = "darkroom:progress:{job_id}"
CANCEL_CHANNEL = "darkroom:cancel"
# Where a transaction notes in its session's `info` which jobs have moved in it.
MOVED = "darkroom.moved"


@dataclass(frozen=True, order=True)
class Cursor:
    """A place in the order of all events."""

    xid: int = 0
    position: int = 0


@dataclass(frozen=True)
class EventRecord:
    """One line of a job's history. `seq` counts from 1 within the job, `cursor` is its place among all jobs'."""

    job_id: UUID
    seq: int
    type: str
    payload: Mapping[str, Any]
    created_at: datetime
    cursor: Cursor = Cursor()


# What lies below the oldest open transaction: nothing can be added there any more.
_IS_SETTLED = text("xid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint")


def append(session: Session, job_id: UUID, *, seq: int, type: str, payload: Mapping[str, Any]) -> None:
    """Add a line to a job's history, in the transaction that makes it true."""
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    session.execute(line(job_id, seq=seq, type=type, payload=payload, is_postgresql=is_postgresql))
    note_moved(session, job_id)


def note_moved(session: Session, job_id: UUID) -> None:
    """Have it told, after the commit, that a job has moved: for who executes `line` as part of a statement."""
    session.info.setdefault(MOVED, []).append(job_id)


def note_all_moved(session: Session, job_ids: Iterable[UUID]) -> None:
    """The same for many."""
    session.info.setdefault(MOVED, []).extend(job_ids)


def tell(database: Database, job_ids: Iterable[UUID]) -> None:
    """Tell that jobs have moved: for who moves them outside `Database.write`, after that has committed."""
    database.on_commit({MOVED: list(job_ids)})


def lines_of(moved: FromClause, *, type: str, payload: ColumnElement[Any]) -> Insert:
    """What adds a line to the histories of jobs (id, event_seq) that PostgreSQL moves in the same statement."""
    told = select(moved.c.id, moved.c.event_seq, literal_column(f"'{type}'"), cast(payload, JSON()), _xid(True), now())
    names = ["job_id", "seq", "type", "payload", "xid", "created_at"]
    return insert(table_of(JobEvent)).from_select(names, told.order_by(moved.c.id))


def line(job_id: Any, *, seq: int, type: str, payload: Mapping[str, Any], is_postgresql: bool) -> Insert:
    """What `append` executes; job_id may be a bound parameter."""
    values = {"job_id": job_id, "seq": seq, "type": type, "payload": dict(payload), "xid": _xid(is_postgresql)}
    return insert(JobEvent).values(values).inline()


def _xid(is_postgresql: bool) -> Any:
    """The transaction's own number, which orders events of several jobs: see read_all."""
    return cast(cast(func.pg_current_xact_id(), Text), BigInteger) if is_postgresql else literal(0)


def append_first(session: Session, batch_id: UUID, job_ids: Iterable[UUID], *, type: str) -> None:
    """Begin the histories of a batch's jobs, which were just stored, in the order of their ids."""
    told = (literal(1), literal(type), literal({}, JSON()), _xid(session.get_bind().dialect.name == "postgresql"))
    first = select(Job.id, *told).where(Job.batch_id == batch_id).order_by(Job.id)
    session.execute(insert(JobEvent).from_select(["job_id", "seq", "type", "payload", "xid"], first))
    session.info.setdefault(MOVED, []).extend(job_ids)


def append_all(session: Session, seqs: Mapping[UUID, int], *, type: str, payload: Mapping[str, Any]) -> None:
    """Add the same line to the histories of many jobs, each under its own number."""
    rows = [{"job_id": job_id, "seq": seq, "type": type, "payload": dict(payload)} for job_id, seq in seqs.items()]
    if rows:
        xid = _xid(session.get_bind().dialect.name == "postgresql")
        session.execute(insert(table_of(JobEvent)).values(xid=xid).inline(), rows)
        session.info.setdefault(MOVED, []).extend(seqs)


def read(database: Database, job_id: UUID, *, after: int = 0) -> list[EventRecord]:
    """Read one job's history after line `after`, oldest first."""
    with database.read() as session:
        rows = session.scalars(
            select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > after).order_by(JobEvent.seq)
        )
        return [_record(row) for row in rows]


def read_many(database: Database, after: Mapping[UUID, int]) -> list[EventRecord]:
    """Read the histories of several jobs, each after a line of its own, oldest first."""
    if not after:
        return []
    lines = select(JobEvent).where(JobEvent.job_id.in_(list(after)), JobEvent.seq > min(after.values()))
    with database.read() as session:
        rows = session.scalars(lines.order_by(JobEvent.job_id, JobEvent.seq))
        return [_record(row) for row in rows if row.seq > after[row.job_id]]


def last_seqs(database: Database, job_ids: Collection[UUID]) -> dict[UUID, int]:
    """How many lines the history of each of these jobs has. A job that is gone is left out."""
    if not job_ids:
        return {}
    with database.read() as session:
        found = session.execute(select(Job.id, Job.event_seq).where(Job.id.in_(list(job_ids))))
        return {job_id: seq for job_id, seq in found}


def end(database: Database) -> Cursor:
    """The place behind everything that read_all would read now."""
    with database.read() as session:
        last = select(JobEvent.xid, JobEvent.position).order_by(JobEvent.xid.desc(), JobEvent.position.desc()).limit(1)
        row = session.execute(last if database.is_sqlite else last.where(_IS_SETTLED)).one_or_none()
        return Cursor(*row) if row else Cursor()


def is_behind(xid: Any, position: Any, *, is_postgresql: bool) -> ColumnElement[bool]:
    """That a line lies behind a place in the order of all events, said so that an index leads there.

    On SQLite every xid is 0, and its planner would use no more than that of the pair.
    """
    line = table_of(JobEvent).c
    is_later: ColumnElement[bool] = line.position > position
    return tuple_(line.xid, line.position) > tuple_(xid, position) if is_postgresql else is_later


def read_all(
    database: Database, *, after: Cursor, owner: str | None = None, limit: int = 500
) -> tuple[list[EventRecord], Cursor]:
    """Read the events of all jobs (of one owner) after a place, and the place to go on from.

    Only what lies below the oldest open transaction is read, and it is read in the order of (xid, position): a
    transaction that commits late can then never slip in behind a reader.
    """
    found, cursor = read_owned(database, after=after, owner=owner, limit=limit)
    return [record for _, record in found], cursor


def read_owned(
    database: Database, *, after: Cursor, owner: str | None = None, limit: int = 500
) -> tuple[list[tuple[str, EventRecord]], Cursor]:
    """What read_all reads, each event with the owner of its job."""
    values = {"xid": after.xid, "position": after.position, "most": limit, "of_owner": owner}
    with database.look() as connection:
        rows = connection.execute(_reading(is_postgresql=not database.is_sqlite, is_owned=owner is not None), values)
        found = [(row.owner, _record(row)) for row in rows]
        return found, found[-1][1].cursor if found else after


@cache
def _reading(*, is_postgresql: bool, is_owned: bool) -> Any:
    """What read_owned executes, built once: in a busy process it is asked for dozens of times a second."""
    line, job = table_of(JobEvent).c, table_of(Job).c
    xid, position = bindparam("xid", type_=BigInteger()), bindparam("position", type_=BigInteger())
    query = select(table_of(JobEvent), job.owner).join(table_of(Job), job.id == line.job_id)
    query = query.where(is_behind(xid, position, is_postgresql=is_postgresql))
    if is_postgresql:
        query = query.where(_IS_SETTLED)
    if is_owned:
        query = query.where(job.owner == bindparam("of_owner", type_=String()))
    order = (line.xid, line.position) if is_postgresql else (line.position,)
    return query.order_by(*order).limit(bindparam("most", type_=Integer()))


def _record(row: Any) -> EventRecord:
    return EventRecord(row.job_id, row.seq, row.type, row.payload, row.created_at, Cursor(row.xid, row.position))


class ProgressBoard:
    """How far each running job has come, in Redis. Lossy, bounded in time, silent when Redis is away."""

    def __init__(self, redis_url: str) -> None:
        self._redis = LossyRedis(redis_url)

    def publish(self, progress: Mapping[UUID, Mapping[str, Any]]) -> None:
        """Write the progress of several jobs in one round trip."""
        if not progress:
            return

        def write(client: redis.Redis) -> None:
            with client.pipeline(transaction=False) as pipeline:
                for job_id, fields in progress.items():
                    pipeline.set(PROGRESS_KEY.format(job_id=job_id), json.dumps(fields), ex=PROGRESS_LIFE_SECONDS)
                pipeline.execute()

        self._redis.ask(write, None)

    def read(self, job_id: UUID) -> dict[str, Any] | None:
        """Read one job's progress, or None when there is none, it is rubbish, or Redis does not answer in time."""
        return self.read_many([job_id]).get(job_id)

    def read_many(self, job_ids: Collection[UUID]) -> dict[UUID, dict[str, Any]]:
        """Read the progress of several jobs in one round trip; those of which there is none are left out."""
        if not job_ids:
            return {}
        keys = [PROGRESS_KEY.format(job_id=job_id) for job_id in job_ids]
        nothing: list[Any] = [None] * len(keys)
        found = self._redis.ask(lambda client: client.mget(keys), nothing)
        read = {job_id: _progress(raw) for job_id, raw in zip(job_ids, found, strict=True) if raw}
        return {job_id: progress for job_id, progress in read.items() if progress}

    def announce_cancel(self, job_id: UUID) -> None:
        """Tell the worker that holds the job to stop. The heartbeat tells it too, only later."""
        self._redis.ask(lambda client: client.publish(CANCEL_CHANNEL, str(job_id)), None)


def _progress(raw: bytes) -> dict[str, Any] | None:
    """Take from Redis what has the shape of a progress, and nothing else: whoever can write there has no power here."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("stage"), str):
        return None
    counts = {name: found.get(name) for name in ("step", "num_steps")}
    return {"stage": found["stage"], **counts} if all(type(count) is int for count in counts.values()) else None


def listen_for_cancels(redis_url: str, *, on_cancel: Callable[[UUID], None], stop: threading.Event) -> None:
    """Call back for every job that was canceled, until told to stop. Reconnects for ever; misses what it misses."""
    while not stop.is_set():
        try:
            _listen_once(redis_url, on_cancel, stop)
        except (redis.RedisError, OSError) as error:
            logger.warning("cancel_channel_lost", reason=str(error))
            stop.wait(REDIS_REST_SECONDS)
        except Exception:
            logger.exception("cancel_channel_failed")
            stop.wait(REDIS_REST_SECONDS)


def _listen_once(redis_url: str, on_cancel: Callable[[UUID], None], stop: threading.Event) -> None:
    client = redis.Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=1, health_check_interval=10)
    with client, client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(CANCEL_CHANNEL)
        while not stop.is_set():
            if message := channel.get_message(timeout=0.5):
                _pass_on(message["data"], on_cancel)


def _pass_on(data: bytes, on_cancel: Callable[[UUID], None]) -> None:
    try:
        job_id = UUID(data.decode())
    except ValueError:
        logger.warning("rubbish_dropped", channel=CANCEL_CHANNEL)
        return
    try:
        on_cancel(job_id)
    except Exception:  # one job's fault: the next job's signal is still wanted
        logger.exception("cancel_failed", job_id=str(job_id))
