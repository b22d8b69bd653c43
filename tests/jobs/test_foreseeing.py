"""The place that a job would get which nobody has submitted yet is the one that it gets."""

from typing import Any

import pytest

from darkroom import jobs
from darkroom.jobs import JobClass, NewJob


@pytest.mark.parametrize("owner", ["ann", "bob", "somebody new"])
@pytest.mark.parametrize("job_class", list(JobClass))
def test_place_foreseen_is_the_place_got(queue: Any, owner: str, job_class: JobClass) -> None:
    for who, each in (("ann", JobClass.INTERACTIVE), ("bob", JobClass.INTERACTIVE), ("bob", JobClass.BULK)):
        for _ in range(3):
            queue.submit(who, job_class=each)
    queue.take()
    foreseen = jobs.num_ahead_of_next(queue.database, owner=owner, model="small", job_class=job_class)
    assert jobs.position(queue.database, queue.submit(owner, job_class=job_class)) == foreseen


def test_line_is_counted_just_beyond_what_matters(queue: Any) -> None:
    params = jobs.get(queue.database, queue.submit(job_class=JobClass.INTERACTIVE)).params
    many = [NewJob("small", params, JobClass.INTERACTIVE, 3600)] * (jobs.MOST_COUNTED + 3)
    jobs.submit_batch(queue.database, many, owner="ann")
    mine: dict[str, Any] = {"owner": "ann", "job_class": JobClass.INTERACTIVE}
    assert jobs.num_ahead_of_next(queue.database, model="small", **mine) == jobs.MOST_COUNTED + 1
    assert jobs.num_ahead_of_next(queue.database, model="another", **mine) == 0
