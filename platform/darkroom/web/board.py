"""What the queue page shows: jobs in groups, each with its place, how far it is, and when it may be done.

A look at it costs the same at any depth of the queue. Changes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

from darkroom import jobs
from darkroom.jobs import MOST_COUNTED, JobRecord, JobState
from darkroom.models import FINAL_STATES, LIVE_STATES
from darkroom.web.estimate import interval_in_words
from darkroom.web.services import Services, Sight

PAGE = 50
# Of what is not looked at by itself: enough to see it go by.
LATELY = 8
FRONT = 25
# So many who wait are counted; who are more are said to be more.
MOST_WAITING = 10_000
TITLES = {
    JobState.RUNNING: "Developing",
    JobState.QUEUED: "Waiting",
    JobState.SUCCEEDED: "Developed",
    JobState.FAILED: "Failed",
    JobState.CANCELED: "Canceled",
    JobState.EXPIRED: "Expired",
}
LATELY_ENDED = "Lately ended"
MINUTE, HOUR, DAY = 60, 3600, 86400


@dataclass(frozen=True)
class Row:
    """One job as the board shows it. `words` says where it stands: its place, its step, how it ended."""

    sight: Sight
    words: str
    age: str
    is_retried: bool

    @property
    def job(self) -> JobRecord:
        """The job itself."""
        return self.sight.job


@dataclass(frozen=True)
class Group:
    """Jobs under one title. `more` is where the next page begins, `more_state` of which state."""

    title: str
    rows: tuple[Row, ...]
    more: UUID | None = None
    more_state: JobState | None = None


@dataclass(frozen=True)
class Board:
    """The whole of it. While it is live, anything on it may change though nothing was told: places and times do."""

    summary: str
    groups: tuple[Group, ...]
    is_live: bool


@dataclass(frozen=True)
class _Stretch:
    """Jobs as they were read under a title, and how many of them are shown: one more tells that there are more."""

    title: str
    jobs: list[JobRecord]
    most: int = PAGE


def board_of_owner(services: Services, owner: str, *, state: JobState | None, cursor: UUID | None) -> Board:
    """An owner's jobs: what runs, what waits and what has ended lately; or all of one state, from a cursor on."""
    database = services.database
    if state is None:
        stretches = [
            _Stretch(TITLES[each], jobs.list_oldest(database, owner=owner, state=each, limit=PAGE + 1))
            for each in (JobState.RUNNING, JobState.QUEUED)
        ]
        stretches.append(_Stretch(LATELY_ENDED, jobs.list_latest_ended(database, owner=owner, limit=LATELY)))
    elif state in LIVE_STATES:
        found = jobs.list_oldest(database, owner=owner, state=state, after=cursor, limit=PAGE + 1)
        stretches = [_Stretch(TITLES[state], found)]
    else:
        found = jobs.list_jobs(database, owner=owner, state=state, before=cursor, limit=PAGE + 1)
        stretches = [_Stretch(TITLES[state], found)]
    return _board(services, stretches, owner=owner)


def board_of_all(services: Services, *, state: JobState | None, cursor: UUID | None) -> Board:
    """Everybody's jobs: what runs, the fronts of all lines, what has ended lately; or one state, from a cursor on.

    A cursor among those that wait leads on in its own line. Raises JobNotFound where the job that it names is gone.
    """
    database = services.database
    match state:
        case None:
            running = jobs.list_running(database, limit=PAGE + 1)
            fronts = jobs.list_fronts(database, limit=FRONT + 1)
            ended = jobs.list_latest_ended(database, limit=LATELY)
            stretches = [_Stretch(TITLES[JobState.RUNNING], running)]
            stretches += [_Stretch(_title_of(model), line, most=FRONT) for model, line in fronts.items()]
            stretches.append(_Stretch(LATELY_ENDED, ended))
        case JobState.RUNNING:
            stretches = [_Stretch(TITLES[state], jobs.list_running(database, after=cursor, limit=PAGE + 1))]
        case JobState.QUEUED if cursor:
            line = jobs.list_line(database, after=cursor, limit=PAGE + 1)
            stretches = [_Stretch(_title_of(line[0].model), line)] if line else []
        case JobState.QUEUED:
            fronts = jobs.list_fronts(database, limit=PAGE + 1)
            stretches = [_Stretch(_title_of(model), line) for model, line in fronts.items()]
        case _:
            found = jobs.list_ended(database, state=state, after=cursor, limit=PAGE + 1)
            stretches = [_Stretch(TITLES[state], found)]
    return _board(services, stretches, owner=None)


