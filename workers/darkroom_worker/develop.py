"""One claimed job, from the engine to its commit. The only place where a job's parameters become engine requests."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import structlog

from darkroom import jobs
from darkroom.db import Database
from darkroom.errors import DatabaseUnavailable, StaleAttempt, StorageError
from darkroom.jobs import Claim, ImageRecord, Success
from darkroom.picture_metadata import embedded, parameters_of
from darkroom.storage import Storage
from darkroom_engine import (
    DeadlineExceeded,
    EngineStopped,
    Handle,
    InvalidRequest,
    Output,
    Request,
    RequestCanceled,
    RequestFailed,
    Tally,
)
from darkroom_worker.errors import EngineAway, EngineLost, OutputLost, WorkerError
from darkroom_worker.inputs import Inputs, fetch_inputs
from darkroom_worker.output import Outlet, wait_for
from darkroom_worker.output_process import Stored
from darkroom_worker.together import Together

logger = structlog.get_logger(__name__)

FETCH = "fetch"
WAITING = "waiting"
UPLOAD = "upload"
WALK_FRAMES = 8
# Whoever ended the process that stored the pictures, a job that was there so often may have done it.
MAX_ATTEMPTS = 3
RETRY_PAUSE_SECONDS = 1.0
MAX_RETRY_PAUSE_SECONDS = 5.0
NO_INPUTS = Inputs()


class Develops(Protocol):
    """What of the engine a job needs; the tests' own engine has no more."""

    @property
    def tally(self) -> Tally: ...

    def submit(self, request: Request) -> Handle: ...


@dataclass
class Held:
    """A job in this worker's hands. `is_lost`: nothing that it still does counts any more.

    `has_left` the engine: its pictures are all developed, and others may take its place there.
    """

    claim: Claim
    handles: list[Handle] = field(default_factory=list)
    stage: str = WAITING
    stage_began_at: float = field(default_factory=time.monotonic)
    is_lost: bool = False
    has_left: bool = False
    on_left: Callable[[], None] = lambda: None
    # The step of the latest preview that was published of each picture.
    shown: dict[int, int] = field(default_factory=dict)

    @property
    def is_in_engine(self) -> bool:
        """Whether the job has, or is about to have, requests in the engine."""
        return not self.has_left and (bool(self.handles) or self.stage != FETCH)

    def leave(self) -> None:
        """Note that the engine has nothing left to do for the job."""
        self.has_left = True
        self.on_left()

    def enter(self, stage: str) -> None:
        """Note that the job has left the engine for a stage of the worker's own."""
        self.stage, self.stage_began_at = stage, time.monotonic()

    def lose(self) -> None:
        """Give the job up: its requests leave the engine at the next step."""
        self.is_lost = True
        for handle in self.handles:
            handle.cancel()

    @property
    def progress(self) -> Mapping[str, object]:
        """How far the job is, over all its pictures."""
        moving = [handle.progress for handle in self.handles if not handle.done]
        step = sum(handle.progress.step for handle in self.handles)
        num_steps = sum(handle.progress.num_steps for handle in self.handles)
        return {"stage": moving[0].stage if moving else self.stage, "step": step, "num_steps": num_steps}

    @property
    def stage_age_seconds(self) -> tuple[str, float]:
        """The stage of the picture that moved last, and how long ago it did."""
        moving = [handle.progress for handle in self.handles if not handle.done]
        if not moving:
            return self.stage, time.monotonic() - self.stage_began_at
        latest = max(moving, key=lambda progress: progress.changed_at)
        return latest.stage, time.monotonic() - latest.changed_at


