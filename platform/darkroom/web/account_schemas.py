"""The shapes of what is asked and told of accounts, for the OpenAPI document and for reading bodies."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr

from darkroom import keys

MAX_REASON_CHARACTERS = 500
Scope = Literal["submit", "read", "interactive", "admin"]

LIMITS = {
    "name": f"1 to {keys.MAX_NAME_CHARACTERS} printable characters",
    "owner": f"1 to {keys.MAX_NAME_CHARACTERS} printable characters",
    "scopes": f"one or more of {', '.join(keys.SCOPES)}",
    "reason": f"1 to {MAX_REASON_CHARACTERS} printable characters",
    **keys.QUOTA_LIMITS_IN_WORDS,
}


def _within(name: str) -> str:
    return LIMITS[name].capitalize() + "."


Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Quotas(_Exact):
    weight: Number = Field(1.0, description=f"Its share of the fleet, beside others'. {_within('weight')}")
    max_queued: Whole | None = Field(None, description=f"How many of its jobs may wait. {_within('max_queued')}")
    megapixel_steps_per_day: Number | None = Field(
        None, description=f"How much it may submit on one day (UTC). {_within('megapixel_steps_per_day')}"
    )
    requests_per_minute: Whole | None = Field(
        None, description=f"How often it may ask. {_within('requests_per_minute')}"
    )


class KeyChanges(_Quotas):
    """What of a key to change; what is not named stays. An empty limit is none."""

    scopes: list[Scope] = Field(["submit", "read"], description="What it may do: all that it may.")


class NewKey(KeyChanges):
    """A key to make. Without an owner its jobs belong to its name."""

    name: StrictStr = Field(description=_within("name"))
    owner: StrictStr | None = Field(None, description="Whose jobs its jobs are; several keys may have one owner.")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that cannot be shown")
    return text


class NewPause(_Exact):
    """Why no jobs are to be taken: it is told to everybody who submits."""

    reason: Annotated[StrictStr, Field(min_length=1, max_length=MAX_REASON_CHARACTERS), AfterValidator(_printable)]


class KeyName(_Exact):
    """By what a key is known."""

    id: UUID
    name: str
    prefix: str


class QuotaDocument(_Exact):
    """What may be used, and what of it is used and left. Empty is without limit."""

    max_queued: int | None
    num_queued: int | None
    queued_left: int | None
    megapixel_steps_per_day: float | None
    megapixel_steps_today: float | None
    megapixel_steps_left: float | None
    requests_per_minute: int | None


class MeDocument(_Exact):
    """Who asks, what they may do, and how much of that is left. The key is empty where none is asked for."""

    owner: str
    key: KeyName | None
    scopes: list[Scope]
    weight: float
    quota: QuotaDocument


class KeyDocument(KeyName):
    """A key, without the key itself, which nobody knows."""

    owner: str
    scopes: list[Scope]
    weight: float
    max_queued: int | None
    megapixel_steps_per_day: float | None
    requests_per_minute: int | None
    megapixel_steps_today: float
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


class MadeKey(KeyDocument):
    """A key that was just made, with the key itself, which is not shown again."""

    key: str


class KeyList(_Exact):
    """Every key that ever was, oldest first."""

    keys: list[KeyDocument]


class IntakeDocument(_Exact):
    """Whether jobs are taken, and if not, why, since when, and who said so."""

    paused: bool
    reason: str | None
    paused_by: str | None
    paused_at: datetime | None


class WorkerDocument(_Exact):
    """A worker as it was last heard of."""

    id: str
    host: str
    pid: int
    device: str
    device_memory_bytes: int
    fingerprint: str
    models: list[str]
    slots: int
    version: str
    state: Literal["ready", "draining"]
    num_jobs: int
    rows_per_step: float | None
    is_drain_wanted: bool
    started_at: datetime
    heartbeat_at: datetime
    heartbeat_age_seconds: float


class WorkerList(_Exact):
    """Every worker that was heard of lately, by host."""

    workers: list[WorkerDocument]


class DrainDocument(_Exact):
    """What a worker will be told by its next heartbeat."""

    id: str
    is_drain_wanted: bool


class RequeuedDocument(_Exact):
    """A job that was put back, without what it asks for."""

    id: UUID
    owner: str
    state: str
