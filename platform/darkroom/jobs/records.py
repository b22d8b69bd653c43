"""What a job looks like to those who may not write it: frozen values, safe to pass between threads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from darkroom.models import Image, Job, JobClass, JobState
from darkroom.params import GenerationParams

# Nobody is counted beyond this where a queue is only glanced at: a submit, or a poll, costs the same at any depth.
MOST_COUNTED = 100


@dataclass(frozen=True)
class ImageRecord:
    """A stored picture. `seed` is its own; `num_bytes` and `sha256` are of the object under `key`.

    `fingerprint` is the device's, and `rows` the exact mode's number of them: what else the bytes depend on.
    """

    n: int
    key: str
    thumb_key: str
    content_type: str
    width: int
    height: int
    num_bytes: int
    seed: int
    sha256: str
    fingerprint: str | None = None
    rows: int | None = None


@dataclass(frozen=True)
class JobRecord:
    """A job as it was when it was read. Safe to pass between threads."""

    id: UUID
    owner: str
    model: str
    state: JobState
    job_class: JobClass
    params: GenerationParams
    attempt: int
    crashes: int
    worker_id: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime
    error_code: str | None
    error_message: str | None
    retry_of: UUID | None
    timings: Mapping[str, float]
    metadata: Mapping[str, Any] | None
    webhook: Mapping[str, Any] | None
    batch_id: UUID | None
    retention_seconds: float | None
    walk_key: str | None
    event_seq: int
    images: tuple[ImageRecord, ...]
    # Of a job that was just submitted: how many are ahead of it, counted no further than just beyond MOST_COUNTED.
    num_ahead: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class BatchRecord:
    """How far jobs are that were submitted together: how many of them are in each state. Erased ones are in none."""

    id: UUID
    owner: str
    num_jobs: int
    created_at: datetime
    states: Mapping[JobState, int]
    # Of a batch that was just submitted: its jobs, in the order in which they were asked for.
    job_ids: tuple[UUID, ...] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Claim:
    """A job that is now this worker's, for this attempt. `seconds_left` counts to its deadline."""

    job_id: UUID
    owner: str
    model: str
    job_class: JobClass
    params: GenerationParams
    attempt: int
    is_solo: bool
    seconds_left: float


@dataclass(frozen=True)
class Ended:
    """A final job whose objects or row are due for deletion."""

    job_id: UUID
    state: JobState
    attempt: int
    params: GenerationParams


def job_record(job: Job, *, images: tuple[ImageRecord, ...]) -> JobRecord:
    return JobRecord(
        id=job.id,
        owner=job.owner,
        model=job.model,
        state=JobState(job.state),
        job_class=JobClass(job.job_class),
        params=GenerationParams.model_validate(job.params),
        attempt=job.attempt,
        crashes=job.crashes,
        worker_id=job.worker_id,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        deadline_at=job.deadline_at,
        error_code=job.error_code,
        error_message=job.error_message,
        retry_of=job.retry_of,
        timings=job.timings,
        metadata=job.client_metadata,
        webhook=job.webhook,
        batch_id=job.batch_id,
        retention_seconds=job.retention_seconds,
        walk_key=job.walk_key,
        event_seq=job.event_seq,
        images=images,
    )


def image_record(image: Image) -> ImageRecord:
    return ImageRecord(
        n=image.n,
        key=image.key,
        thumb_key=image.thumb_key,
        content_type=image.content_type,
        width=image.width,
        height=image.height,
        num_bytes=image.num_bytes,
        seed=image.seed,
        sha256=image.sha256,
        fingerprint=image.fingerprint,
        rows=image.rows,
    )


def ended_record(job: Job) -> Ended:
    return Ended(job.id, JobState(job.state), job.attempt, GenerationParams.model_validate(job.params))
