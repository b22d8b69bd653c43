"""The picker of requests, on requests that have no tensors."""

import subprocess
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from darkroom_engine.batch import Development, StepBatch, StepOutcome
from darkroom_engine.request import Handle, Request
from darkroom_engine.scheduler import Scheduler

BULK = 1


def development(batch_key: str = "a", *, rows: int = 2, priority: int = 0) -> Development:
    request = Request(
        model="tiny",
        prompt="",
        width=64,
        height=64,
        num_inference_steps=4,
        guidance_scale=1.0,
        sampler="euler",
        seed=0,
        priority=priority,
    )
    nothing: Any = None
    return Development(
        request=request,
        handle=Handle(request, 4),
        batch_key=batch_key,
        num_rows=rows,
        noise_scheduler=nothing,
        timesteps=nothing,
        step_arguments={},
        generator=nothing,
    )


def scheduler_with(*developments: Development, max_rows: int = 8) -> Scheduler:
    scheduler = Scheduler(max_rows)
    for one in developments:
        scheduler.add(one)
    return scheduler


def picked(scheduler: Scheduler) -> tuple[Development, ...]:
    batch = scheduler.schedule()
    assert batch is not None
    return batch.developments


def out_of_memory(scheduler: Scheduler) -> StepBatch:
    batch = scheduler.schedule()
    assert batch is not None
    scheduler.update(batch, StepOutcome(is_out_of_memory=True))
    return batch


def test_nothing_in_flight_is_no_batch() -> None:
    assert Scheduler(8).schedule() is None


def test_requests_of_one_batch_key_share_a_batch() -> None:
    first, second = development(rows=2), development(rows=1)
    assert picked(scheduler_with(first, second)) == (first, second)


def test_rows_stay_within_the_limit_and_the_rest_is_parked() -> None:
    requests = [development(rows=2) for _ in range(5)]
    scheduler = scheduler_with(*requests, max_rows=8)
    assert picked(scheduler) == tuple(requests[:4])
    assert scheduler.developments == tuple(requests)


def test_a_request_without_guidance_uses_the_row_that_is_left() -> None:
    wide, wider, narrow = development(rows=2), development(rows=2), development(rows=1)
    assert picked(scheduler_with(wide, wider, narrow, max_rows=3)) == (wide, narrow)


def test_a_request_wider_than_the_limit_runs_alone() -> None:
    wide, other = development(rows=2), development(rows=1)
    assert picked(scheduler_with(wide, other, max_rows=1)) == (wide,)


def test_the_oldest_keeps_its_rows_until_it_ends() -> None:
    old, new = development(), development()
    scheduler = scheduler_with(old, new, max_rows=2)
    assert [picked(scheduler) for _ in range(3)] == [(old,)] * 3
    scheduler.remove([old])
    assert picked(scheduler) == (new,)


def test_an_incompatible_request_in_front_holds_nobody_up() -> None:
    front, *others = development("big"), development("small"), development("small")
    scheduler = scheduler_with(front, *others)
    assert [picked(scheduler) for _ in range(2)] == [(front,), tuple(others)]


def test_groups_take_turns() -> None:
    scheduler = scheduler_with(*(development(key) for key in "aaabc"))
    keys = [picked(scheduler)[0].batch_key for _ in range(6)]
    assert keys == ["a", "b", "c", "a", "b", "c"]


def test_interactive_comes_before_bulk() -> None:
    bulk, interactive = development(priority=BULK), development()
    assert picked(scheduler_with(bulk, interactive, max_rows=2)) == (interactive,)


def test_interactive_of_another_group_comes_before_bulk() -> None:
    bulk, interactive = development("a", priority=BULK), development("b")
    assert picked(scheduler_with(bulk, interactive)) == (interactive,)


def test_bulk_uses_the_rows_that_interactive_leaves() -> None:
    bulk, interactive = development(priority=BULK), development()
    assert picked(scheduler_with(bulk, interactive, max_rows=4)) == (interactive, bulk)


def test_an_interactive_request_takes_the_rows_of_a_bulk_one_at_the_next_step_and_gives_them_back() -> None:
    bulk, interactive = development(priority=BULK), development()
    scheduler = scheduler_with(bulk, max_rows=2)
    assert picked(scheduler) == (bulk,)
    scheduler.add(interactive)
    assert picked(scheduler) == (interactive,)
    scheduler.remove([interactive])
    assert picked(scheduler) == (bulk,)


def test_endless_interactive_requests_do_not_starve_a_bulk_one() -> None:
    bulk = development("bulk", priority=BULK)
    scheduler = scheduler_with(bulk, development("a"), development("b"), max_rows=2)
    ticks = [bulk in picked(scheduler) for _ in range(80)]
    assert sum(ticks) == 10


def test_bulk_requests_in_the_leftover_rows_do_not_starve_bulk_requests_elsewhere() -> None:
    elsewhere = development("b", priority=BULK)
    scheduler = scheduler_with(development("a"), development("a", priority=BULK), elsewhere)
    assert any(elsewhere in picked(scheduler) for _ in range(20))


def test_memory_running_out_halves_the_rows_of_that_group_only() -> None:
    scheduler = scheduler_with(*(development("a") for _ in range(4)), *(development("b") for _ in range(4)))
    assert out_of_memory(scheduler).num_rows == 8
    assert len(picked(scheduler)) == 4  # group b
    assert len(picked(scheduler)) == 2  # group a
    assert out_of_memory(scheduler).num_rows == 8
    assert out_of_memory(scheduler).num_rows == 4
    assert len(picked(scheduler)) == 2


def test_rows_that_did_not_fit_are_tried_again_once_the_group_ran_empty() -> None:
    requests = [development() for _ in range(4)]
    scheduler = scheduler_with(*requests)
    out_of_memory(scheduler)
    scheduler.remove(requests)
    for _ in range(4):
        scheduler.add(development())
    assert len(picked(scheduler)) == 4


requests_in_flight = st.lists(
    st.builds(
        lambda key, rows, priority: (key, rows, priority),
        st.sampled_from("abc"),
        st.integers(1, 2),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=12,
)


@given(requests=requests_in_flight, max_rows=st.integers(1, 6))
def test_every_request_ends_whatever_else_is_in_flight(requests: list[tuple[str, int, int]], max_rows: int) -> None:
    scheduler = Scheduler(max_rows)
    steps_left: dict[Development, int] = {}
    for key, rows, priority in requests:
        one = development(key, rows=rows, priority=priority)
        scheduler.add(one)
        steps_left[one] = 3
    for _ in range(3 * len(requests)):
        batch = scheduler.schedule()
        if batch is None:
            break
        assert batch.num_rows <= max_rows or len(batch.developments) == 1
        assert {one.batch_key for one in batch.developments} == {batch.batch_key}
        for one in batch.developments:
            steps_left[one] -= 1
        scheduler.remove([one for one in batch.developments if not steps_left[one]])
    assert not scheduler.developments


def test_importing_the_scheduler_brings_no_torch() -> None:
    check = "import sys, darkroom_engine, darkroom_engine.scheduler; print([m for m in sys.modules if m == 'torch'])"
    run = subprocess.run([sys.executable, "-W", "error", "-c", check], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
