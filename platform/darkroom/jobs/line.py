"""Where a waiting line begins, as one worker remembers it. Knows no SQL."""

from collections import deque
from dataclasses import dataclass

from darkroom.models import JobClass

# How many of its own claims a worker looks back to know where the line begins.
LINE_LAG_CLAIMS = 64


@dataclass
class Line:
    """Where the waiting line of one model and class begins, as one worker remembers it.

    Every claim leaves a dead entry at the front of the index, and while anybody holds an old snapshot PostgreSQL cannot
    remove them: a claim that starts at the very front then reads all of them (measured: docs/benchmarks.md). A claim
    therefore starts at the least start tag of the worker's last claims, as many as the deque holds. Nothing is queued
    before that but a job that came back, and one whose submit took longer than so many claims; a claim that finds
    nothing, and every claim on the poll, look at the whole line.
    """

    start_tags: deque[float]

    @property
    def begins_at(self) -> float:
        """The start tag to look from."""
        return min(self.start_tags) if len(self.start_tags) == self.start_tags.maxlen else -1.0

    def passed(self, start_tag: float) -> None:
        """Remember a claim. One from before the beginning says that the memory is of no use."""
        if start_tag < self.begins_at:
            self.start_tags.clear()
        self.start_tags.append(start_tag)


class Lines:
    """One worker's memory of its lines, and of the turns that its models had."""

    def __init__(self, *, num_claims: int = LINE_LAG_CLAIMS) -> None:
        self._num_claims = num_claims
        self._lines: dict[tuple[str, JobClass], Line] = {}
        self._turns: dict[str, int] = {}

    def of(self, model: str, job_class: JobClass) -> Line:
        """The line of a model and class."""
        return self._lines.setdefault((model, job_class), Line(deque(maxlen=self._num_claims)))

    def turn_of(self, model: str) -> int:
        """When the model was last served, in claims of this worker; the lowest number was served longest ago."""
        return self._turns.get(model, 0)

    def passed(self, model: str, job_class: JobClass, start_tag: float) -> None:
        """Remember a claim."""
        self.of(model, job_class).passed(start_tag)
        self._turns[model] = max(self._turns.values(), default=0) + 1

    def forget(self, model: str) -> None:
        """Nothing waits there: whatever comes next may begin anywhere."""
        for job_class in JobClass:
            self._lines.pop((model, job_class), None)
