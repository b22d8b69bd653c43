"""A worker that remembers where the line begins claims what one that looks at the whole line would, but for come-backs.

What it may miss until the poll: a job that was put back, of an older place than its last claims. Nothing else.
"""

from collections import deque
from uuid import UUID, uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from darkroom import jobs
from darkroom.jobs import Claim, JobClass, Lines
from darkroom.jobs.line import LINE_LAG_CLAIMS, Line
from darkroom.models import LIVE_STATES

COSTS = st.sampled_from([1, 3, 10])
OWNERS = st.sampled_from(["ann", "bob", "carl"])
CLASSES = st.sampled_from(JobClass)
WORKERS = st.sampled_from(["first", "second"])


def remembered(start_tags: list[float], lag: int) -> Line:
    line = Line(deque(maxlen=lag))
    for start_tag in start_tags:
        line.passed(start_tag)
    return line


def test_memory_is_of_no_use_before_it_is_full() -> None:
    assert remembered([5.0] * (LINE_LAG_CLAIMS - 1), LINE_LAG_CLAIMS).begins_at == -1
    assert remembered([5.0] * LINE_LAG_CLAIMS, LINE_LAG_CLAIMS).begins_at == 5


def test_line_begins_at_the_least_of_the_last_claims() -> None:
    """One that was claimed out of turn is far ahead, and others wait before it."""
    tags = [900.0, *range(LINE_LAG_CLAIMS - 1)]
    assert remembered(tags, LINE_LAG_CLAIMS).begins_at == 0


def test_claim_from_before_the_beginning_empties_the_memory() -> None:
    line = remembered([5.0] * LINE_LAG_CLAIMS, LINE_LAG_CLAIMS)
    line.passed(4)
    assert line.begins_at == -1


def test_models_take_turns_in_the_order_in_which_they_were_served() -> None:
    lines = Lines()
    for model in ("a", "b", "a", "c"):
        lines.passed(model, JobClass.BULK, 1)
    assert sorted("dcba", key=lines.turn_of) == ["d", "b", "a", "c"]


class Watched:
    """A line of its own, two workers that remember their last three claims, and which jobs were ever put back."""

    def __init__(self, queue) -> None:
        self.queue = queue
        self.model = uuid4().hex
        self.lines = {worker: Lines(num_claims=3) for worker in ("first", "second")}
        self.running: list[Claim] = []
        self.returned: set[UUID] = set()

    def waiting(self) -> list[UUID]:
        return jobs.front_of_queue(self.queue.database, model=self.model, limit=1000)

    def submit(self, owner: str, cost: float, job_class: JobClass) -> None:
        self.queue.submit(owner, model=self.model, cost=cost, job_class=job_class)

    def claim(self, worker: str) -> None:
        waiting = self.waiting()
        claim = self.queue.claim(worker, models=(self.model,), lines=self.lines[worker], num_held=0)
        assert bool(claim) == bool(waiting), "a line that seems empty is looked at from its very front"
        if claim:
            passed_over = waiting[: waiting.index(claim.job_id)]
            assert set(passed_over) <= self.returned
            assert all(self.queue.get(job_id).job_class == claim.job_class for job_id in passed_over)
            self.running.append(claim)

    def end(self, which: int) -> None:
        if self.running:
            self.queue.succeed(self.running.pop(which % len(self.running)))

    def put_back(self, which: int) -> None:
        if self.running:
            claim = self.running.pop(which % len(self.running))
            self.returned.add(claim.job_id)
            self.queue.requeue(claim)

    def cancel_all_of(self, owner: str) -> None:
        for job in jobs.list_jobs(self.queue.database, owner=owner, model=self.model, limit=1000):
            if job.state in LIVE_STATES:
                self.queue.cancel(job.id, owner)
        self.running = [claim for claim in self.running if claim.owner != owner]


STEPS = st.one_of(
    st.tuples(st.just("submit"), OWNERS, COSTS, CLASSES),
    st.tuples(st.just("submit"), OWNERS, COSTS, CLASSES),
    st.tuples(st.just("claim"), WORKERS),
    st.tuples(st.just("claim"), WORKERS),
    st.tuples(st.just("end"), st.integers(0, 9)),
    st.tuples(st.just("put_back"), st.integers(0, 9)),
    st.tuples(st.just("cancel_all_of"), OWNERS),
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=st.lists(STEPS, min_size=20, max_size=40))
def test_worker_that_remembers_passes_over_nothing_but_what_came_back(queue, steps) -> None:
    watched = Watched(queue)
    for what, *how in steps:
        getattr(watched, what)(*how)
    for _ in watched.waiting():
        watched.claim("first")
