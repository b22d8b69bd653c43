"""The tables. Knows their shape and what each state means; only jobs.py decides when a state changes."""

from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, Integer, String, Text, Uuid, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from darkroom.db import Base, UtcDateTime, now

# SQLite numbers rows by itself only in a column that is exactly INTEGER.
BigNumber = BigInteger().with_variant(Integer(), "sqlite")


class JobState(StrEnum):
    """Where a job is in its life."""

    # Waiting. A worker moves it on by claiming it, the sweep by its deadline, its owner by canceling.
    # A crash of anybody leaves it waiting.
    QUEUED = "queued"
    # Claimed by one worker for one attempt. The worker moves it on; when the worker dies its lease runs out and the
    # sweep puts the job back into the queue.
    RUNNING = "running"
    # Its pictures are in the storage and visible. Final.
    SUCCEEDED = "succeeded"
    # It cannot be done, and error_code says why. Final.
    FAILED = "failed"
    # Its owner called it off. Final.
    CANCELED = "canceled"
    # Its deadline passed before it was done. Final.
    EXPIRED = "expired"


LIVE_STATES = (JobState.QUEUED, JobState.RUNNING)
FINAL_STATES = tuple(state for state in JobState if state not in LIVE_STATES)
QUEUED = text("state = 'queued'")
RUNNING = text("state = 'running'")
LIVE = text("state IN ('queued', 'running')")
# The same, in words that no query for queued or running jobs implies: else the planner may read an index of all live
# jobs to find one of these.
UNFINISHED = text("finished_at IS NULL")
# Claimed at least once, whatever became of it.
SERVED = text("attempt > 0")
# As text, because SQLite uses a partial index only for a query that repeats its condition to the letter.
SUSPECT = text("is_solo")


class JobClass(IntEnum):
    """Which of the two lines a job waits in. The lower number is served first."""

    INTERACTIVE = 0
    BULK = 1


class WorkerState(StrEnum):
    """What a worker says of itself."""

    # Claims jobs of the models it holds.
    READY = "ready"
    # Claims no more; finishes or returns what it holds, then leaves.
    DRAINING = "draining"


def _one_of(column: str, values: type[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(value.value) for value in values)})"


class Job(Base):
    """What somebody asked for, and what became of it."""

    __tablename__ = "jobs"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(128))
    params: Mapped[dict[str, Any]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(16))

    # Its place in the queue: see jobs.claim.
    job_class: Mapped[int]
    start_tag: Mapped[float]
    finish_tag: Mapped[float]

    # Who holds it, and until when. `attempt` is the fence that every write of a worker must match.
    attempt: Mapped[int] = mapped_column(default=0)
    worker_id: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Whether the worker held no other job when it last said so: only a crash alone can be the job's own fault.
    is_alone: Mapped[bool] = mapped_column(default=False)
    crashes: Mapped[int] = mapped_column(default=0)
    shared_crashes: Mapped[int] = mapped_column(default=0)
    # A suspect: claimed only by a worker that has run empty.
    is_solo: Mapped[bool] = mapped_column(default=False)
    solo_worker_id: Mapped[str | None] = mapped_column(String(64))
    solo_reserved_until: Mapped[datetime | None] = mapped_column(UtcDateTime)

    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())
    queued_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    deadline_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # When the objects of attempts that did not win are next to be deleted; empty when nothing is left to delete.
    cleanup_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    timings: Mapped[dict[str, float]] = mapped_column(JSON, default=dict)
    retry_of: Mapped[UUID | None] = mapped_column(Uuid)
    # The number of the job's last event.
    event_seq: Mapped[int] = mapped_column(default=0)

    images: Mapped[list["Image"]] = relationship(order_by="Image.n", cascade="all, delete-orphan", passive_deletes=True)

    __table_args__ = (
        CheckConstraint(_one_of("state", JobState), name="state"),
        # The claim, the position, and the front of the line: one lookup per model and class.
        Index("ix_jobs_queue", "model", "job_class", "start_tag", "id", postgresql_where=QUEUED, sqlite_where=QUEUED),
        # How far a line has come: its greatest start tag that was ever claimed.
        Index("ix_jobs_served", "model", "job_class", "start_tag", postgresql_where=SERVED, sqlite_where=SERVED),
        # An owner's greatest finish tag.
        Index(
            "ix_jobs_share",
            "owner",
            "model",
            "job_class",
            "finish_tag",
            postgresql_where=UNFINISHED,
            sqlite_where=UNFINISHED,
        ),
        Index("ix_jobs_lease", "lease_expires_at", postgresql_where=RUNNING, sqlite_where=RUNNING),
        Index("ix_jobs_worker", "worker_id", postgresql_where=RUNNING, sqlite_where=RUNNING),
        Index("ix_jobs_deadline", "deadline_at", postgresql_where=UNFINISHED, sqlite_where=UNFINISHED),
        Index("ix_jobs_aging", "job_class", "queued_at", postgresql_where=QUEUED, sqlite_where=QUEUED),
        Index(
            "ix_jobs_solo",
            "model",
            "queued_at",
            postgresql_where=text("state = 'queued' AND is_solo"),
            sqlite_where=text("state = 'queued' AND is_solo"),
        ),
        Index(
            "ix_jobs_cleanup",
            "cleanup_at",
            postgresql_where=text("cleanup_at IS NOT NULL"),
            sqlite_where=text("cleanup_at IS NOT NULL"),
        ),
        Index("ix_jobs_retention", "state", "finished_at"),
        Index("ix_jobs_owner", "owner", "id"),
        # The gallery: an owner's jobs of one state, newest first, however many others there are.
        Index("ix_jobs_owner_state", "owner", "state", "id"),
    )


class Image(Base):
    """A stored object. Its row appears in the same commit that makes its job succeed."""

    __tablename__ = "images"

    job_id: Mapped[UUID] = mapped_column(Uuid, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    key: Mapped[str] = mapped_column(String(255))
    thumb_key: Mapped[str] = mapped_column(String(255))
    content_type: Mapped[str] = mapped_column(String(64))
    width: Mapped[int]
    height: Mapped[int]
    num_bytes: Mapped[int]
    seed: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))


class JobEvent(Base):
    """One line of a job's history, appended in the transaction that made it true."""

    __tablename__ = "job_events"

    # A total order over all jobs: on PostgreSQL by (xid, position), because a later number may commit earlier.
    position: Mapped[int] = mapped_column(BigNumber, primary_key=True, autoincrement=True)
    xid: Mapped[int] = mapped_column(BigInteger, default=0)
    job_id: Mapped[UUID] = mapped_column(Uuid, ForeignKey("jobs.id", ondelete="CASCADE"))
    seq: Mapped[int]
    type: Mapped[str] = mapped_column(String(32))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())

    __table_args__ = (
        Index("uq_job_events_job_id_seq", "job_id", "seq", unique=True),
        Index("ix_job_events_order", "xid", "position"),
        # SQLite gives the number of a deleted last line to the next one, which a reader would then take for an old one.
        {"sqlite_autoincrement": True},
    )


class Worker(Base):
    """A process that owns one device. Its row lives as long as its heartbeat."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    device: Mapped[str] = mapped_column(String(128))
    device_memory_bytes: Mapped[int] = mapped_column(BigInteger)
    fingerprint: Mapped[str] = mapped_column(String(255))
    models: Mapped[list[str]] = mapped_column(JSON)
    slots: Mapped[int]
    num_jobs: Mapped[int] = mapped_column(default=0)
    version: Mapped[str] = mapped_column(String(32))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())

    __table_args__ = (CheckConstraint(_one_of("state", WorkerState), name="state"),)
