"""The truth about every job, and the only writer of its state.

Each transition is one conditional UPDATE named after its guard and fenced by `attempt`; each appends to the job's
history in the same transaction. Knows no Redis, no storage, no HTTP: who commits here rings elsewhere, afterwards.
"""

from darkroom.jobs.admission import admit, num_queued
from darkroom.jobs.ending import cancel, fail, requeue, succeed
from darkroom.jobs.lease import heartbeat, reserve_solo
from darkroom.jobs.line import Lines
from darkroom.jobs.queue import claim, front_of_queue, position, retry, submit
from darkroom.jobs.reading import get, get_image, list_jobs
from darkroom.jobs.records import Claim, Ended, ImageRecord, JobRecord
from darkroom.jobs.sweeping import (
    cleaned,
    delete_ended,
    due_for_cleanup,
    due_for_deletion,
    expire_leases,
    expire_overdue,
    promote_aged_bulk,
)
from darkroom.models import JobClass, JobState

__all__ = [
    "Claim",
    "Ended",
    "ImageRecord",
    "JobClass",
    "JobRecord",
    "JobState",
    "Lines",
    "admit",
    "cancel",
    "claim",
    "cleaned",
    "delete_ended",
    "due_for_cleanup",
    "due_for_deletion",
    "expire_leases",
    "expire_overdue",
    "fail",
    "front_of_queue",
    "get",
    "get_image",
    "heartbeat",
    "list_jobs",
    "num_queued",
    "position",
    "promote_aged_bulk",
    "requeue",
    "reserve_solo",
    "retry",
    "submit",
    "succeed",
]
