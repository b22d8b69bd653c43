"""The shapes of requests and answers, for the OpenAPI document. They describe; documents.py makes the answers.

What a job's fields may hold depends on its model, and is read from /api/v1/models: here stand only their types.
"""

from datetime import datetime
from types import GenericAlias
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, create_model

from darkroom.catalog import GenerationDefaults, GenerationLimits
from darkroom.jobs import JobState
from darkroom.params import GenerationParams
from darkroom.web.queries import DEFAULT_PAGE, LARGEST_PAGE, LONGEST_TEXT

Priority = Literal["interactive", "bulk"]
State = Literal["queued", "running", "succeeded", "failed", "canceled", "expired"]
Count = Field(ge=0)


class _Told(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RefusedField(_Told):
    """One field that was not taken."""

    field: str
    problem: str
    limit: str


class Problem(BaseModel):
    """What went wrong (RFC 9457). `code` is stable; `detail` is prose and may change."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[RefusedField] = []


class Webhook(_Told):
    """What is called when the job changes."""

    url: str
    events: list[str] = Field([], description="Which of its events; without it, how it ended.")


def _optional(schema: dict[str, Any]) -> None:
    schema.pop("default", None)  # the model's own, which no schema knows


def _parameters() -> dict[str, Any]:
    """The generation parameters as a request has them: all but the prompt may be left to the model."""
    return {
        name: (field.annotation, Field(None, json_schema_extra=_optional))
        for name, field in GenerationParams.model_fields.items()
        if name != "prompt"
    }


class _JobOptions(BaseModel):
    model: str = Field("", description="The name of a model; without it, the default one.", json_schema_extra=_optional)
    priority: Priority = Field("bulk", description="Which line it waits in. A key may be held to bulk.")
    deadline_seconds: float = Field(0, gt=0, description="When it expires undone.", json_schema_extra=_optional)
    retention_seconds: float = Field(
        0, gt=0, description="How long it is kept once it has ended.", json_schema_extra=_optional
    )
    metadata: dict[str, Any] = Field({}, description="Your own notes, given back as they are.")
    webhook: Webhook | None = None


class _JobRequest(_JobOptions):
    """A job. `init_image` and `mask` name an upload, an earlier image by its id, or are a data: URL."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(examples=["a red house by the sea"])


class _MatrixRequest(_JobOptions):
    """Every combination: each `{a|b}` of the prompt, each list in place of a value. One seed for all unless listed."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | list[str] = Field(examples=["a {red|blue} house"])


def _listed() -> dict[str, Any]:
    """The same, each also as a list of values to try; a list of loras is one value."""
    return {
        name: (one if name == "loras" else one | GenericAlias(list, (one,)), field)
        for name, (one, field) in _parameters().items()
    }


JobRequest: type[BaseModel] = create_model(
    "JobRequest", __base__=_JobRequest, __doc__=_JobRequest.__doc__, **_parameters()
)
Matrix: type[BaseModel] = create_model("Matrix", __base__=_MatrixRequest, __doc__=_MatrixRequest.__doc__, **_listed())


class BatchRequest(_Told):
    """Many jobs at once, all or none: either a list of them, or a matrix to multiply out."""

    jobs: list[JobRequest] = Field([], json_schema_extra=_optional)
    matrix: Matrix | None = Field(None, json_schema_extra=_optional)


class SubmitHeaders(BaseModel):
    """What may go with a submission."""

    idempotency_key: str = Field(
        "",
        alias="Idempotency-Key",
        description="Of your own choice, 1 to 255 visible characters, good for a day: "
        "the same request under the same key is the same job.",
        json_schema_extra=_optional,
    )
    prefer: str = Field(
        "",
        alias="Prefer",
        description="`wait=30`: answer when the job has ended, or after so many seconds, at most 60 (RFC 7240).",
        json_schema_extra=_optional,
    )


class StreamHeaders(BaseModel):
    """Where a stream goes on."""

    last_event_id: str = Field(
        "",
        alias="Last-Event-ID",
        description="The id of the last event that arrived: it goes on after it.",
        json_schema_extra=_optional,
    )


class ListQuery(BaseModel):
    """Which jobs."""

    state: State | None = Field(None, json_schema_extra=_optional)
    model: str | None = Field(None, max_length=LONGEST_TEXT, json_schema_extra=_optional)
    batch: str | None = Field(None, description="The id of a batch.", json_schema_extra=_optional)
    q: str | None = Field(
        None, max_length=LONGEST_TEXT, description="Words of the prompt, all of them.", json_schema_extra=_optional
    )
    cursor: str | None = Field(None, description="The next_cursor of an earlier page.", json_schema_extra=_optional)
    limit: int = Field(DEFAULT_PAGE, ge=1, le=LARGEST_PAGE)


class ImageQuery(BaseModel):
    """Which file of a picture, and what a browser does with it."""

    variant: Literal["original", "thumb", "walk"] = "original"
    download: Literal["0", "1"] = "0"


class UploadForm(BaseModel):
    """A picture in a form."""

    file: str = Field(json_schema_extra={"format": "binary"})


class Progress(_Told):
    """How far a running job is, as far as is known."""

    stage: str
    step: int = Count
    num_steps: int = Count


class Eta(_Told):
    """In how many seconds it is done: most likely between these."""

    min_seconds: float = Count
    max_seconds: float = Count


class Reason(_Told):
    """Why a job has failed."""

    code: str
    message: str


class ImageDocument(_Told):
    """A finished picture. `id` may stand as the init_image of another job."""

    id: str
    n: int = Count
    url: str
    thumb_url: str
    walk_url: str | None
    content_type: str
    width: int
    height: int
    num_bytes: int
    seed: int
    sha256: str
    fingerprint: str | None
    rows: int | None


class JobDocument(_Told):
    """A job as it is now."""

    id: UUID
    state: JobState
    model: str
    priority: Priority
    params: GenerationParams
    position: int | None = Field(
        description="How many are ahead of it, while it waits. A submit is told of at most 200."
    )
    eta: Eta | None = Field(description="While it lives, and when enough of its kind were done lately to tell.")
    progress: Progress | None
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime
    error: Reason | None
    timings: dict[str, float]
    images: list[ImageDocument]
    metadata: dict[str, Any]
    webhook: Webhook | None
    retention_seconds: float | None
    batch_id: UUID | None
    retry_of: UUID | None
    urls: dict[str, str]


class JobPage(_Told):
    """Some jobs, newest first. With q a page may be short, or empty, and yet have a next one."""

    jobs: list[JobDocument]
    next_cursor: str | None


class BatchDocument(_Told):
    """How far a batch is: how many of its jobs are in each state. Erased ones are in none."""

    id: UUID
    num_jobs: int
    states: dict[State, int]
    done: bool
    created_at: datetime
    urls: dict[str, str]


class BatchMade(BatchDocument):
    """A batch that was just submitted, with its jobs in the order in which they were asked for."""

    job_ids: list[UUID]


class UploadDocument(_Told):
    """A picture that jobs may begin from, by its id, until it expires."""

    id: UUID
    width: int
    height: int
    num_bytes: int
    content_type: str
    created_at: datetime
    expires_at: datetime


class LoadedOn(_Told):
    """A worker that holds the model."""

    worker: str
    device: str
    state: str


class ModelDocument(_Told):
    """A model: its license, what it takes, and which workers hold it."""

    name: str
    title: str
    description: str
    family: str
    license: str
    license_url: str | None
    features: list[str]
    loras: list[str]
    defaults: GenerationDefaults
    limits: GenerationLimits
    example_prompts: list[str]
    loaded_on: list[LoadedOn]


class ModelList(_Told):
    """Every model on offer, and the one that a request gets when it names none."""

    models: list[ModelDocument]
    default: str


class Line(_Told):
    """One line: the jobs of a model and a class that wait, how many run, and how long the oldest has waited."""

    model: str
    priority: Priority
    queued: int
    running: int
    oldest_seconds: float | None


class Queue(_Told):
    """What waits and what runs, of everybody."""

    queued: int
    running: int
    oldest_seconds: float | None
    lines: list[Line]


class Health(BaseModel):
    """Whether this process works."""

    status: str
