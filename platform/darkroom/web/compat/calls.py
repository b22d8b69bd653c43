"""What the compatibility APIs share: other names for our fields, calls that wait for their pictures, refusals.

Everything is submitted, held to limits and waited for by the same functions as natively. Knows no protocol.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flask import Blueprint, Response, request

from darkroom.catalog import Catalog
from darkroom.config import Settings
from darkroom.errors import ConfigError, FieldError, InvalidParameters
from darkroom.jobs import ImageRecord, JobClass, JobRecord, JobState, Request
from darkroom.sampler_titles import name_of
from darkroom.web.answers import answer
from darkroom.web.documents import image_path
from darkroom.web.identity import current
from darkroom.web.problems import LONGEST_FIELD, Problem, Refused, problem_of
from darkroom.web.services import Services, services
from darkroom.web.submission import Submission, check
from darkroom.web.uploads import MOST_UPLOAD_BYTES

# Two pictures as base64, and the words around them.
BODY_WITH_PICTURES_BYTES = 2 * (MOST_UPLOAD_BYTES * 4 // 3 + 4) + 1024 * 1024
# Names that clients say because they know no other, where no model has them: they mean the default model.
STAND_INS = ("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "chatgpt-image-latest")
SERVER_ERROR = 500
LATE_RETRY_AFTER = "1"


def aliases(settings: Settings, catalog: Catalog) -> dict[str, str]:
    """Every name that stands for a model, and the model. Raises ConfigError for one that the catalog lacks."""
    known = {entry.name for entry in catalog.models}
    found = dict.fromkeys(STAND_INS, catalog.default.name)
    for alias in settings.model_aliases:
        name, _, model = alias.partition("=")
        found[name.strip()] = model.strip() or catalog.default.name
        if found[name.strip()] not in known:
            raise ConfigError(f"DARKROOM_MODEL_ALIASES: {alias}: the catalog has no model {model.strip()!r}")
    return found


def model_called(*names: Any) -> str:
    """The model that one of these names means, the first that does. Raises Refused (404)."""
    catalog = services().catalog
    known = {entry.name: entry.name for entry in catalog.models}
    meant = aliases(services().settings, catalog) | known
    for name in names:
        if isinstance(name, str) and name in meant:
            return meant[name]
    shown = f"{names[0]!r:.100}".encode("ascii", "backslashreplace").decode()
    raise Refused(404, "model_not_found", f"There is no model {shown} here. There are: {', '.join(known)}.")


def sampler_called(title: Any) -> Any:
    """The sampler that a title of the web UI's means; anything else as it stands, to be refused if it is none."""
    return (name_of(title) or title) if isinstance(title, str) else title


def submission_of(body: Mapping[str, Any], names: Mapping[str, str]) -> Submission:
    """Hold a body to its model's limits; `names` are its own names for our fields. What is null counts as not said.

    Raises InvalidParameters, which names the fields as they were sent.
    """
    ours: dict[str, Any] = {}
    sent = {ours: theirs for theirs, ours in names.items()}
    for name, value in body.items():
        if value is None:
            continue
        field = names.get(name, name)
        if field in ours:
            raise refusal(name, f"says the same as {sent.get(field, field)}", "one of them")
        ours[field] = value
        sent[field] = name
    # Somebody waits for the answer: it is as urgent as the form's, where the key allows that by the API.
    job_class = JobClass.INTERACTIVE if current().may_hurry else JobClass.BULK
    with _named(sent):
        return check(ours, services().rules(), job_class=job_class)


def submit(submission: Submission, names: Mapping[str, str], *, again: Request | None = None) -> JobRecord:
    """Submit, naming what is refused by its own names. Raises as Services.submit does."""
    with _named({ours: theirs for theirs, ours in names.items()}):
        return services().submit(submission, request=again)


@contextmanager
def _named(sent: Mapping[str, str]) -> Iterator[None]:
    """Have refusals name the fields as they were sent."""
    try:
        yield
    except InvalidParameters as error:
        told = [FieldError(sent.get(each.field, each.field), each.problem, each.limit) for each in error.errors]
        raise InvalidParameters(told) from error


def refusal(field: str, problem: str, limit: str) -> InvalidParameters:
    """One field that is not taken."""
    return InvalidParameters([FieldError(field, problem, limit)])


def take_choice(body: dict[str, Any], name: str, choices: Iterable[str], *, default: str) -> str:
    """Take a field out of a body that says one of a few words. Raises InvalidParameters."""
    value = body.pop(name, None)
    choices = tuple(choices)
    if value is not None and value not in choices:
        raise refusal(name, "is not taken", f"one of {', '.join(choices)}")
    return default if value is None else str(value)


def develop(submission: Submission, names: Mapping[str, str], *, again: Request | None = None) -> JobRecord:
    """Submit, and wait as long as such calls wait. Returns the job as it is then.

    Raises NoPlaceToWait, and then nothing was submitted, or what `submit` raises. The job outlives the call.
    """
    waiting = services().waiting
    with waiting.place():
        job = submit(submission, names, again=again)
        return waiting.wait_in_place(job.id, services().settings.compat_wait_seconds)


def succeeded(job: JobRecord) -> JobRecord:
    """The job, if it has its pictures. Raises Refused: 504 if it has not ended, 500 if it ended without."""
    if job.state is JobState.SUCCEEDED:
        return job
    if job.state in {JobState.QUEUED, JobState.RUNNING}:
        detail = f"The picture is not ready in time. It goes on as job {job.id}."
        raise Refused(504, "not_in_time", detail, {"Retry-After": LATE_RETRY_AFTER})
    reason = job.error_message or f"The job {job.id} was {job.state}."
    # Clients of OpenAI would send it twice more.
    raise Refused(SERVER_ERROR, job.error_code or f"job_{job.state}", reason, {"x-should-retry": "false"})


def picture(parts: Services, image: ImageRecord) -> bytes:
    """A picture's file. Raises StorageError."""
    return parts.storage.get(image.key)


def image_url(job: JobRecord, image: ImageRecord) -> str:
    """Where a picture is: signed where the storage is public, else here, for who shows the key."""
    storage = services().storage
    if storage.is_public:
        return storage.signed_url(image.key, disposition="inline")
    return absolute(image_path(job.id, image.n))


def absolute(path: str) -> str:
    """An address of ours in full, as the client reaches us."""
    return f"{scheme()}://{request.host}{path}"


def scheme() -> str:
    """How the client reaches us, as seen by us or by a proxy."""
    is_secure = request.is_secure or request.headers.get("X-Forwarded-Proto") == "https"
    return "https" if is_secure else "http"


def in_words(problem: Problem) -> str:
    """A problem in one text, for protocols that have no list of fields."""
    fields = [f"{error.field[:LONGEST_FIELD]} {error.problem} (it takes: {error.limit})" for error in problem.errors]
    return "; ".join(fields) or problem.detail


def refuse_as(blueprint: Blueprint, write: Callable[[Problem], tuple[Mapping[str, Any], int]]) -> None:
    """Have every error of a blueprint's routes told in its own protocol: `write` makes document and status."""

    def refuse(error: Exception) -> Response:
        problem = problem_of(error)
        document, status = write(problem)
        return answer(document, status=status, headers=problem.headers)

    blueprint.register_error_handler(Exception, refuse)
