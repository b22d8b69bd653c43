"""Every error the platform raises. Knows no HTTP: the web room gives each its status."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID


class DarkroomError(Exception):
    """Something went wrong in Darkroom."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class ConfigError(DarkroomError):
    """A setting has an impossible value."""


class CatalogError(DarkroomError):
    """The model catalog cannot be read."""


class UnknownModel(DarkroomError):
    """No model of that name is in the catalog."""

    def __init__(self, name: str, *, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(f"no model named {name!r} is in the catalog; it has {', '.join(self.known) or 'none'}")


@dataclass(frozen=True)
class FieldError:
    """One refused field: which one, what is wrong with its value, and the limit it must keep."""

    field: str
    problem: str
    limit: str


class InvalidParameters(DarkroomError):
    """A request names values that its model does not take."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(f"{error.field}: {error.problem} ({error.limit})" for error in self.errors))


class JobNotFound(DarkroomError):
    """No such job."""

    def __init__(self, job_id: UUID | str) -> None:
        self.job_id = job_id
        super().__init__(f"no job has the id {job_id}")


class BatchNotFound(DarkroomError):
    """No such batch."""

    def __init__(self, batch_id: UUID | str) -> None:
        self.batch_id = batch_id
        super().__init__(f"no batch has the id {batch_id}")


class UploadNotFound(DarkroomError):
    """No such upload."""

    def __init__(self, upload_id: UUID | str) -> None:
        self.upload_id = upload_id
        super().__init__(f"no upload has the id {upload_id}")


class InputGone(DarkroomError):
    """What a job was to begin from is not stored any more."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"{key} is not stored any more")


class RequestDiffers(DarkroomError):
    """An idempotency key was used before, with another request."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"the idempotency key {key!r} was used before, with another request")


class JobFinished(DarkroomError):
    """The job has already ended, and an ended job never changes."""

    def __init__(self, job_id: UUID, state: str) -> None:
        self.job_id = job_id
        self.state = state
        super().__init__(f"job {job_id} has already ended as {state}")


class JobStillLive(DarkroomError):
    """The job has not ended yet."""

    def __init__(self, job_id: UUID, state: str) -> None:
        self.job_id = job_id
        self.state = state
        super().__init__(f"job {job_id} is still {state}: what has not ended cannot be tried again")


class StaleAttempt(DarkroomError):
    """Another attempt holds the job, or it has ended: this attempt may write nothing."""

    def __init__(self, job_id: UUID, attempt: int) -> None:
        self.job_id = job_id
        self.attempt = attempt
        super().__init__(f"attempt {attempt} no longer holds job {job_id}")


class ImageNotFound(DarkroomError):
    """No such picture."""

    def __init__(self, job_id: UUID, n: int) -> None:
        self.job_id = job_id
        self.n = n
        super().__init__(f"job {job_id} has no picture {n}")


class KeyNotFound(DarkroomError):
    """No such API key."""

    def __init__(self, named: UUID | str) -> None:
        self.named = named
        super().__init__(f"no API key is known as {named}")


class AmbiguousKey(DarkroomError):
    """Several API keys are meant."""

    def __init__(self, named: str, *, prefixes: Iterable[str]) -> None:
        self.named = named
        self.prefixes = tuple(prefixes)
        super().__init__(f"{named} may be any of the keys {', '.join(self.prefixes)}: say which by its id")


class KeyRevoked(DarkroomError):
    """The API key was revoked."""


class QuotaExceeded(DarkroomError):
    """An API key has no quota left for this."""

    def __init__(self, quota: str, *, limit: float, used: float, asked: float, seconds_left: float) -> None:
        self.quota = quota
        self.limit = limit
        self.used = used
        self.asked = asked
        self.seconds_left = seconds_left
        super().__init__(f"{quota}: {asked:g} more than the {used:g} of {limit:g} that are used")


class IntakePaused(DarkroomError):
    """No jobs are taken just now."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"no jobs are taken just now: {reason}")


class WorkerNotFound(DarkroomError):
    """No such worker."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        super().__init__(f"no worker has the id {worker_id}")


class WebhookNotFound(DarkroomError):
    """No such webhook."""

    def __init__(self, endpoint_id: UUID | str) -> None:
        self.endpoint_id = endpoint_id
        super().__init__(f"no webhook has the id {endpoint_id}")


class DeliveryNotFound(DarkroomError):
    """No such delivery."""

    def __init__(self, delivery_id: UUID | str) -> None:
        self.delivery_id = delivery_id
        super().__init__(f"no delivery has the id {delivery_id}")


class TooManyWebhooks(DarkroomError):
    """An owner has registered as many webhooks as one may have."""

    def __init__(self, most: int) -> None:
        self.most = most
        super().__init__(f"at most {most} webhooks can be registered: remove one first")


class NoPlaceToWait(DarkroomError):
    """As many wait already as this process takes."""


class PictureUnreadable(DarkroomError):
    """The file cannot be read as a picture."""


class DatabaseUnavailable(DarkroomError):
    """The database does not answer."""


class BrokerAway(DarkroomError):
    """Redis does not answer."""


class StorageError(DarkroomError):
    """The object storage refused or did not answer."""

    def __init__(self, operation: str, *, key: str, reason: str) -> None:
        self.operation = operation
        self.key = key
        self.reason = reason
        super().__init__(f"{operation} {key}: {reason}")

    def __reduce__(self) -> tuple[Callable[..., "StorageError"], tuple[str]]:
        """Cross from one process to another as it is."""
        return partial(type(self), key=self.key, reason=self.reason), (self.operation,)


class ObjectNotFound(StorageError):
    """No object has that key."""


class StackError(DarkroomError):
    """A part of the embedded stack cannot run."""


class ClientError(DarkroomError):
    """Darkroom could not be reached, or answered in a way that makes no sense."""


class RequestRefused(ClientError):
    """Darkroom answered with a problem document. `document` is the whole of it, as it came."""

    def __init__(
        self,
        status: int,
        *,
        title: str,
        detail: str,
        code: str,
        errors: Iterable[FieldError] = (),
        document: Mapping[str, Any] | None = None,
    ) -> None:
        self.status = status
        self.title = title
        self.detail = detail
        self.code = code
        self.errors = tuple(errors)
        self.document = dict(document or {})
        fields = "; ".join(f"{error.field}: {error.problem} ({error.limit})" for error in self.errors)
        super().__init__(": ".join(part for part in (title, fields or detail) if part))


class JobFailed(ClientError):
    """The job has ended without pictures."""

    def __init__(self, job_id: UUID | str, *, state: str, message: str = "") -> None:
        self.job_id = job_id
        self.state = state
        self.reason = message
        super().__init__(f"the job has {state}" + (f": {message}" if message else ""))


class JobUnfinished(ClientError):
    """The job has not ended in the time that was given to wait for it."""

    def __init__(self, job_id: UUID | str, *, state: str, seconds: float) -> None:
        self.job_id = job_id
        self.state = state
        self.seconds = seconds
        super().__init__(f"job {job_id} is still {state} after {seconds:.0f} s; it goes on, ask for it again later")
