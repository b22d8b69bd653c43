"""One claimed job, from the engine to its commit. The only place where a job's parameters become engine requests."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import structlog

from darkroom import jobs
from darkroom.db import Database
from darkroom.errors import DatabaseUnavailable, StaleAttempt, StorageError
from darkroom.jobs import Claim, ImageRecord
from darkroom.picture_metadata import embedded, parameters_of
from darkroom.storage import CONTENT_TYPES, Storage, image_key, thumb_key
from darkroom_engine import (
    DeadlineExceeded,
    EngineStopped,
    Handle,
    InvalidRequest,
    Output,
    Request,
    RequestCanceled,
    RequestFailed,
)
from darkroom_worker.images import encode, encode_thumb

logger = structlog.get_logger(__name__)

UPLOAD = "upload"
RETRY_PAUSE_SECONDS = 1.0
MAX_RETRY_PAUSE_SECONDS = 5.0


class Develops(Protocol):
    """What of the engine a job needs; the tests' own engine has no more."""

    def submit(self, request: Request) -> Handle: ...


@dataclass
class Held:
    """A job in this worker's hands. `is_lost`: nothing that it still does counts any more."""

    claim: Claim
    handles: list[Handle] = field(default_factory=list)
    stage: str | None = None
    stage_began_at: float = field(default_factory=time.monotonic)
    is_lost: bool = False

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
        return {"stage": moving[0].stage if moving else (self.stage or "waiting"), "step": step, "num_steps": num_steps}

    @property
    def stage_age_seconds(self) -> tuple[str, float]:
        """The stage of the picture that moved last, and how long ago it did."""
        moving = [handle.progress for handle in self.handles if not handle.done]
        if not moving:
            return self.stage or "waiting", time.monotonic() - self.stage_began_at
        latest = max(moving, key=lambda progress: progress.changed_at)
        return latest.stage, time.monotonic() - latest.changed_at


def to_requests(claim: Claim) -> list[Request]:
    """One request per picture; a deadline on the database's clock becomes one on this machine's."""
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
        database: Database,
        patience_seconds: float,
        embeds_metadata: bool,
    ) -> None:
        self._engine = engine
        self._storage = storage
        self._database = database
        self._patience_seconds = patience_seconds
        self._embeds_metadata = embeds_metadata

    def develop(self, held: Held) -> None:
        """Develop a job to its end.

        Raises StorageError when the storage stayed away, and the job waits again; EngineStopped, and the job is left
        to its lease.
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
        except (RequestFailed, InvalidRequest) as error:
            self._fail(held, "develop-failed", str(error))
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
        for request in to_requests(claim):
            held.handles.append(self._engine.submit(request))
        outputs: list[Output] = []
        images: list[ImageRecord] = []
        upload_seconds = 0.0
        for n, handle in enumerate(held.handles):
            outputs.append(handle.result())
            held.enter(UPLOAD)
            began = time.monotonic()
            images.append(self._upload(held, n, outputs[-1]))
            upload_seconds += time.monotonic() - began
        timings = _longest(outputs) | {UPLOAD: round(upload_seconds, 4)}
        succeed = partial(
            jobs.succeed, self._database, claim.job_id, attempt=claim.attempt, images=images, timings=timings
        )
        self._insist(held, succeed)

    def _upload(self, held: Held, n: int, output: Output) -> ImageRecord:
        claim = held.claim
        params = claim.params
        body = encode(output.image, params.format, quality=params.quality, texts=self._texts(claim, output))
        height, width = output.image.shape[:2]
        record = ImageRecord(
            n=n,
            key=image_key(claim.job_id, claim.attempt, n, params.format),
            thumb_key=thumb_key(claim.job_id, claim.attempt, n),
            content_type=CONTENT_TYPES[params.format],
            width=width,
            height=height,
            num_bytes=len(body),
            seed=output.seed,
            sha256=hashlib.sha256(body).hexdigest(),
        )
        self._put(held, record.key, body, record.content_type)
        self._put(held, record.thumb_key, encode_thumb(output.image), CONTENT_TYPES["webp"])
        return record

    def _texts(self, claim: Claim, output: Output) -> Mapping[str, str]:
        """What the picture's file says of its making; nothing where the job or the deployment wants it so."""
        if not (self._embeds_metadata and claim.params.embed_metadata):
            return {}
        return embedded(parameters_of(claim.params, model=claim.model, seed=output.seed))

    def _put(self, held: Held, key: str, body: bytes, content_type: str) -> None:
        """Upload, again and again while the storage is away: the picture is not developed twice for a hiccup."""
        give_up_at = held.stage_began_at + self._patience_seconds
        pause = RETRY_PAUSE_SECONDS
        while True:
            if held.is_lost:
                raise StaleAttempt(held.claim.job_id, held.claim.attempt)
            try:
                return self._storage.put(key, body, content_type=content_type)
            except StorageError as error:
                if time.monotonic() + pause > give_up_at:
                    raise
                logger.warning("upload_waits", job_id=str(held.claim.job_id), reason=error.reason, seconds=pause)
                time.sleep(pause)
                pause = min(pause * 2, MAX_RETRY_PAUSE_SECONDS)

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


def _longest(outputs: list[Output]) -> dict[str, float]:
    """Each stage's seconds, of the picture that took longest in it: the pictures of a job develop side by side."""
    stages = dict.fromkeys(stage for output in outputs for stage in output.timings)
    return {stage: round(max(output.timings.get(stage, 0.0) for output in outputs), 4) for stage in stages}
