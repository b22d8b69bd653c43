"""What happens to jobs, brought to everybody in this process who waits for it, by one thread. Knows no HTTP.

The thread is told by Redis which jobs have moved, and looks into SQL each second whatever Redis says: news may be lost,
and Redis may be away. Progress and previews are looked at only for jobs that somebody follows.
"""

import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog
from redis import RedisError

from darkroom import events
from darkroom.brokers import REDIS_REST_SECONDS
from darkroom.db import Database
from darkroom.events import Cursor, EventRecord, ProgressBoard
from darkroom.jobs import JobState
from darkroom.loops import Loop
from darkroom.news import REST_SECONDS, Listener
from darkroom.previews import WATCH_SECONDS, Preview, PreviewBoard

logger = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
GLANCE_SECONDS = 0.25
# For whom more than this wait unread, nothing more is kept: he reads the history from where he is, or is sent away and
# comes back for it.
MOST_UNREAD = 1000
PAGE = 500


@dataclass(frozen=True)
class Mail:
    """What came: events in order, and the latest progress and previews, if they are new.

    Who `is_behind` finds more in the history than came here.
    """

    events: tuple[EventRecord, ...]
    progress: Mapping[str, Any] | None
    previews: tuple[Preview, ...]
    is_last: bool
    is_behind: bool = False


