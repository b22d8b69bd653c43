"""The worker: claims jobs while it has room, holds their leases, drains. Knows no model and no broker.

Every claim goes through `work_off`: on a doorbell, when a job ends, and on the poll.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import structlog

from darkroom import fleet, jobs
from darkroom.config import Settings
from darkroom.db import Database
from darkroom.errors import DarkroomError, DatabaseUnavailable, JobFinished, StaleAttempt, StorageError
from darkroom.events import ProgressBoard, listen_for_cancels
from darkroom.fleet import WorkerFacts
from darkroom.jobs import Claim, JobClass, Lines
from darkroom.loops import Loop
from darkroom.models import WorkerState
from darkroom.previews import PreviewBoard
from darkroom.storage import Storage
from darkroom_engine import EngineStopped, Tally
from darkroom_worker.develop import FETCH, UPLOAD, Developer, Held
from darkroom_worker.images import encode_preview
from darkroom_worker.together import Together

logger = structlog.get_logger(__name__)

PROGRESS_SECONDS = 0.2
# So long the engine shows a job after it was last seen to be watched.
WATCH_SECONDS = 1.0
# How long a busy worker may go on from where it remembers its lines to begin: so long may a job that came back wait.
WHOLE_LINE_SECONDS = 1.0
NO_DEVICE_EXIT_CODE = 70


@dataclass(frozen=True)
class StallLimits:
    """How many seconds a stage may go without moving before the worker stops vouching for the job.

    One denoising step of a large picture on a CPU may take minutes; the upload's own limit is a setting. When the
    engine has been stuck for `wedged_extra` more, the process ends itself.
    """

    encode: float = 120.0
    denoise: float = 300.0
    decode: float = 300.0
    wedged_extra: float = 30.0

    def of(self, stage: str) -> float | None:
        """The limit of one of the engine's stages, None for any other."""
        return {"encode": self.encode, "denoise": self.denoise, "decode": self.decode}.get(stage)


@dataclass(frozen=True)
class Parts:
    """What a worker is made of."""

    settings: Settings
    facts: WorkerFacts
    database: Database
    storage: Storage
    developer: Developer
    stall_limits: StallLimits


class _NoRoomError(Exception):
    """The worker is full, or takes nothing just now."""


