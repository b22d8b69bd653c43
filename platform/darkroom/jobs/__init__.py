"""The truth about every job, and the only writer of its state.

Each transition is one conditional UPDATE named after its guard and fenced by `attempt`; each appends to the job's
history in the same transaction. Knows no Redis, no storage, no HTTP: who commits here rings elsewhere, afterwards.
"""

from darkroom.jobs.admission import admit, num_queued
from darkroom.jobs.ending import NOBODY, cancel, cancel_batch, cancel_some, erase, erase_many, fail, requeue, succeed
from darkroom.jobs.inputs import UploadRecord, add_upload, due_uploads, expire_upload, forget_upload, get_upload
from darkroom.jobs.lease import heartbeat, reserve_solo
from darkroom.jobs.line import Lines
from darkroom.jobs.pace import Done, LineRecord, latest_done, lines
from darkroom.jobs.queue import Glimpse, claim, front_of_queue, glimpse, places, position
from darkroom.jobs.reading import get, get_image, get_many, list_jobs, list_live, search
from darkroom.jobs.records import MOST_COUNTED, BatchRecord, Claim, Ended, ImageRecord, JobRecord
from darkroom.jobs.standing import (
    count,
    list_ended,
    list_fronts,
    list_latest_ended,
    list_line,
    list_oldest,
    list_running,
    list_unretried,
    retried,
)
from darkroom.jobs.submitting import (
    NewJob,
    Request,
    batch_job_ids,
    find_made,
    forget_requests,
    get_batch,
    num_ahead_of_next,
    retry,
    submit,
    submit_batch,
)
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
    "MOST_COUNTED",
    "NOBODY",
    "BatchRecord",
    "Claim",
    "Done",
    "Ended",
    "Glimpse",
    "ImageRecord",
    "JobClass",
    "JobRecord",
    "JobState",
    "LineRecord",
    "Lines",
    "NewJob",
    "Request",
    "UploadRecord",
    "add_upload",
    "admit",
    "batch_job_ids",
    "cancel",
    "cancel_batch",
    "cancel_some",
    "claim",
    "cleaned",
    "count",
    "delete_ended",
    "due_for_cleanup",
    "due_for_deletion",
    "due_uploads",
    "erase",
    "erase_many",
    "expire_leases",
    "expire_overdue",
    "expire_upload",
    "fail",
    "find_made",
    "forget_requests",
    "forget_upload",
    "front_of_queue",
    "get",
    "get_batch",
    "get_image",
    "get_many",
    "get_upload",
    "glimpse",
    "heartbeat",
    "latest_done",
    "lines",
    "list_ended",
    "list_fronts",
    "list_jobs",
    "list_latest_ended",
    "list_line",
    "list_live",
    "list_oldest",
    "list_running",
    "list_unretried",
    "num_ahead_of_next",
    "num_queued",
    "places",
    "position",
    "promote_aged_bulk",
    "requeue",
    "reserve_solo",
    "retried",
    "retry",
    "search",
    "submit",
    "submit_batch",
    "succeed",
]
