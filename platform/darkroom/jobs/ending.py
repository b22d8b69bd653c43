"""Ending a job, or putting it back: the transitions of the one who holds it, of its owner and of an operator."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, NoReturn
from uuid import UUID

import structlog
from sqlalchemy import (
    ARRAY,
    JSON,
    Integer,
    String,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from darkroom import events
from darkroom.db import Database, now, table_of
from darkroom.errors import JobFinished, JobNotFound, StaleAttempt
from darkroom.jobs.reading import get, in_state
from darkroom.jobs.records import ImageRecord, JobRecord
from darkroom.models import FINAL_STATES, LIVE, LIVE_STATES, RUNNING, Image, Job, JobState

logger = structlog.get_logger(__name__)

# Whose an erased job is: no owner has an empty name.
NOBODY = ""
# LIVE as no index knows it, for jobs whose ids are known: PostgreSQL might read all live ones to find these.
STILL_LIVE = text("state || '' IN ('queued', 'running')")
WORDLESS = {"prompt": "", "negative_prompt": "", "init_image": None, "mask": None, "strength": None}
ERASING = (
    update(table_of(Job))
    .where(table_of(Job).c.id == bindparam("erased_id", type_=Uuid()))
    .values(
        owner=NOBODY,
        params=bindparam("wordless", type_=JSON()),
        client_metadata=None,
        webhook=None,
        error_message=None,
        delete_at=now(),
    )
)


@dataclass(frozen=True)
class Success:
    """What a worker has made of a job that it holds."""

    job_id: UUID
    attempt: int
    images: Sequence[ImageRecord]
    timings: Mapping[str, float]
    walk_key: str | None = None


def succeed(database: Database, success: Success) -> None:
    """Make a job's pictures (and its walk) visible and end it. Raises StaleAttempt, and then nothing became visible."""
    if not succeed_some(database, [success]):
        _refuse(success.job_id, success.attempt, JobState.SUCCEEDED)


def succeed_some(database: Database, successes: Sequence[Success]) -> frozenset[UUID]:
    """Do so for several jobs in one transaction. Returns those that have ended by it.

    The others are not held any more. Or, of several, somebody was just changing them: two who each wait for what the
    other has locked would wait for ever, so a group waits for nobody, and whoever is left out is to try alone.
    """
    if database.is_sqlite:
        ended = _succeed_on_sqlite(database, successes)
    else:
        statement = _succeeding(waits=len(successes) == 1)
        ended = frozenset(job_id for (job_id,) in database.in_one_trip((statement, _values_of(successes))))
        events.tell(database, ended)
    for success in successes:
        if success.job_id in ended:
            logger.info("job_succeeded", job_id=str(success.job_id), attempt=success.attempt)
    return ended


def _values_of(successes: Sequence[Success]) -> dict[str, Any]:
    """What `_succeeding` is executed with."""
    held = [
        {
            "held_id": str(each.job_id),
            "held_attempt": each.attempt,
            "new_timings": dict(each.timings),
            "new_walk_key": each.walk_key,
        }
        for each in successes
    ]
    images = [{"job_id": str(each.job_id), **vars(image)} for each in successes for image in each.images]
    return {
        "held_ids": [each.job_id for each in successes],
        "held": json.dumps(held),
        "new_images": json.dumps(images),
    }


def _succeed_on_sqlite(database: Database, successes: Iterable[Success]) -> frozenset[UUID]:
    ended: set[UUID] = set()
    pictures: list[dict[str, Any]] = []
    with database.write() as session:
        for each in successes:
            guard = and_(RUNNING, Job.id == each.job_id, Job.attempt == each.attempt)
            values = {
                "timings": dict(each.timings),
                "walk_key": each.walk_key,
                "cleanup_at": _cleanup_at(literal(each.attempt)),
            }
            if move(session, guard, JobState.SUCCEEDED, {"attempt": each.attempt}, **values):
                pictures += [{"job_id": each.job_id, **vars(image)} for image in each.images]
                ended.add(each.job_id)
        if pictures:
            session.execute(insert(Image), pictures)
    return frozenset(ended)


