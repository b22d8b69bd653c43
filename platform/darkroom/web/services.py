"""What a view may call, gathered in one value per application. Knows no HTTP beyond finding the current application."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, cast
from uuid import UUID, uuid4

import structlog
from flask import current_app
from uuid_utils.compat import uuid7

from darkroom import fleet, jobs
from darkroom.catalog import Catalog
from darkroom.config import Settings
from darkroom.db import Database
from darkroom.errors import (
    BatchNotFound,
    DarkroomError,
    DatabaseUnavailable,
    FieldError,
    ImageNotFound,
    InputGone,
    InvalidParameters,
    JobNotFound,
    UnknownModel,
    UploadNotFound,
)
from darkroom.events import ProgressBoard
from darkroom.intake import Notice
from darkroom.jobs import BatchRecord, ImageRecord, JobClass, JobRecord, JobState, NewJob, UploadRecord
from darkroom.keys import KeyRing
from darkroom.params import resolve
from darkroom.storage import Storage, upload_key
from darkroom.web.background import Background
from darkroom.web.census import Census
from darkroom.web.converting import Converter
from darkroom.web.identity import current
from darkroom.web.overview import Overlook
from darkroom.web.pace import Eta, Pace
from darkroom.web.submission import Rules, Submission
from darkroom.web.uploads import PictureReader, read_data_url
from darkroom.web.waiting import Waiting
from darkroom.webhooks.destinations import Destinations

logger = structlog.get_logger(__name__)

INPUT_LIMIT = "the id of an upload, the id of one of your images, or a base64 data: URL"
SECONDS_PER_DAY = 86400.0
# So many in a transaction: everybody else who writes waits for it.
CANCELED_AT_ONCE = 500
MOST_RETRIED = 1000
# The relay rings for the rest as places become free.
RINGS_PER_BATCH = 16
# So old may be what a poll knows of a job that many are ahead of.
FAR_SECONDS = 5.0
NO_PICTURE = -1  # what stands in an address and is no number: pictures count from 0


@dataclass(frozen=True)
class Sight:
    """A job, how many are ahead of it while it waits, and how far it is while it develops."""

    job: JobRecord
    position: int | None = None
    progress: Mapping[str, Any] | None = None
    eta: Eta | None = None

    @property
    def version(self) -> str:
        """Another one whenever the job has changed. The ETA follows from the rest, give or take what others take."""
        return _version(self.job.id, self.job.event_seq, position=self.position, progress=self.progress)


def _version(job_id: UUID, seq: int, *, position: int | None, progress: Mapping[str, Any] | None) -> str:
    place = [] if position is None else [_place(position)]
    steps = [progress["stage"], progress["step"]] if progress else []
    return "-".join(str(part) for part in (job_id.hex, seq, *place, *steps))


def _place(position: int) -> str:
    """A place in the version; where it is not counted for every poll, another one every few seconds."""
    return f"p{position}" if position <= jobs.MOST_COUNTED else f"t{int(time.time() / FAR_SECONDS)}"


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
    pace: Pace
    pictures: PictureReader
    converter: Converter
    notice: Notice
    overlook: Overlook
    census: Census

    def rules(self) -> Rules:
        """What a request of whoever asks is held to."""
        return Rules(
            self.catalog,
            longest_deadline_seconds=self.settings.job_ttl_seconds,
            longest_retention_seconds=self.settings.retention_succeeded_days * SECONDS_PER_DAY,
            destinations=self.destinations,
            job_classes=tuple(JobClass) if current().may_hurry else (JobClass.BULK,),
        )

    def submit(self, submission: Submission, *, request: jobs.Request | None = None) -> JobRecord:
        """Store a job, then ring for it. A request that came before gets the job it made then.

        Without inputs, only the database can make this fail or wait. Raises InvalidParameters for inputs that are not
        there, RequestDiffers, JobNotFound for the job of a request that is gone, or what admission raises.
        """
        if request and (made_id := jobs.find_made(self.database, request, owner=current().owner)):
            return jobs.get(self.database, made_id, owner=current().owner)
        with self._inputs_are_there():
            job = jobs.submit(self.database, self._new_job(submission, {}), request=request, **self._whose())
        self.background.notify(job.id, model=job.model)
        return job

    def submit_batch(
        self, submissions: Sequence[Submission], *, request: jobs.Request | None = None
    ) -> tuple[BatchRecord, list[UUID]]:
        """Store many jobs, all or none, then ring. Returns the batch and its jobs. Raises as `submit` does."""
        owner = current().owner
        if request and (made_id := jobs.find_made(self.database, request, owner=owner)):
            batch = jobs.get_batch(self.database, made_id, owner=owner)
        else:
            keys: dict[str, str] = {}
            new = [self._new_job(submission, keys) for submission in submissions]
            with self._inputs_are_there():
                batch = jobs.submit_batch(self.database, new, request=request, **self._whose())
        job_ids = list(batch.job_ids or jobs.batch_job_ids(self.database, batch.id, owner=owner))
        for job_id, submission in zip(job_ids[:RINGS_PER_BATCH], submissions, strict=False):
            self.background.notify(job_id, model=submission.entry.name)
        return batch, job_ids

    def _whose(self) -> dict[str, Any]:
        return {"owner": current().owner, "weight": current().weight, "key_id": current().key_id}

    def _new_job(self, submission: Submission, keys: dict[str, str]) -> NewJob:
        """Look for what a submission begins from; `keys` remembers what was found for its neighbors."""
        for field, reference in submission.inputs.items():
            if reference not in keys:
                keys[reference] = self._key_of(reference, field=field)
        found = {field: keys[reference] for field, reference in submission.inputs.items()}
        return NewJob(
            submission.entry.name,
            submission.params.model_copy(update=found),
            submission.job_class,
            submission.deadline_seconds,
            metadata=submission.metadata,
            webhook=submission.webhook.document() if submission.webhook else None,
            retention_seconds=submission.retention_seconds,
        )

    def _key_of(self, reference: str, *, field: str) -> str:
        if reference.startswith("data:"):
            return self.upload(read_data_url(reference, field=field), field=field).key
        try:
            if found := re.fullmatch("job:([0-9a-fA-F-]{36})/([0-9]{1,6})", reference):
                return self.image(found[1], found[2]).key
            return jobs.get_upload(self.database, job_uuid(reference), owner=current().owner).key
        except (JobNotFound, ImageNotFound, UploadNotFound) as error:
            raise InvalidParameters([FieldError(field, "names no picture of yours", INPUT_LIMIT)]) from error

    @contextmanager
    def _inputs_are_there(self) -> Iterator[None]:
        try:
            yield
        except InputGone as error:
            raise InvalidParameters([FieldError("init_image", "is not stored any more", INPUT_LIMIT)]) from error

    def upload(self, body: bytes, *, field: str = "file") -> UploadRecord:
        """Make a picture safe and store it. Raises InvalidParameters or StorageError."""
        picture = self.pictures.read(body, field=field)
        upload_id = uuid4()
        key = upload_key(current().owner, upload_id)
        upload = jobs.add_upload(
            self.database,
            upload_id,
            owner=current().owner,
            key=key,
            width=picture.width,
            height=picture.height,
            num_bytes=len(picture.body),
            life_seconds=self.settings.retention_uploads_days * SECONDS_PER_DAY,
        )
        self.storage.put(key, picture.body, content_type="image/png", is_awaited=True)
        return upload

    def follow(self, job_id: str) -> Sight:
        """Look at a job as it is now. Raises JobNotFound."""
        return self.sight_of(jobs.get(self.database, job_uuid(job_id), owner=current().owner))

    def version_of(self, job_id: str) -> str:
        """The version of what `follow` would see, for one narrow look. Raises JobNotFound."""
        found = job_uuid(job_id)
        seen = jobs.glimpse(self.database, found, owner=current().owner)
        progress = self.progress.read(found) if seen.state is JobState.RUNNING else None
        return _version(found, seen.event_seq, position=seen.position, progress=progress)

    def sight_of(self, job: JobRecord) -> Sight:
        """Look around a job: who is ahead of it, how far it is, and when it may be done."""
        position = self._position_of(job) if job.state is JobState.QUEUED else None
        progress = self.progress.read(job.id) if job.state is JobState.RUNNING else None
        return Sight(job, position, progress, self.pace.eta(job, position=position, progress=progress))

    def at(self, job: JobRecord, *, progress: Mapping[str, Any]) -> Sight:
        """Look at a job that develops, for who knows how far it is. Asks nobody."""
        return Sight(job, None, progress, self.pace.eta(job, position=None, progress=progress))

    def _position_of(self, job: JobRecord) -> int | None:
        if job.num_ahead is None:
            return jobs.position(self.database, job.id)
        return job.num_ahead if job.num_ahead <= jobs.MOST_COUNTED else None

    def look_at(self, accepted: JobRecord) -> Sight:
        """Look around a job that was just committed; without what cannot be told now.

        The job is stored: whoever submitted it must not be told of a failure, and submit it a second time.
        """
        try:
            return self.sight_of(accepted)
        except DatabaseUnavailable as error:
            logger.warning("place_untold", job_id=str(accepted.id), reason=str(error))
            return Sight(accepted)

    def list_jobs(
        self,
        *,
        state: JobState | None = None,
        model: str | None = None,
        batch: UUID | None = None,
        q: str | None = None,
        cursor: UUID | None = None,
        limit: int,
    ) -> tuple[list[JobRecord], UUID | None]:
        """Read a page of jobs, newest first, and where the next begins; with `q`, those whose prompt has its words."""
        which: dict[str, Any] = {"state": state, "model": model, "batch_id": batch, "before": cursor}
        if q:
            return jobs.search(self.database, q, owner=current().owner, limit=limit, **which)
        # One more tells whether there is a next page.
        found = jobs.list_jobs(self.database, owner=current().owner, limit=limit + 1, **which)
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    def erase(self, job_id: str) -> None:
        """Take a job away for good, with its pictures and its words. Raises JobNotFound."""
        erased = job_uuid(job_id)
        if jobs.erase(self.database, erased, owner=current().owner):
            self.background.announce_cancel(erased)

    def erase_many(self, job_ids: Sequence[UUID]) -> None:
        """Take several jobs away for good; what is not there any more is passed over."""
        for job_id in jobs.erase_many(self.database, job_ids, owner=current().owner):
            self.background.announce_cancel(job_id)

    def find_jobs(self, job_ids: Sequence[UUID]) -> list[JobRecord]:
        """Read several jobs of who asks, in this order; what is not there is left out."""
        found = jobs.get_many(self.database, job_ids)
        return [found[job_id] for job_id in job_ids if job_id in found and found[job_id].owner == current().owner]

    def batch(self, batch_id: str) -> BatchRecord:
        """Look at how far a batch is. Raises BatchNotFound."""
        return jobs.get_batch(self.database, batch_uuid(batch_id), owner=current().owner)

    def cancel_batch(self, batch_id: str) -> BatchRecord:
        """Call off what is left of a batch, then tell the workers. Raises BatchNotFound."""
        found = self.batch(batch_id)
        for job_id in jobs.cancel_batch(self.database, found.id, owner=found.owner):
            self.background.announce_cancel(job_id)
        return self.batch(batch_id)

    def has_worker(self, model: str) -> bool:
        """Whether a worker that holds the model was heard of within a lease."""
        lease_seconds = self.settings.lease_seconds
        return fleet.num_slots(self.database, [model], lease_seconds=lease_seconds)[model] > 0

    def cancel(self, job_id: str) -> JobRecord:
        """Call a job off, then tell its worker. Raises JobNotFound or JobFinished."""
        job = jobs.cancel(self.database, job_uuid(job_id), owner=current().owner)
        self.background.announce_cancel(job.id)
        return job

    def cancel_anybodys(self, job_id: str) -> JobRecord:
        """Call off a job, whose ever it is. Raises JobNotFound or JobFinished."""
        found = jobs.get(self.database, job_uuid(job_id))
        job = jobs.cancel(self.database, found.id, owner=found.owner)
        self.background.announce_cancel(job.id)
        return job

    def cancel_all(self) -> None:
        """Call off all that lives of who asks and was submitted before now, then tell the workers."""
        now = uuid7()
        while ended := jobs.cancel_some(self.database, owner=current().owner, before=now, limit=CANCELED_AT_ONCE):
            for job_id in ended:
                self.background.announce_cancel(job_id)

    def retry_failed(self) -> None:
        """Submit the latest jobs of who asks that failed, and were not yet retried, once more.

        As one batch, which takes all of them or none; those that begin from a picture one by one, because theirs may be
        gone. What its model does not take any more is left as it is. Raises what admission raises, and the reason why
        nothing was submitted, if nothing was.
        """
        failed = jobs.list_unretried(self.database, owner=current().owner, limit=MOST_RETRIED)
        refused: list[DarkroomError] = []
        again: list[NewJob] = []
        num_retried = 0
        for job in failed:
            try:
                resolve(self.catalog.get(job.model), job.params.model_dump())
                if job.params.init_image:
                    self.retry(str(job.id))
                    num_retried += 1
                else:
                    again.append(self._again(job))
            except (InvalidParameters, UnknownModel) as error:
                refused.append(error)
        if again:
            self._submit_again(again)
        elif refused and not num_retried:
            raise refused[0]

    def _again(self, ended: JobRecord) -> NewJob:
        return NewJob(
            ended.model,
            ended.params,
            ended.job_class if current().may_hurry else JobClass.BULK,
            self.settings.job_ttl_seconds,
            metadata=ended.metadata,
            webhook=ended.webhook,
            retention_seconds=ended.retention_seconds,
            retry_of=ended.id,
        )

    def _submit_again(self, again: Sequence[NewJob]) -> None:
        """The same jobs twice, as by a button that was pressed twice, are the same batch."""
        digest = sha256("".join(sorted(str(new.retry_of) for new in again)).encode()).hexdigest()
        batch = jobs.submit_batch(
            self.database, again, request=jobs.Request(f"retry-{digest}", digest), **self._whose()
        )
        job_ids = jobs.batch_job_ids(self.database, batch.id, owner=batch.owner)
        for job_id, new in zip(job_ids[:RINGS_PER_BATCH], again, strict=False):
            self.background.notify(job_id, model=new.model)

    def retry(self, job_id: str) -> JobRecord:
        """Submit an ended job once more.

        Raises JobNotFound or JobStillLive; UnknownModel or InvalidParameters if its model does not take it any more.
        """
        ended = jobs.get(self.database, job_uuid(job_id), owner=current().owner)
        resolve(self.catalog.get(ended.model), ended.params.model_dump())
        job_class = ended.job_class if current().may_hurry else JobClass.BULK
        ttl_seconds = self.settings.job_ttl_seconds
        with self._inputs_are_there():
            job = jobs.retry(self.database, ended.id, ttl_seconds=ttl_seconds, job_class=job_class, **self._whose())
        self.background.notify(job.id, model=job.model)
        return job

    def again(self, job_id: str, **changes: Any) -> JobRecord:
        """Submit a job once more, with some parameters changed, ahead of bulk work; unchanged, it names the old one.

        Raises JobNotFound, UnknownModel, InvalidParameters, or what admission raises.
        """
        before = jobs.get(self.database, job_uuid(job_id), owner=current().owner)
        params = resolve(self.catalog.get(before.model), before.params.model_dump() | changes)
        new = NewJob(
            before.model,
            params,
            JobClass.INTERACTIVE,
            self.settings.job_ttl_seconds,
            retention_seconds=before.retention_seconds,
            retry_of=None if changes else before.id,
        )
        with self._inputs_are_there():
            job = jobs.submit(self.database, new, **self._whose())
        self.background.notify(job.id, model=job.model)
        return job

    def image(self, job_id: str, n: str) -> ImageRecord:
        """Find a picture of a job. Raises JobNotFound or ImageNotFound."""
        return self.image_and_job(job_id, n)[0]

    def image_and_job(self, job_id: str, n: str) -> tuple[ImageRecord, JobRecord]:
        """Find a picture and its job. Raises JobNotFound or ImageNotFound."""
        job = jobs.get(self.database, job_uuid(job_id), owner=current().owner)
        number = int(n) if re.fullmatch("0|[1-9][0-9]{0,5}", n) else NO_PICTURE
        for image in job.images:
            if image.n == number:
                return image, job
        raise ImageNotFound(job.id, number)


def services() -> Services:
    """The parts of the application that serves this request."""
    return cast(Services, current_app.extensions["darkroom"])


def job_uuid(text: str) -> UUID:
    """Read an id from an address. What cannot be an id is the id of no job: raises JobNotFound."""
    found = read_uuid(text)
    if found is None:
        raise JobNotFound(text)
    return found


def batch_uuid(text: str) -> UUID:
    """Read a batch's id from an address. Raises BatchNotFound."""
    found = read_uuid(text)
    if found is None:
        raise BatchNotFound(text)
    return found


def read_uuid(text: str) -> UUID | None:
    """Read an id that is written in the one usual way; None for anything else."""
    try:
        found = UUID(text)
    except ValueError:
        return None
    return found if str(found) == text.lower() else None  # UUID() also reads braces, URNs and missing hyphens
