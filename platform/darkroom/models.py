"""The tables. Knows their shape and what each state means; only jobs.py decides when a state changes."""

from datetime import date, datetime
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Date,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    Uuid,
    false,
    text,
)
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
QUEUED_BY_KEY = text("state = 'queued' AND key_id IS NOT NULL")
RUNNING = text("state = 'running'")
LIVE = text("state IN ('queued', 'running')")
# The same, in words that no query for queued or running jobs implies: else the planner may read an index of all live
# jobs to find one of these.
UNFINISHED = text("finished_at IS NULL")
# Claimed at least once, whatever became of it.
SERVED = text("attempt > 0")
KEPT_BRIEFLY = text("delete_at IS NOT NULL")
IS_RETRY = text("retry_of IS NOT NULL")
IN_BATCH = text("batch_id IS NOT NULL")
PENDING = text("state = 'pending'")
LEASED = text("lease_expires_at IS NOT NULL")
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
    # Claims no more: it finishes or returns what it holds and leaves, or an operator wants it to wait.
    DRAINING = "draining"


def _one_of(column: str, values: type[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(value.value) for value in values)})"


class Job(Base):
    """What somebody asked for, and what became of it."""

    __tablename__ = "jobs"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    # The key that submitted it, for that key's quota; none where no key was asked for.
    key_id: Mapped[UUID | None] = mapped_column(Uuid)
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
    # What its owner wrote on it, and what is to be called when it changes: {"url", "events"}.
    client_metadata: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    webhook: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    batch_id: Mapped[UUID | None] = mapped_column(Uuid)
    # How long it is kept once it has ended, if not as long as the others; and from when on it need not be kept.
    retention_seconds: Mapped[float | None]
    delete_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    walk_key: Mapped[str | None] = mapped_column(String(255))
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
        Index("ix_jobs_delete", "delete_at", postgresql_where=KEPT_BRIEFLY, sqlite_where=KEPT_BRIEFLY),
        Index("ix_jobs_batch", "batch_id", "state", postgresql_where=IN_BATCH, sqlite_where=IN_BATCH),
        # What was submitted once more.
        Index("ix_jobs_retry", "retry_of", postgresql_where=IS_RETRY, sqlite_where=IS_RETRY),
        # What waits of one key's jobs.
        Index("ix_jobs_key", "key_id", postgresql_where=QUEUED_BY_KEY, sqlite_where=QUEUED_BY_KEY),
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
    # Of the device, and of the batch in exact mode: on equal ones the same seed gives the same bytes.
    fingerprint: Mapped[str | None] = mapped_column(String(255))
    rows: Mapped[int | None]


class Batch(Base):
    """Jobs that were submitted together. How far it is, its jobs say; it goes when the last of them is forgotten."""

    __tablename__ = "batches"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    num_jobs: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())

    __table_args__ = (Index("ix_batches_created", "created_at"),)


class IdempotentRequest(Base):
    """A submission that its sender may repeat. Written in the transaction that stores what it asked for."""

    __tablename__ = "idempotent_requests"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    # Of what was asked, so that another request cannot pass for the same.
    sha256: Mapped[str] = mapped_column(String(64))
    # The job or the batch that it made.
    made_id: Mapped[UUID] = mapped_column(Uuid)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())

    __table_args__ = (Index("ix_idempotent_requests_created", "created_at"),)


class Upload(Base):
    """A picture that somebody sent, for jobs to begin from. Its row is written before its object."""

    __tablename__ = "uploads"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(255))
    width: Mapped[int]
    height: Mapped[int]
    num_bytes: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())
    # From then on no job may name it; it is deleted when none that lives needs it.
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)

    __table_args__ = (Index("ix_uploads_expires", "expires_at"), Index("ix_uploads_owner", "owner", "id"))


class JobInput(Base):
    """A stored object that a job begins from: kept at least until the job has ended."""

    __tablename__ = "job_inputs"

    job_id: Mapped[UUID] = mapped_column(Uuid, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)

    __table_args__ = (Index("ix_job_inputs_key", "key"),)


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
    # Of the denoiser's forwards before the last heartbeat, on average; empty where none ran.
    rows_per_step: Mapped[float | None]
    # An operator wants it to claim nothing more, until further notice. Its heartbeat tells it.
    is_drain_wanted: Mapped[bool] = mapped_column(default=False, server_default=false())
    version: Mapped[str] = mapped_column(String(32))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())

    __table_args__ = (CheckConstraint(_one_of("state", WorkerState), name="state"),)