@cache
def _succeeding(*, waits: bool) -> Any:
    """The same in one statement of PostgreSQL, built once: the jobs, their events and their pictures."""
    table, image = table_of(Job), table_of(Image)
    shapes = {"held_id": Uuid(), "held_attempt": Integer(), "new_timings": JSON(), "new_walk_key": String()}
    given: Any = _rows_of("held", shapes)
    held_ids: Any = bindparam("held_ids", type_=ARRAY(Uuid()))
    if not waits:
        free = select(table.c.id).where(table.c.id == func.any(held_ids), RUNNING).with_for_update(skip_locked=True)
        held_ids = func.array(free.scalar_subquery())
    is_held = and_(RUNNING, table.c.id == given.c.held_id, table.c.attempt == given.c.held_attempt)
    moved: Any = (
        update(table)
        .where(table.c.id == func.any(held_ids), is_held)
        .values(
            **_moving(JobState.SUCCEEDED),
            timings=given.c.new_timings,
            walk_key=given.c.new_walk_key,
            cleanup_at=_cleanup_at(table.c.attempt),
        )
        .returning(table.c.id, table.c.event_seq, table.c.attempt)
        .cte("moved")
    )
    event = events.lines_of(moved, type=JobState.SUCCEEDED, payload=func.json_build_object("attempt", moved.c.attempt))
    names = [each.name for each in fields(ImageRecord)]
    rows = _rows_of("new_images", {"job_id": Uuid(), **{name: image.c[name].type for name in names}})
    stored = select(moved.c.id, *(rows.c[name] for name in names)).join_from(moved, rows, rows.c.job_id == moved.c.id)
    pictures = insert(image).from_select(["job_id", *names], stored)
    return select(moved.c.id).add_cte(event.cte("event"), pictures.cte("pictures"))


def _rows_of(name: str, shapes: Mapping[str, Any]) -> Any:
    """A list of objects, given as JSON text, as PostgreSQL's rows."""
    columns: Any = [column(each, kind) for each, kind in shapes.items()]
    found = func.json_to_recordset(cast(bindparam(name, type_=Text()), JSON())).table_valued(*columns)
    return found.render_derived(name=f"{name}_rows", with_types=True)


def _cleanup_at(attempt: ColumnElement[int]) -> Any:
    """Only an attempt after the first has forerunners whose objects lie about."""
    return case((attempt > 1, now()))


def fail(database: Database, job_id: UUID, *, attempt: int, code: str, message: str) -> None:
    """End a job that cannot be done. Raises StaleAttempt."""
    payload = {"attempt": attempt, "code": code, "message": message}
    with database.write() as session:
        _end_if_held(
            session, job_id, attempt, JobState.FAILED, payload, error_code=code, error_message=message, cleanup_at=now()
        )
    logger.warning("job_failed", job_id=str(job_id), attempt=attempt, code=code)


def _end_if_held(
    session: Session, job_id: UUID, attempt: int, state: JobState, payload: Mapping[str, Any], **values: Any
) -> None:
    guard = and_(RUNNING, Job.id == job_id, Job.attempt == attempt)
    if move(session, guard, state, payload, **values) is None:
        _refuse(job_id, attempt, state)


def _refuse(job_id: UUID, attempt: int, state: JobState) -> NoReturn:
    logger.warning("stale_attempt_refused", job_id=str(job_id), attempt=attempt, to=state)
    raise StaleAttempt(job_id, attempt)


def move(
    session: Session, guard: ColumnElement[bool], state: JobState, payload: Mapping[str, Any], **values: Any
) -> Job | None:
    """Change the state of the one job that the guard holds for, if it holds; with its line in the history."""
    moved = move_all(session, guard, state, payload, **values)
    return moved[0] if moved else None


def move_all(
    session: Session, guard: ColumnElement[bool], state: JobState, payload: Mapping[str, Any], **values: Any
) -> list[Job]:
    """Change the state of all jobs that the guard holds for; with a line in each history."""
    statement = (
        update(Job)
        .where(guard)
        .values(**_moving(state), **values)
        .returning(Job)
        .execution_options(synchronize_session=False)
    )
    moved = list(session.scalars(statement))
    event = "requeued" if state == JobState.QUEUED else state
    events.append_all(session, {job.id: job.event_seq for job in moved}, type=event, payload=payload)
    return moved


def _moving(state: JobState) -> dict[str, Any]:
    """What every change of a state changes with it."""
    changed: dict[str, Any] = {"state": state, "lease_expires_at": None, "event_seq": Job.event_seq + 1}
    if state in FINAL_STATES:
        changed |= {"finished_at": now(), "delete_at": now(Job.retention_seconds)}
    return changed


