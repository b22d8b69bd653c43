"""What somebody wants to be told, and where: read from a request, refused whole. Stores nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from darkroom.errors import FieldError, InvalidParameters
from darkroom.models import FINAL_STATES, JobState
from darkroom.webhooks.destinations import LONGEST_URL, SCHEMES, Destinations

PREFIX = "job."
# The lines of a job's history, as events.append writes them.
EVENTS = tuple(PREFIX + type for type in ("queued", "running", "requeued", *FINAL_STATES))
DEFAULT_EVENTS = tuple(PREFIX + state for state in FINAL_STATES)
STATE_AFTER = {"requeued": JobState.QUEUED}

LIMITS = {
    "url": f"a URL that begins with {' or '.join(f'{scheme}://' for scheme in SCHEMES)}, of a host on the internet, "
    f"at most {LONGEST_URL} characters",
    "events": f"a list of some of {', '.join(EVENTS)}, each once",
}


@dataclass(frozen=True)
class Subscription:
    """An address, and the events it is told of."""

    url: str
    events: tuple[str, ...] = DEFAULT_EVENTS

    def document(self) -> dict[str, Any]:
        """As a job keeps it."""
        return {"url": self.url, "events": list(self.events)}


def read_subscription(body: Any, destinations: Destinations, *, field: str = "") -> Subscription:
    """Read {"url", "events"}; `field` is what it is called in its request. Raises InvalidParameters."""
    dot = f"{field}." if field else ""
    if not isinstance(body, Mapping):
        raise InvalidParameters([FieldError(field or "body", "is not an object", "an object with url and events")])
    problems = {name: "is not a field of a webhook" for name in body if name not in LIMITS}
    limits = {name: f"one of {', '.join(LIMITS)}" for name in problems} | LIMITS
    if problem := _url_problem(body.get("url"), destinations):
        problems["url"] = problem
    events = body.get("events")
    if problem := events_problem(events):
        problems["events"] = problem
    if problems:
        raise InvalidParameters(
            FieldError(dot + name[:64], problem, limits[name]) for name, problem in problems.items()
        )
    return Subscription(body["url"], DEFAULT_EVENTS if events is None else tuple(events))


def _url_problem(url: Any, destinations: Destinations) -> str | None:
    if url is None:
        return "is missing"
    return destinations.problem_of(url) if isinstance(url, str) else "is not text"


def events_problem(events: Any) -> str | None:
    """Say what is wrong with a list of events; None stands for the default."""
    if events is None:
        return None
    if not isinstance(events, list | tuple):
        return "is not a list"
    if not events:
        return "is empty"
    if any(event not in EVENTS for event in events):
        return "holds something that is no event"
    return "names one twice" if len(set(events)) < len(events) else None
