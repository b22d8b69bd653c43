"""What time does, done again and again: leases, deadlines, aged bulk, strays in the storage, retention.

A loop in every web and worker process. Everything it does is idempotent and guarded in SQL, so any number of them may
sweep at once, and none must.
"""

import time
from collections.abc import Callable

from darkroom import fleet, jobs
from darkroom.config import Settings
from darkroom.db import Database
from darkroom.errors import DatabaseUnavailable
from darkroom.jobs import Ended, JobState
from darkroom.loops import Loop
from darkroom.storage import Storage, attempt_keys

# How often the chores are done, in rounds of the sweep.
ROUNDS_PER_CHORE = 10
SECONDS_PER_DAY = 86400.0


class Sweeper:
    """Two loops: the sweep, which nothing may hold up, and the chores, some of which wait for the storage.

    `on_waiting` is called with (job, model) of every job that waits again.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        database: Database,
        storage: Storage,
        on_waiting: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._on_waiting = on_waiting
        self._connected_since: float | None = None
        self._loops = (
            Loop("sweep", self._turn, pause_seconds=settings.sweep_seconds),
            Loop("chores", self.do_chores, pause_seconds=settings.sweep_seconds * ROUNDS_PER_CHORE),
        )

    def ensure_alive(self) -> None:
        """Start whichever loop does not run. To be called after a fork, never before."""
        for loop in self._loops:
            loop.ensure_alive()

    def stop(self) -> None:
        """End both loops. Again is fine, and so is before `ensure_alive`."""
        for loop in self._loops:
            loop.stop()

    def _turn(self) -> None:
        try:
            self.sweep()
        except DatabaseUnavailable:
            self._connected_since = None
            raise

    def sweep(self) -> None:
        """One round of what must be punctual: deadlines and leases. Raises DatabaseUnavailable."""
        jobs.expire_overdue(self._database)
        if self._has_seen_a_lease():
            for job_id, model in jobs.expire_leases(self._database):
                self._on_waiting(job_id, model=model)

    def _has_seen_a_lease(self) -> bool:
        """Whether the database has been there for a whole lease: before that, every lease looks run out."""
        if self._connected_since is None:
            self._connected_since = time.monotonic()
        return time.monotonic() - self._connected_since >= self._settings.lease_seconds

    def do_chores(self) -> None:
        """One round of the rest. Raises DatabaseUnavailable, and StorageError when objects cannot be deleted."""
        jobs.promote_aged_bulk(self._database, age_seconds=self._settings.bulk_promotion_seconds)
        fleet.forget_silent(self._database, lease_seconds=self._settings.lease_seconds)
        jobs.forget_requests(self._database)
        self._clean_up()
        self._retire()
        self._expire_uploads()

    def _clean_up(self) -> None:
        """Delete what attempts that did not win have left; once more when no late upload can be on its way."""
        late_seconds = self._settings.lease_seconds + self._settings.upload_limit_seconds
        for ended in jobs.due_for_cleanup(self._database):
            self._storage.delete(_stray_keys(ended))
            jobs.cleaned(self._database, ended.job_id, late_seconds=late_seconds)

    def _retire(self) -> None:
        """Delete what was kept long enough: first the objects, then the row, so that a crash leaves nothing unnamed."""
        other = self._settings.retention_other_days * SECONDS_PER_DAY
        retention = dict.fromkeys((JobState.FAILED, JobState.CANCELED, JobState.EXPIRED), other)
        retention[JobState.SUCCEEDED] = self._settings.retention_succeeded_days * SECONDS_PER_DAY
        for ended in jobs.due_for_deletion(self._database, retention_seconds=retention):
            self._storage.delete(_stray_keys(ended) + _keys(ended, ended.attempt))
            jobs.delete_ended(self._database, ended.job_id)

    def _expire_uploads(self) -> None:
        """Delete the uploads that have expired and that no job needs: the objects first, as above."""
        for upload in jobs.due_uploads(self._database):
            self._storage.delete([upload.key])
            jobs.forget_upload(self._database, upload.id)


def _stray_keys(ended: Ended) -> list[str]:
    won = ended.attempt if ended.state == JobState.SUCCEEDED else None
    return [key for attempt in range(1, ended.attempt + 1) if attempt != won for key in _keys(ended, attempt)]


def _keys(ended: Ended, attempt: int) -> list[str]:
    return attempt_keys(ended.job_id, attempt, ended.params.num_images, ended.params.format)
