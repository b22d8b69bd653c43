"""What a view may call, gathered in one value per application. Knows no HTTP beyond finding the current application."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import structlog
from flask import current_app

from darkroom import fleet, jobs
from darkroom.catalog import Catalog
from darkroom.config import Settings
from darkroom.db import Database
from darkroom.errors import DatabaseUnavailable, JobNotFound
from darkroom.events import ProgressBoard
from darkroom.jobs import ImageRecord, JobRecord, JobState, NewJob
from darkroom.keys import KeyRing
from darkroom.params import resolve
from darkroom.storage import Storage
from darkroom.web.background import Background
from darkroom.web.identity import current
from darkroom.web.submission import Submission
from darkroom.web.waiting import Waiting
from darkroom.webhooks.destinations import Destinations

logger = structlog.get_logger(__name__)

NO_PICTURE = -1  # what stands in an address and is no number: pictures count from 0


@dataclass(frozen=True)
class Sight:
    """A job, how many are ahead of it while it waits, and how far it is while it develops."""

    job: JobRecord
    position: int | None = None
    progress: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Services:
    """The parts that create_app wired together."""

    settings: Settings
    database: Database
    catalog: Catalog
    storage: Storage
    progress: ProgressBoard
    background: Background
    keys: KeyRing
    waiting: Waiting
    destinations: Destinations

    def submit(self, submission: Submission) -> JobRecord:
        """Store a job, then ring for it. Only the database can make this fail or wait."""
        new = NewJob(submission.entry.name, submission.params, submission.job_class, submission.deadline_seconds)
        job = jobs.submit(
            self.database, new, owner=current().owner, weight=current().weight, key_id=current().key_id
        )
        self.background.notify(job)
        return job

    def follow(self, job_id: str) -> Sight:
        """Look at a job as it is now. Raises JobNotFound."""
        job = jobs.get(self.database, job_uuid(job_id), owner=current().owner)
        position = jobs.position(self.database, job.id) if job.state is JobState.QUEUED else None
        progress = self.progress.read(job.id) if job.state is JobState.RUNNING else None
        return Sight(job, position, progress)

    def place_of(self, accepted: JobRecord) -> int | None:
        """How many are ahead of a job that was just committed; None when that cannot be told now.

        The job is stored: whoever submitted it must not be told of a failure, and submit it a second time.
        """
        try:
            return jobs.position(self.database, accepted.id)
        except DatabaseUnavailable as error:
            logger.warning("place_untold", job_id=str(accepted.id), reason=str(error))
            return None

    def has_worker(self, model: str) -> bool:
        """Whether a worker that holds the model was heard of within a lease."""
        lease_seconds = self.settings.lease_seconds
        return fleet.num_slots(self.database, [model], lease_seconds=lease_seconds)[model] > 0

    def cancel(self, job_id: str) -> JobRecord:
        """Call a job off, then tell its worker. Raises JobNotFound or JobFinished."""
        job = jobs.cancel(self.database, job_uuid(job_id), owner=current().owner)
        self.background.announce_cancel(job.id)
        return job

    def retry(self, job_id: str) -> JobRecord:
        """Submit an ended job once more.

        Raises JobNotFound or JobStillLive; UnknownModel or InvalidParameters if its model does not take it any more.
        """
        ended = jobs.get(self.database, job_uuid(job_id), owner=current().owner)
        resolve(self.catalog.get(ended.model), ended.params.model_dump())
        job = jobs.retry(
            self.database,
            ended.id,
            owner=current().owner,
            ttl_seconds=self.settings.job_ttl_seconds,
            weight=current().weight,
            key_id=current().key_id,
        )
        self.background.notify(job)
        return job

    def image(self, job_id: str, n: str) -> ImageRecord:
        """Find a picture of a job. Raises JobNotFound or ImageNotFound."""
        number = int(n) if re.fullmatch("0|[1-9][0-9]{0,5}", n) else NO_PICTURE
        return jobs.get_image(self.database, job_uuid(job_id), number, owner=current().owner)


def services() -> Services:
    """The parts of the application that serves this request."""
    return cast(Services, current_app.extensions["darkroom"])


def job_uuid(text: str) -> UUID:
    """Read an id from an address. What cannot be an id is the id of no job: raises JobNotFound."""
    try:
        job_id = UUID(text)
    except ValueError as error:
        raise JobNotFound(text) from error
    if str(job_id) != text.lower():
        raise JobNotFound(text)  # UUID() also reads braces, URNs and missing hyphens
    return job_id
