"""What Darkroom answers, as frozen values. What a newer Darkroom says besides is passed over."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from darkroom.errors import FieldError

LIVE_STATES = frozenset({"queued", "running"})


class Document(BaseModel):
    """Anything that is read from an answer."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Progress(Document):
    """How far a running job is, as far as is known."""

    stage: str
    step: int = 0
    num_steps: int = 0


class Reason(Document):
    """Why a job has failed."""

    code: str
    message: str


class Image(Document):
    """A finished picture, still at Darkroom."""

    n: int
    url: str
    content_type: str
    width: int
    height: int
    num_bytes: int
    seed: int
    sha256: str


class Job(Document):
    """A job as the API tells it."""

    id: UUID
    state: str
    model: str
    priority: str
    params: dict[str, Any]
    position: int | None = None
    progress: Progress | None = None
    attempt: int = 0
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: Reason | None = None
    timings: dict[str, float] = {}
    images: tuple[Image, ...] = ()
    metadata: dict[str, Any] = {}
    urls: dict[str, str] = {}

    @property
    def is_live(self) -> bool:
        """Whether it can still change."""
        return self.state in LIVE_STATES


class Model(Document):
    """A model on offer."""

    name: str
    title: str
    description: str = ""
    family: str
    license: str
    defaults: dict[str, Any]
    limits: dict[str, Any]
    example_prompts: tuple[str, ...] = ()


class JobPage(Document):
    """Some jobs, and where the next ones begin."""

    jobs: tuple[Job, ...]
    next_cursor: str | None = None


class Models(Document):
    """All models, the default first."""

    models: tuple[Model, ...]


class ProblemDocument(Document):
    """A refusal (RFC 9457)."""

    title: str
    detail: str = ""
    code: str = ""
    errors: tuple[FieldError, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A finished picture with its bytes. Picture n of a job develops from a seed of its own."""

    n: int
    body: bytes
    content_type: str
    width: int
    height: int
    seed: int

    def save(self, path: str | Path) -> Path:
        """Write the file as it is, and return where it lies."""
        path = Path(path)
        path.write_bytes(self.body)
        return path


@dataclass(frozen=True)
class Event:
    """Something that happened to a job: `state`, `progress`, `preview`, `image` or, at the end, `done`."""

    name: str
    document: dict[str, Any]
    id: str | None = None