def cancel(database: Database, job_id: UUID, *, owner: str) -> JobRecord:
    """Call a job off, at once and for good. Again is fine. Raises JobNotFound, or JobFinished if it ended otherwise."""
    with database.write() as session:
        guard = and_(LIVE, Job.id == job_id, Job.owner == owner)
        if move(session, guard, JobState.CANCELED, {}, cleanup_at=now()):
            logger.info("job_canceled", job_id=str(job_id))
    record = get(database, job_id, owner=owner)
    if record.state != JobState.CANCELED:
        raise JobFinished(job_id, record.state)
    return record


def cancel_batch(database: Database, batch_id: UUID, *, owner: str) -> list[UUID]:
    """Call off every job of a batch that has not ended; those that have stay as they are. Returns whom it ended."""
    guard = and_(LIVE, Job.batch_id == batch_id, Job.owner == owner)
    with database.write() as session:
        moved = [job.id for job in move_all(session, guard, JobState.CANCELED, {}, cleanup_at=now())]
    logger.info("batch_canceled", batch_id=str(batch_id), num_jobs=len(moved))
    return moved


def cancel_some(database: Database, *, owner: str, before: UUID, limit: int) -> list[UUID]:
    """Call off so many of an owner's jobs that were submitted before `before`, those that wait first.

    Nobody else can write for long: call it again until it ends none. Returns whom it ended.
    """
    moved: list[Job] = []
    with database.write() as session:
        for state in LIVE_STATES:
            mine = in_state(select(Job.id).where(Job.owner == owner), state, before=before)
            ids = session.scalars(mine.limit(limit - len(moved))).all()
            moved += move_all(session, and_(STILL_LIVE, Job.id.in_(ids)), JobState.CANCELED, {}, cleanup_at=now())
    logger.info("jobs_canceled", owner=owner, num_jobs=len(moved))
    return [job.id for job in moved]


def erase(database: Database, job_id: UUID, *, owner: str) -> bool:
    """Take a job from its owner for good, with its words; one that has not ended is canceled. Raises JobNotFound.

    What is left has no owner, so that nobody can read it, and waits for the sweep to delete its objects and then
    itself. Returns whether the job was live.
    """
    with database.write() as session:
        erased, canceled = _erase(session, and_(Job.id == job_id, Job.owner == owner))
        if not erased:
            raise JobNotFound(job_id)
    logger.info("job_erased", job_id=str(job_id))
    return bool(canceled)


def erase_many(database: Database, job_ids: Collection[UUID], *, owner: str) -> list[UUID]:
    """Erase several jobs, all at once. One that is not there is passed over. Returns those that were live."""
    with database.write() as session:
        erased, canceled = _erase(session, and_(Job.id.in_(list(job_ids)), Job.owner == owner))
    logger.info("jobs_erased", num_jobs=len(erased))
    return canceled


def _erase(session: Session, mine: ColumnElement[bool]) -> tuple[list[UUID], list[UUID]]:
    """Erase jobs. Returns all of them, and which were canceled by it."""
    canceled = move_all(session, and_(STILL_LIVE, mine), JobState.CANCELED, {}, cleanup_at=now())
    found = session.execute(select(Job.id, Job.params).where(mine)).all()
    rows = [{"erased_id": job_id, "wordless": params | WORDLESS} for job_id, params in found]
    if rows:
        session.execute(ERASING, rows)
    return [job_id for job_id, _ in found], [job.id for job in canceled]


def requeue(database: Database, job_id: UUID, *, reason: str, attempt: int | None = None) -> None:
    """Put a running job back into the queue, its place kept and nothing counted against it.

    For a worker that drains (`attempt` is its own; raises StaleAttempt) and for an operator (any attempt; raises
    JobFinished or JobNotFound, and is content with a job that waits already).
    """
    with database.write() as session:
        guard = and_(RUNNING, Job.id == job_id, Job.attempt == attempt if attempt is not None else RUNNING)
        moved = put_back(session, guard, reason)
    if moved:
        return
    if attempt is not None:
        raise StaleAttempt(job_id, attempt)
    state = get(database, job_id).state
    if state in FINAL_STATES:
        raise JobFinished(job_id, state)


def put_back(session: Session, guard: ColumnElement[bool], reason: str, **values: Any) -> bool:
    job = move(
        session,
        guard,
        JobState.QUEUED,
        {"reason": reason},
        worker_id=None,
        started_at=None,
        is_alone=False,
        **values,
    )
    if job:
        logger.info("job_requeued", job_id=str(job.id), attempt=job.attempt, reason=reason)
    return job is not None