class Mailbox:
    """What one follower has not read yet. Who `catches_up` reads the history himself when it has become too much."""

    def __init__(self, changed: threading.Condition | None = None, *, catches_up: bool = False) -> None:
        self._changed = changed or threading.Condition()
        self._catches_up = catches_up
        self._events: deque[EventRecord] = deque()
        self._progress: Mapping[str, Any] | None = None
        self._previews: dict[int, Preview] = {}
        self._is_closed = False
        self._is_behind = False

    def take(self, *, seconds: float) -> Mail:
        """Wait at most so long for something new, and take it. The last mail comes at once, again and again."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_mail, seconds)
            events, previews = tuple(self._events), tuple(self._previews.values())
            mail = Mail(events, self._progress, previews, self._is_closed, self._is_behind)
            self._is_behind = False
            self._events.clear()
            self._progress = None
            self._previews.clear()
            return mail

    @property
    def has_mail(self) -> bool:
        """Whether there is something to take."""
        return bool(self._is_closed or self._is_behind or self._events or self._progress or self._previews)

    def rest(self, *, seconds: float) -> None:
        """Let mail gather for so long, unless none will come any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed, seconds)

    def put(self, event: EventRecord) -> None:
        """Add an event, unless it has become too much for this follower."""
        with self._changed:
            if len(self._events) < MOST_UNREAD and not self._is_behind:
                self._events.append(event)
            elif self._catches_up:
                self._is_behind = True
                self._events.clear()
            else:
                self._is_closed = True
            self._changed.notify()

    def show(self, progress: Mapping[str, Any] | None, previews: Iterable[Preview]) -> None:
        """Replace what was shown before: the latest is enough."""
        with self._changed:
            self._progress = progress or self._progress
            self._previews.update({preview.n: preview for preview in previews})
            self._changed.notify()

    def close(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()


class Mailboxes:
    """What the follower of several jobs has not read yet: a mailbox for each, waited for together."""

    def __init__(self, job_ids: Iterable[UUID]) -> None:
        self._changed = threading.Condition()
        self.of_jobs = {job_id: Mailbox(self._changed) for job_id in job_ids}

    def take(self, *, seconds: float) -> dict[UUID, Mail]:
        """Wait at most so long for something new of any job, and take what there is of each."""
        with self._changed:
            self._changed.wait_for(lambda: any(mailbox.has_mail for mailbox in self.of_jobs.values()), seconds)
            return {job_id: mailbox.take(seconds=0) for job_id, mailbox in self.of_jobs.items() if mailbox.has_mail}


@dataclass
class _Followed:
    """A job that somebody follows: how much of it is known here, and who wants to know."""

    mailboxes: set[Mailbox] = field(default_factory=set)
    watchers: set[Mailbox] = field(default_factory=set)
    num_images: int = 1
    seq: int = 0
    is_running: bool = False
    progress: Mapping[str, Any] | None = None
    previews: dict[int, int] = field(default_factory=dict)
    watch_at: float = 0.0


class Hub:
    """The followers of this process and the thread that serves them."""

    def __init__(self, database: Database, *, redis_url: str, progress: ProgressBoard, previews: PreviewBoard) -> None:
        self._database = database
        self._redis_url = redis_url
        self._progress = progress
        self._previews = previews
        self._lock = threading.Lock()
        self._jobs: dict[UUID, _Followed] = {}
        # Under None those who follow everybody's jobs.
        self._owners: dict[str | None, set[Mailbox]] = {}
        self._cursor: Cursor | None = None
        self._stopping = threading.Event()
        self._arrived = threading.Event()
        self._listener: Listener | None = None
        self._listen_again_at = 0.0
        self._poll_at = self._glance_at = self._rest_until = 0.0
        self._loop = Loop("hub", self._turn, pause_seconds=0)

    @contextmanager
    def follow(self, job_id: UUID, *, num_images: int = 0, mailbox: Mailbox | None = None) -> Iterator[Mailbox]:
        """Follow a job; with `num_images`, its progress and the previews of so many pictures too.

        Read the history only after this: what commits in between is then told twice rather than never.
        """
        mailbox = mailbox or Mailbox()
        with self._lock:
            followed = self._jobs.setdefault(job_id, _Followed())
            followed.mailboxes.add(mailbox)
            if num_images:
                followed.watchers.add(mailbox)
                followed.num_images = num_images
                followed.progress, followed.previews = None, {}  # shown again, to the one who has just come
            self._join(mailbox)
        try:
            yield mailbox
        finally:
            with self._lock:
                followed.mailboxes.discard(mailbox)
                followed.watchers.discard(mailbox)
                if not followed.mailboxes and self._jobs.get(job_id) is followed:
                    del self._jobs[job_id]

    @contextmanager
    def follow_together(self, job_ids: Iterable[UUID]) -> Iterator[Mailboxes]:
        """Follow several jobs, their progress, and the previews of the first picture of each."""
        mailboxes = Mailboxes(job_ids)
        with ExitStack() as following:
            for job_id, mailbox in mailboxes.of_jobs.items():
                following.enter_context(self.follow(job_id, num_images=1, mailbox=mailbox))
            yield mailboxes

    @contextmanager
    def follow_owner(self, owner: str | None, *, catches_up: bool = False) -> Iterator[Mailbox]:
        """Follow all jobs of an owner, or of everybody. As with one job: read the history only after this."""
        mailbox = Mailbox(catches_up=catches_up)
        with self._lock:
            self._owners.setdefault(owner, set()).add(mailbox)
            self._join(mailbox)
            is_first = self._cursor is None
        try:
            if is_first:  # where the thread begins must lie before where the history is read
                end = events.end(self._database)
                with self._lock:
                    self._cursor = self._cursor or end
            yield mailbox
        finally:
            with self._lock:
                self._owners[owner].discard(mailbox)
                if not self._owners[owner]:
                    del self._owners[owner]

    def peek(self, job_id: UUID, *, num_images: int) -> tuple[Preview, ...]:
        """Read a job's latest previews, and ask for the next ones, without following it: for who looks now and then."""
        self._previews.watch(job_id)
        found = (self._previews.read(job_id, n) for n in range(num_images))
        return tuple(preview for preview in found if preview)

    def _join(self, mailbox: Mailbox) -> None:
        if self._stopping.is_set():
            mailbox.close()
        self._arrived.set()
        self._loop.ensure_alive()  # not before there is somebody: in the process that serves, and anew if it has died

    def stop(self) -> None:
        """Send every follower away, then end the thread. Again is fine, and so is before anybody came."""
        with self._lock:
            self._stopping.set()
            for mailbox in self._everybody():
                mailbox.close()
        self._arrived.set()
        self._loop.stop()

    def _everybody(self) -> set[Mailbox]:
        of_jobs = [followed.mailboxes for followed in self._jobs.values()]
        return set().union(*of_jobs, *self._owners.values())

    def _turn(self) -> None:
        if self._is_alone():
            self._leave_redis()
            self._arrived.wait()
            return
        moved = self._hear()
        if moved:
            self._rest_until = time.monotonic() + REST_SECONDS
        is_poll = time.monotonic() >= self._poll_at
        if is_poll:
            self._poll_at = time.monotonic() + POLL_SECONDS
        self._tell_of_jobs(None if is_poll else moved)
        if is_poll or moved:
            self._tell_owners()
        self._glance()

    def _is_alone(self) -> bool:
        with self._lock:
            if not self._owners:
                self._cursor = None
            if not self._jobs and not self._owners and not self._stopping.is_set():
                self._arrived.clear()
        return not self._arrived.is_set()

    def _hear(self) -> set[UUID]:
        """Wait for news until it is time to look without; after news, the next ones wait for company."""
        self._stopping.wait(max(self._rest_until - time.monotonic(), 0.0))
        with self._lock:
            is_glancing = any(followed.is_running and followed.watchers for followed in self._jobs.values())
        wake_at = min(self._poll_at, self._glance_at) if is_glancing else self._poll_at
        seconds = max(wake_at - time.monotonic(), 0.0)
        try:
            if self._listener is None and time.monotonic() >= self._listen_again_at:
                self._listener = Listener(self._redis_url)
            if self._listener is not None:
                return self._listener.hear(seconds=seconds)
        except (RedisError, OSError) as error:
            logger.warning("news_lost", reason=str(error), seconds=REDIS_REST_SECONDS)
            self._listen_again_at = time.monotonic() + REDIS_REST_SECONDS
            self._leave_redis()
        self._stopping.wait(seconds)
        return set()

    def _leave_redis(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def _tell_of_jobs(self, moved: Collection[UUID] | None) -> None:
        """Bring the events of the jobs that have moved; of None, look which have."""
        with self._lock:
            known = {job_id: followed.seq for job_id, followed in self._jobs.items()}
        if moved is None:
            latest = events.last_seqs(self._database, known)
            self._close_gone(known.keys() - latest.keys())
            moved = [job_id for job_id, seq in latest.items() if seq > known[job_id]]
        news = events.read_many(self._database, {job_id: known[job_id] for job_id in moved if job_id in known})
        with self._lock:
            for event in news:
                if followed := self._jobs.get(event.job_id):
                    _tell(followed, event)

    def _close_gone(self, job_ids: Iterable[UUID]) -> None:
        """A job that was deleted has nothing more to tell."""
        with self._lock:
            for job_id in job_ids:
                for mailbox in self._jobs[job_id].mailboxes if job_id in self._jobs else ():
                    mailbox.close()

    def _tell_owners(self) -> None:
        while (cursor := self._cursor) is not None:
            found, cursor = events.read_owned(self._database, after=cursor, limit=PAGE)
            with self._lock:
                self._cursor = cursor
                for owner, event in found:
                    for mailbox in (*self._owners.get(owner, ()), *self._owners.get(None, ())):
                        mailbox.put(event)
            if len(found) < PAGE:
                return

    def _glance(self) -> None:
        """Show how far the running jobs are to those who look at them."""
        if time.monotonic() < self._glance_at:
            return
        self._glance_at = time.monotonic() + GLANCE_SECONDS
        with self._lock:
            running = {job_id: job for job_id, job in self._jobs.items() if job.is_running and job.watchers}
        if not running:
            return
        for job_id, job in running.items():
            if time.monotonic() >= job.watch_at:
                job.watch_at = time.monotonic() + WATCH_SECONDS / 2
                self._previews.watch(job_id)
        found = self._progress.read_many(running)
        for job_id, progress in found.items():
            if progress != running[job_id].progress:
                self._show(job_id, running[job_id], progress)

    def _show(self, job_id: UUID, followed: _Followed, progress: Mapping[str, Any]) -> None:
        followed.progress = progress
        read = [self._previews.read(job_id, n) for n in range(followed.num_images)]
        new = [preview for preview in read if preview and followed.previews.get(preview.n) != preview.step]
        followed.previews.update({preview.n: preview.step for preview in new})
        with self._lock:
            for mailbox in followed.watchers:
                mailbox.show(progress, new)


def _tell(followed: _Followed, event: EventRecord) -> None:
    if event.seq <= followed.seq:
        return
    followed.seq = event.seq
    followed.is_running = event.type == JobState.RUNNING
    for mailbox in followed.mailboxes:
        mailbox.put(event)