class Worker:
    """Develops up to `slots` jobs, and interactive ones beyond that for which bulk ones make way.

    As many again may be on their way into the storage.

    All public methods may be called from any thread.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._settings = parts.settings
        self._database = parts.database
        self._facts = parts.facts
        self._lock = threading.Lock()
        self._claiming = Together(self._claim_some)
        self._held: dict[UUID, Held] = {}
        self._lines = Lines()
        self._saw_whole_line_at = 0.0
        self._is_draining = False
        self._is_resting = False
        self._must_run_empty = False
        self._tally = Tally()
        self._rows_per_step: float | None = None
        self._is_look_due = False
        self._is_storage_away = False
        self._is_engine_gone = False
        self._is_engine_away = False
        self._emptied = threading.Condition(self._lock)
        self._drained = threading.Event()
        self._stop = threading.Event()
        self._board = ProgressBoard(self._settings.redis_url)
        self._previews = PreviewBoard(self._settings.redis_url)
        self._published: dict[UUID, object] = {}
        self._pollers = ThreadPoolExecutor(max_held(self._facts), thread_name_prefix="poll")
        self._loops = [
            Loop("heartbeat", self.beat, pause_seconds=self._settings.heartbeat_seconds),
            Loop("watch", self._watch, pause_seconds=self._settings.heartbeat_seconds),
            Loop("progress", self._publish_progress, pause_seconds=PROGRESS_SECONDS),
            Loop("previews", self._publish_previews, pause_seconds=PROGRESS_SECONDS),
        ]
        if self._settings.poll_seconds:
            self._loops.append(Loop("poll", self._poll, pause_seconds=self._settings.poll_seconds))
        # Set by the app, which knows Celery and the engine: to `work_off` inside a task, to hear doorbells again, and
        # to end an engine that hangs.
        self.look: Callable[[], object] = self.work_off
        self.on_room: Callable[[], None] = lambda: None
        self.on_hang: Callable[[], None] = lambda: os._exit(NO_DEVICE_EXIT_CODE)

    @property
    def models(self) -> list[str]:
        """The models it holds warm."""
        return self._facts.models

    def start(self) -> None:
        """Make the worker known and begin to look for jobs."""
        fleet.register(self._database, self._facts)
        for loop in self._loops:
            loop.ensure_alive()
        self._canceler = threading.Thread(target=self._listen_for_cancels, name="cancels", daemon=True)
        self._canceler.start()
        logger.info("worker_ready", worker=self._facts.id, device=self._facts.device, models=self._facts.models)

    def has_room(self) -> bool:
        """Whether the worker would take another job of any class now."""
        with self._lock:
            return JobClass.BULK in self._room()

    def _room(self) -> Mapping[JobClass, int]:
        """The classes of which the worker would take another job now, and how many of each."""
        if self._is_draining or self._is_resting or self._is_storage_away:
            return {}
        if self._is_engine_away or self._is_engine_gone:
            return {}
        if self._must_run_empty and self._held:
            return {}
        if any(held.claim.is_solo for held in self._held.values()):
            return {}
        claims = [held.claim for held in self._held.values() if not held.has_left]
        if len(self._held) - len(claims) > self._facts.slots:
            return {}  # pictures leave more slowly than they are developed: more of them would only wait
        if len(claims) < self._facts.slots:
            return dict.fromkeys(JobClass, self._facts.slots - len(claims))
        # A bulk job makes way: the engine parks its requests while an interactive one's are developed.
        num_interactive = sum(claim.job_class == JobClass.INTERACTIVE for claim in claims)
        more = self._facts.slots - num_interactive
        return {JobClass.INTERACTIVE: more} if more > 0 else {}

    def work_off(self) -> bool:
        """Claim and develop jobs until none is left for this worker. Returns whether there was room to look at all."""
        has_looked = False
        try:
            while held := self._claim():
                has_looked = True
                if self.has_room():
                    self._kick()  # where one job waited there may be more, and this thread is busy from now on
                self._develop(held)
        except _NoRoomError:
            return has_looked
        return True

    def _make_room(self) -> None:
        """A job's pictures are developed, and its thread is busy with storing them: let another look for the next."""
        if self.has_room():
            self.on_room()
            self._kick()

    def _kick(self) -> None:
        """Have another thread look, unless one is about to: what waits now, that one will see as well."""
        with self._lock:
            if self._is_look_due:
                return
            self._is_look_due = True
        try:
            self._pollers.submit(self._look)
        except RuntimeError:
            logger.debug("no_kick_after_shutdown")

    def _look(self) -> None:
        try:
            self.look()
        except Exception:
            self._is_look_due = False
            logger.exception("look_failed")  # nobody reads the future

    def _claim(self) -> Held | None:
        try:
            return self._claiming.ask(None)
        except DatabaseUnavailable as error:
            logger.warning("claim_without_database", reason=str(error))
        except _NoRoomError:
            raise
        except Exception:
            logger.exception("claim_failed")
        return None

    def _claim_some(self, threads: Sequence[None]) -> Sequence[Held | None]:
        """Claim a job for each of these threads that wants one, as far as there is room; None where none waits.

        One group at a time: a suspect must not find company while it is being claimed.
        """
        with self._lock:
            self._is_look_due = False
            num_held, room = len(self._held), self._room()
        if not room:
            raise _NoRoomError
        now = time.monotonic()
        whole_line = now - self._saw_whole_line_at > WHOLE_LINE_SECONDS
        if whole_line:
            self._saw_whole_line_at = now
        claims = jobs.claim(
            self._database,
            worker_id=self._facts.id,
            models=self._facts.models,
            num_held=num_held,
            lease_seconds=self._settings.lease_seconds,
            lines=self._lines,
            whole_line=whole_line,
            job_classes=tuple(room),
            most=min(len(threads), *room.values()),
        )
        if claims:
            return [self._hold(claim) for claim in claims]
        if JobClass.BULK not in room:
            raise _NoRoomError  # there may be bulk jobs, for others
        return [None] * len(threads)

    def _hold(self, claim: Claim) -> Held:
        held = Held(claim, on_left=self._make_room)
        with self._lock:
            earlier = self._held.get(claim.job_id)
            self._held[claim.job_id] = held
            self._must_run_empty = False
        if earlier:
            earlier.lose()  # this worker was thought lost, and now claims again what it still develops
        return held

    def _develop(self, held: Held) -> None:
        try:
            self._parts.developer.develop(held)
        except StorageError as error:
            logger.error("claims_pause", reason=error.reason)
            self._is_storage_away = True
        except EngineStopped:
            # Left to its lease, and so counted: put back, a job that breaks devices would go round the fleet for ever.
            logger.error("job_lost_with_engine", job_id=str(held.claim.job_id), attempt=held.claim.attempt)
            self._is_engine_gone = True
        finally:
            with self._lock:
                if self._held.get(held.claim.job_id) is held:
                    del self._held[held.claim.job_id]
                self._emptied.notify_all()
            self.on_room()

    def engine_lost(self, reason: str) -> None:
        """Report the jobs that the engine died with at once, rather than leave them to their leases."""
        with self._lock:
            self._is_engine_away = True
            lost = {job_id: held.claim.attempt for job_id, held in self._held.items() if held.is_in_engine}
        try:
            jobs.report_crash(self._database, lost, reason=f"the engine was lost: {reason}")
        except DatabaseUnavailable as error:
            logger.warning("jobs_left_to_their_leases", num_jobs=len(lost), reason=str(error))

    def engine_back(self) -> None:
        """Claim again."""
        self._is_engine_away = False
        logger.info("engine_is_back", worker=self._facts.id)
        self.on_room()
        self._kick()

    def engine_gone(self) -> None:
        """End the process as soon as it holds nothing."""
        self._is_engine_gone = True

    def _poll(self) -> None:
        if self._is_storage_away:
            self._parts.storage.check_writing()
            self._is_storage_away = False
            logger.info("claims_resume")
        with self._lock:
            has_room = bool(self._room())
        if has_room:
            self._pollers.submit(self._look)

    def beat(self) -> None:
        """Renew the leases of the jobs that move, and let go of those that are somebody else's by now."""
        with self._lock:
            held = dict(self._held)
            takes_jobs = not (self._is_draining or self._is_engine_away)
            state = WorkerState.READY if takes_jobs else WorkerState.DRAINING
        attempts = {job_id: job.claim.attempt for job_id, job in held.items() if not self._is_stalled(job)}
        rows_per_step = self._measure_rows(is_busy=bool(held))
        self._rest(
            fleet.beat(self._database, self._facts, state=state, num_jobs=len(held), rows_per_step=rows_per_step)
        )
        mine = jobs.heartbeat(
            self._database,
            worker_id=self._facts.id,
            attempts=attempts,
            lease_seconds=self._settings.lease_seconds,
        )
        for job_id in attempts.keys() - mine:
            held[job_id].lose()
        self._reserve_for_suspect(bool(held))

    def _measure_rows(self, *, is_busy: bool) -> float | None:
        """Rows of a forward on average since the last heartbeat; where none ran and a job is held, as it was then."""
        before, self._tally = self._tally, self._parts.developer.tally
        latest = self._tally.rows_per_step(before)
        self._rows_per_step = latest if latest is not None or not is_busy else self._rows_per_step
        return self._rows_per_step

    def _rest(self, is_wanted: bool) -> None:
        """Claim nothing more while an operator wants that. What runs goes on."""
        if is_wanted == self._is_resting:
            return
        self._is_resting = is_wanted
        logger.info("worker_rests" if is_wanted else "worker_resumes", worker=self._facts.id)
        if not is_wanted:
            self.on_room()

    def _reserve_for_suspect(self, is_busy: bool) -> None:
        must_run_empty = is_busy and jobs.reserve_solo(
            self._database,
            worker_id=self._facts.id,
            models=self._facts.models,
            wait_seconds=self._settings.solo_wait_seconds,
            hold_seconds=self._settings.heartbeat_seconds * 3,
        )
        with self._lock:
            self._must_run_empty = must_run_empty

    def _is_stalled(self, held: Held) -> bool:
        stage, age_seconds = held.stage_age_seconds
        is_of_storage = stage in {FETCH, UPLOAD}
        limit = self._settings.upload_limit_seconds * 2 if is_of_storage else self._parts.stall_limits.of(stage)
        return limit is not None and age_seconds > limit

    def _watch(self) -> None:
        """Show life, or end the engine's process when its device is stuck: only a new one gets the device back.

        An engine that is gone takes this process along.

        Asks no database: a worker that waits for one is not to be restarted.
        """
        with self._lock:
            held = dict(self._held)
        if self._is_engine_gone and not held and not self._is_draining:
            logger.critical("engine_is_gone")
            os._exit(NO_DEVICE_EXIT_CODE)
        for job_id, job in held.items():
            if self._is_wedged(job):
                logger.critical("device_is_stuck", job_id=str(job_id), stage=job.stage_age_seconds[0])
                self.on_hang()
                break
        if not self._is_engine_away:
            self._show_life()

    def _is_wedged(self, held: Held) -> bool:
        stage, age_seconds = held.stage_age_seconds
        limit = self._parts.stall_limits.of(stage)
        return limit is not None and age_seconds > limit + self._parts.stall_limits.wedged_extra

    def _show_life(self) -> None:
        path = life_sign(self._settings, self._facts.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def _publish_progress(self) -> None:
        with self._lock:
            progress = {job_id: held.progress for job_id, held in self._held.items()}
        changed = {job_id: fields for job_id, fields in progress.items() if self._published.get(job_id) != fields}
        self._board.publish(changed)
        self._published = dict(progress)

    def _publish_previews(self) -> None:
        """Have the engine show what somebody watches, and pass it on."""
        with self._lock:
            developing = {job_id: held for job_id, held in self._held.items() if held.handles and not held.has_left}
        for job_id in self._previews.watched(developing):
            held = developing[job_id]
            for n, handle in enumerate(held.handles):
                handle.watch(WATCH_SECONDS)
                preview = handle.preview
                if preview and not handle.done and held.shown.get(n) != preview.step:
                    held.shown[n] = preview.step
                    self._previews.publish(job_id, n, step=preview.step, body=encode_preview(preview.paint()))

    def _listen_for_cancels(self) -> None:
        listen_for_cancels(self._settings.redis_url, on_cancel=self._on_cancel, stop=self._stop)

    def _on_cancel(self, job_id: UUID) -> None:
        """Believe nothing that Redis says: ask SQL, which the next heartbeat would have done anyway."""
        with self._lock:
            is_mine = job_id in self._held
        if is_mine:
            try:
                self.beat()
            except DarkroomError as error:
                logger.warning("cancel_waits_for_heartbeat", job_id=str(job_id), reason=str(error))

    def drain(self) -> None:
        """Claim nothing more; let what runs finish within the grace time, and put the rest back into the queue."""
        with self._lock:
            is_first, self._is_draining = not self._is_draining, True
        if is_first:
            self._drain()
            self._drained.set()
        self._drained.wait()

    def _drain(self) -> None:
        with self._lock:
            logger.info("worker_drains", worker=self._facts.id, num_jobs=len(self._held))
        give_up_at = time.monotonic() + self._settings.worker_grace_seconds
        self._claiming.settle(self._settings.worker_grace_seconds)  # a claim under way is held afterwards
        with self._lock:
            self._emptied.wait_for(lambda: not self._held, max(0.0, give_up_at - time.monotonic()))
            left = list(self._held.values())
        for held in left:
            self._put_back(held)
        with self._lock:
            self._emptied.wait_for(lambda: not self._held, self._settings.heartbeat_seconds)

    def _put_back(self, held: Held) -> None:
        claim = held.claim
        try:
            jobs.requeue(self._database, claim.job_id, reason="the worker drains", attempt=claim.attempt)
        except (StaleAttempt, JobFinished):
            logger.info("job_was_lost", job_id=str(claim.job_id), attempt=claim.attempt)
        except DatabaseUnavailable as error:
            logger.warning("job_left_to_its_lease", job_id=str(claim.job_id), reason=str(error))
        held.lose()

    def stop(self) -> None:
        """End the loops and leave the fleet. After `drain`; again is fine."""
        self._stop.set()
        for loop in self._loops:
            loop.stop()
        self._pollers.shutdown(wait=False, cancel_futures=True)
        try:
            fleet.leave(self._database, self._facts.id)
        except DatabaseUnavailable as error:
            logger.warning("left_without_a_word", reason=str(error))
        life_sign(self._settings, self._facts.id).unlink(missing_ok=True)


def max_held(facts: WorkerFacts) -> int:
    """How many jobs a worker can hold: its slots, as many interactive ones, and as many whose pictures are stored."""
    return 3 * facts.slots


def life_sign(settings: Settings, worker_id: str) -> Path:
    """The file that a worker touches with every heartbeat, for probes on its own host."""
    return settings.home / "run" / f"worker-{worker_id}.alive"


def is_alive(settings: Settings) -> bool:
    """Whether a worker on this host has shown a sign of life within three heartbeats."""
    oldest = time.time() - 3 * settings.heartbeat_seconds
    return any(path.stat().st_mtime > oldest for path in (settings.home / "run").glob("worker-*.alive"))
