"""How long a picture would take that nobody has asked for yet, and who is before it. Promises nothing.

Told from what was done lately, from the place that a job would get now, and from the workers that are there. Where one
of these tells nothing, the words say so.
"""

from dataclasses import dataclass

from darkroom import jobs
from darkroom.jobs import MOST_COUNTED, JobClass
from darkroom.params import GenerationParams, cost
from darkroom.web.identity import current
from darkroom.web.pace import Eta
from darkroom.web.services import Services

SECONDS_PER_MINUTE = 60
MINUTES_PER_HOUR = 60
# Below, seconds say more than minutes; the same for minutes and hours.
FEWEST_OF_NEXT = 2


@dataclass(frozen=True)
class Outlook:
    """What awaits a job that would be submitted now. `num_ahead` is counted just beyond MOST_COUNTED and no further."""

    num_ahead: int
    has_worker: bool
    eta: Eta | None


def foresee(services: Services, params: GenerationParams, *, model: str) -> Outlook:
    """Look at the line, the workers and the pace of a model for whoever asks, as the form would submit."""
    owner = current().owner
    num_ahead = jobs.num_ahead_of_next(services.database, owner=owner, model=model, job_class=JobClass.INTERACTIVE)
    has_worker = services.has_worker(model)
    is_told = has_worker and num_ahead <= MOST_COUNTED
    eta = services.pace.foresee(model, cost(params), num_ahead=num_ahead) if is_told else None
    return Outlook(num_ahead, has_worker, eta)


def outlook_in_words(outlook: Outlook) -> str:
    """One sentence or two, for beside the button that submits."""
    if not outlook.has_worker:
        line = f" {_line(outlook.num_ahead)}" if outlook.num_ahead else ""
        return f"No worker that holds this model is running: it would wait for one.{line}"
    if outlook.eta is None:
        return f"{_line(outlook.num_ahead)} How long it takes, nobody can tell yet."
    return f"{interval_in_words(outlook.eta)}. {_line(outlook.num_ahead)}"


def _line(num_ahead: int) -> str:
    match num_ahead:
        case 0:
            return "Next in the line."
        case 1:
            return "1 job is ahead of it."
        case _ if num_ahead > MOST_COUNTED:
            return f"More than {MOST_COUNTED} jobs are ahead of it."
        case _:
            return f"{num_ahead} jobs are ahead of it."


def interval_in_words(eta: Eta) -> str:
    """An interval, as precisely as it matters to who waits."""
    if eta.max_seconds < 1:
        return "Less than a second"
    low, high, unit = eta.min_seconds, eta.max_seconds, "s"
    if high >= FEWEST_OF_NEXT * SECONDS_PER_MINUTE:
        low, high, unit = low / SECONDS_PER_MINUTE, high / SECONDS_PER_MINUTE, "min"
    if unit == "min" and high >= FEWEST_OF_NEXT * MINUTES_PER_HOUR:
        low, high, unit = low / MINUTES_PER_HOUR, high / MINUTES_PER_HOUR, "h"
    fewest, most = max(1, round(low)), max(1, round(high))
    return f"About {most} {unit}" if fewest == most else f"{fewest} to {most} {unit}"