class ApiKey(Base):
    """Who may ask, for what, and how much. The key itself is known to nobody but its holder."""

    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    # Whose jobs its jobs are. Several keys may have one owner.
    owner: Mapped[str] = mapped_column(String(64))
    # Its first characters, by which people know it, and the SHA-256 of the whole, by which it is found.
    prefix: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    # Its share of the fleet, beside others'.
    weight: Mapped[float] = mapped_column(default=1.0)
    # Limits; none where empty.
    max_queued: Mapped[int | None]
    megapixel_steps_per_day: Mapped[float | None]
    requests_per_minute: Mapped[int | None]
    # What it has submitted on the last day (UTC) on which it submitted anything.
    used_on: Mapped[date | None] = mapped_column(Date)
    used_megapixel_steps: Mapped[float] = mapped_column(default=0.0)

    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())
    # To within keys.LAST_USED_SECONDS.
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (Index("uq_api_keys_sha256", "sha256", unique=True),)


class Intake(Base):
    """Whether jobs are taken: a single row while they are not, none while they are."""

    __tablename__ = "intake"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reason: Mapped[str] = mapped_column(String(500))
    paused_by: Mapped[str] = mapped_column(String(64))
    paused_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())


class Choice(Base):
    """What an owner has chosen to be used where a request to the web UI's API does not say."""

    __tablename__ = "choices"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(String(128))


class DeliveryState(StrEnum):
    """Whether a webhook's receiver has taken what it was told."""

    # Due now, later, or in somebody's hands under a lease. A web process moves it on; a crash leaves it to the next.
    PENDING = "pending"
    # The receiver has answered with success. Left only by a replay.
    DELIVERED = "delivered"
    # Given up. Left only by a replay.
    DEAD = "dead"


class WebhookEndpoint(Base):
    """An address that its owner wants to be told of jobs at."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    url: Mapped[str] = mapped_column(Text)
    events: Mapped[list[str]] = mapped_column(JSON)
    # Both sign until the earlier one's time is over. As they are: a signature needs the secret itself.
    secret: Mapped[str] = mapped_column(String(64))
    previous_secret: Mapped[str | None] = mapped_column(String(64))
    previous_secret_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())
    # By its owner, or by its own answer that it is gone.
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (Index("ix_webhook_endpoints_owner", "owner", "id"),)


class WebhookSecret(Base):
    """What signs the webhooks that an owner's jobs name themselves."""

    __tablename__ = "webhook_secrets"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    secret: Mapped[str] = mapped_column(String(64))
    previous_secret: Mapped[str | None] = mapped_column(String(64))
    previous_secret_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class WebhookCursor(Base):
    """How far the history of all jobs has been turned into deliveries: one row, locked by whoever goes on from it."""

    __tablename__ = "webhook_cursor"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    xid: Mapped[int] = mapped_column(BigInteger)
    position: Mapped[int] = mapped_column(BigInteger)


class WebhookDelivery(Base):
    """One line of a job's history on its way to one address. It goes with its job and with its endpoint."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[UUID] = mapped_column(Uuid, ForeignKey("jobs.id", ondelete="CASCADE"))
    seq: Mapped[int]
    type: Mapped[str] = mapped_column(String(32))
    # Empty for the address that the job itself names.
    endpoint_id: Mapped[UUID | None] = mapped_column(Uuid, ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    # The endpoint's id, or "job". With the job's id it names the line in which deliveries follow each other.
    destination: Mapped[str] = mapped_column(String(36))
    # Scheme, host and port: a slow receiver takes up no more than its share.
    origin: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    # Tries since it was created or replayed.
    num_tries: Mapped[int] = mapped_column(default=0)
    # The fence: rises with every claim, compared by what ends it.
    attempt: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_status: Mapped[int | None]
    last_error: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (
        CheckConstraint(_one_of("state", DeliveryState), name="state"),
        Index("uq_webhook_deliveries_line", "job_id", "destination", "seq", unique=True),
        Index("ix_webhook_deliveries_due", "due_at", postgresql_where=PENDING, sqlite_where=PENDING),
        Index("ix_webhook_deliveries_leased", "lease_expires_at", postgresql_where=LEASED, sqlite_where=LEASED),
        Index("ix_webhook_deliveries_endpoint", "endpoint_id", "id"),
        Index("ix_webhook_deliveries_owner", "owner", "id"),
        Index("ix_webhook_deliveries_owner_state", "owner", "state", "id"),
    )