def _title_of(model: str) -> str:
    return f"Waiting for {model}"


def _board(services: Services, stretches: Sequence[_Stretch], *, owner: str | None) -> Board:
    # A job that moved between two looks is in both: the later one counts.
    last = {job.id: stretch.title for stretch in stretches for job in stretch.jobs}
    stretches = [
        replace(stretch, jobs=[job for job in stretch.jobs if last[job.id] == stretch.title]) for stretch in stretches
    ]
    shown = [job for stretch in stretches for job in stretch.jobs[: stretch.most]]
    rows = {row.job.id: row for row in _rows(services, shown, owner=owner)}
    groups = tuple(_group(stretch, rows) for stretch in stretches if stretch.jobs)
    running, waiting = (
        jobs.count(services.database, state=state, owner=owner, most=MOST_WAITING)
        for state in (JobState.RUNNING, JobState.QUEUED)
    )
    return Board(_summary(running, waiting), groups, is_live=bool(running or waiting))


def _group(stretch: _Stretch, rows: Mapping[UUID, Row]) -> Group:
    shown = tuple(rows[job.id] for job in stretch.jobs[: stretch.most])
    if len(stretch.jobs) <= stretch.most:
        return Group(stretch.title, shown)
    last = shown[-1].job
    return Group(stretch.title, shown, more=last.id, more_state=last.state)


def _rows(services: Services, listed: Sequence[JobRecord], *, owner: str | None) -> Iterable[Row]:
    """Look around every job at once: three questions, however many jobs."""
    places = jobs.places(services.database, [job.id for job in listed if job.state is JobState.QUEUED])
    progress = services.progress.read_many([job.id for job in listed if job.state is JobState.RUNNING])
    ended = [job.id for job in listed if job.state in FINAL_STATES]
    retried = jobs.retried(services.database, ended, owner=owner) if owner else frozenset()
    now = datetime.now(UTC)
    for job in listed:
        place = places.get(job.id)
        position = place if place is not None and place <= MOST_COUNTED else None
        eta = services.pace.eta(job, position=position, progress=progress.get(job.id))
        sight = Sight(job, position, progress.get(job.id), eta)
        age = age_in_words((now - (job.finished_at or job.created_at)).total_seconds())
        yield Row(sight, words_of(sight), age, job.id in retried)


def _summary(running: int, waiting: int) -> str:
    if not running and not waiting:
        return "Nothing waits and nothing develops."
    most = f"more than {MOST_WAITING:,}" if waiting > MOST_WAITING else f"{waiting:,}"
    return f"{running:,} developing, {most} waiting."


def words_of(sight: Sight) -> str:
    """Where a job stands, in as few words as a row has room for."""
    match sight.job.state:
        case JobState.QUEUED:
            return " · ".join(filter(None, (_place(sight.position), _until(sight))))
        case JobState.RUNNING:
            return " · ".join(filter(None, (_step(sight), _until(sight))))
        case JobState.FAILED:
            return sight.job.error_message or "No reason was given."
        case _:
            return ""


def _place(position: int | None) -> str:
    match position:
        case None:
            return f"more than {MOST_COUNTED} ahead"
        case 0:
            return "next"
        case _:
            return f"{position} ahead"


def _step(sight: Sight) -> str:
    progress = sight.progress
    return f"step {progress['step']} of {progress['num_steps']}" if progress and progress["num_steps"] > 0 else ""


def _until(sight: Sight) -> str:
    return f"{interval_in_words(sight.eta).lower()} left" if sight.eta else ""


def age_in_words(seconds: float) -> str:
    """How long ago, no finer than a page would want to change."""
    for length, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= length:
            return f"{int(seconds // length)} {name} ago"
    return "just now"