def to_requests(claim: Claim, inputs: Inputs = NO_INPUTS) -> list[Request]:
    """One request per picture; a deadline on the database's clock becomes one on this machine's.

    A job shows the walk of its first picture.
    """
    params = claim.params
    deadline = time.monotonic() + claim.seconds_left
    return [
        Request(
            model=claim.model,
            prompt=params.prompt,
            negative_prompt=params.negative_prompt,
            width=params.width,
            height=params.height,
            num_inference_steps=params.num_inference_steps,
            guidance_scale=params.guidance_scale,
            sampler=params.sampler,
            seed=params.seed_of(n),
            priority=int(claim.job_class),
            deadline=deadline,
            image=inputs.image,
            mask=inputs.mask,
            strength=1.0 if params.strength is None else params.strength,
            loras=tuple((lora.name, lora.weight) for lora in params.loras),
            is_exact=params.exact,
            num_walk_frames=WALK_FRAMES if params.walk and n == 0 else 0,
        )
        for n in range(params.num_images)
    ]


class Developer:
    """Takes claimed jobs through engine and storage. Every way a job can end in a worker is a line of `develop`."""

    def __init__(
        self,
        engine: Develops,
        *,
        storage: Storage,
        outlet: Outlet,
        database: Database,
        embeds_metadata: bool,
    ) -> None:
        self._engine = engine
        self._storage = storage
        self._outlet = outlet
        self._database = database
        self._embeds_metadata = embeds_metadata
        self._succeeding = Together(self._succeed_some)

    @property
    def tally(self) -> Tally:
        """How many forwards the engine has run, and how many rows they had."""
        return self._engine.tally

    def develop(self, held: Held) -> None:
        """Develop a job to its end.

        Raises StorageError when the storage stayed away, and the job waits again; EngineStopped, and the job is left
        to its lease. Of an engine that was lost the worker has heard, and told the database.
        """
        claim = held.claim
        try:
            self._develop(held)
        except RequestCanceled:
            logger.info("job_dropped", job_id=str(claim.job_id), attempt=claim.attempt)
        except StaleAttempt:
            logger.info("job_was_lost", job_id=str(claim.job_id), attempt=claim.attempt)
        except DeadlineExceeded:
            self._insist(held, lambda: jobs.expire_overdue(self._database))
        except EngineStopped:
            raise
        except EngineLost:
            logger.error("job_lost_with_engine", job_id=str(claim.job_id), attempt=claim.attempt)
        except EngineAway as error:
            self._requeue(held, str(error))
        except (RequestFailed, InvalidRequest) as error:
            self._fail(held, "develop-failed", str(error))
        except OutputLost as error:
            if claim.attempt < MAX_ATTEMPTS:
                self._requeue(held, str(error))
            else:
                self._fail(held, error.code, str(error))
        except WorkerError as error:
            self._fail(held, error.code, str(error))
        except StorageError as error:
            self._requeue(held, f"the storage is away: {error.reason}")
            raise
        except Exception as error:
            logger.exception("job_broke", job_id=str(claim.job_id), attempt=claim.attempt)
            self._fail(held, "internal", f"an unexpected {type(error).__name__} in the worker")

    def _develop(self, held: Held) -> None:
        try:
            self._take_through(held)
        finally:
            for handle in held.handles:  # of a job that broke off, no other picture is wanted
                handle.cancel()

    def _take_through(self, held: Held) -> None:
        claim = held.claim
        inputs, fetch_timings = self._fetch(held)
        for request in to_requests(claim, inputs):
            held.handles.append(self._engine.submit(request))
        storing: list[Future[Stored]] = []
        try:
            outputs = [self._store(held, n, handle, storing) for n, handle in enumerate(held.handles)]
            held.leave()
            walk = outputs[0].walk
            walk_key = None if walk is None else wait_for(held, self._outlet.store_walk(held, walk))
            stored = [wait_for(held, future) for future in storing]
        except RequestCanceled:
            for future in storing:
                if future.done():
                    wait_for(held, future)  # raises what the others were canceled for
            raise
        finally:
            for future in storing:
                future.cancel()
        success = Success(
            claim.job_id,
            claim.attempt,
            images=[
                _record(n, output, picture) for n, (output, picture) in enumerate(zip(outputs, stored, strict=True))
            ],
            timings=fetch_timings | _longest([output.timings for output in outputs]) | _longest(map(_timings, stored)),
            walk_key=walk_key,
        )
        self._insist(held, partial(self._succeed, success))

    def _succeed(self, success: Success) -> None:
        """Commit it with what others have ready just now; alone, where that was in vain."""
        if not self._succeeding.ask(success):
            jobs.succeed(self._database, success)

    def _succeed_some(self, successes: Sequence[Success]) -> list[bool]:
        ended = jobs.succeed_some(self._database, successes)
        return [success.job_id in ended for success in successes]

    def _store(self, held: Held, n: int, handle: Handle, storing: list[Future[Stored]]) -> Output:
        """Wait until a picture is developed, and have it stored while the next ones still develop."""
        output = handle.result()
        held.enter(UPLOAD)
        stored = self._outlet.store_picture(held, n, output, texts=self._texts(held.claim, output))
        stored.add_done_callback(partial(_cancel_others, held.handles))
        storing.append(stored)
        return output

    def _fetch(self, held: Held) -> tuple[Inputs, dict[str, float]]:
        params = held.claim.params
        if params.init_image is None:
            return NO_INPUTS, {}
        held.enter(FETCH)
        began = time.monotonic()
        inputs = fetch_inputs(self._storage, params)
        held.enter(WAITING)
        return inputs, {FETCH: round(time.monotonic() - began, 4)}

    def _texts(self, claim: Claim, output: Output) -> Mapping[str, str]:
        """What the picture's file says of its making; nothing where the job or the deployment wants it so."""
        if not (self._embeds_metadata and claim.params.embed_metadata):
            return {}
        return embedded(parameters_of(claim.params, model=claim.model, seed=output.seed))

    def _insist(self, held: Held, commit: Callable[[], object]) -> None:
        """Commit, however long the database is away: the fence decides afterwards whether it still counts."""
        pause = RETRY_PAUSE_SECONDS
        while True:
            try:
                commit()
                return
            except DatabaseUnavailable as error:
                if held.is_lost:
                    raise StaleAttempt(held.claim.job_id, held.claim.attempt) from error
                logger.warning("commit_waits", job_id=str(held.claim.job_id), reason=str(error), seconds=pause)
                time.sleep(pause)
                pause = min(pause * 2, MAX_RETRY_PAUSE_SECONDS)

    def _requeue(self, held: Held, reason: str) -> None:
        claim = held.claim
        requeue = partial(jobs.requeue, self._database, claim.job_id, reason=reason, attempt=claim.attempt)
        self._unless_stale(held, requeue)

    def _fail(self, held: Held, code: str, message: str) -> None:
        claim = held.claim
        fail = partial(jobs.fail, self._database, claim.job_id, attempt=claim.attempt, code=code, message=message)
        self._unless_stale(held, fail)

    def _unless_stale(self, held: Held, commit: Callable[[], object]) -> None:
        try:
            self._insist(held, commit)
        except StaleAttempt:
            logger.info("job_was_lost", job_id=str(held.claim.job_id), attempt=held.claim.attempt)


def _cancel_others(handles: list[Handle], stored: Future[Stored]) -> None:
    """Of a job of which one picture cannot be stored, no other is wanted."""
    if not stored.cancelled() and stored.exception():
        for handle in handles:
            handle.cancel()


def _record(n: int, output: Output, stored: Stored) -> ImageRecord:
    height, width = output.image.shape[:2]
    return ImageRecord(
        n=n,
        key=stored.key,
        thumb_key=stored.thumb_key,
        content_type=stored.content_type,
        width=width,
        height=height,
        num_bytes=stored.num_bytes,
        seed=output.seed,
        sha256=stored.sha256,
        fingerprint=output.fingerprint,
        rows=output.rows,
    )


def _timings(stored: Stored) -> Mapping[str, float]:
    return {"compress": stored.compress_seconds, UPLOAD: stored.upload_seconds}


def _longest(timings: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Each stage's seconds, of the picture that took longest in it: the pictures of a job develop side by side."""
    longest: dict[str, float] = {}
    for seconds_of in timings:
        for stage, seconds in seconds_of.items():
            longest[stage] = max(longest.get(stage, 0.0), round(seconds, 4))
    return longest
