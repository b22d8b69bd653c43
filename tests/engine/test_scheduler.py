"""The picker of requests, on requests that have no tensors."""

import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from darkroom_engine.batch import Development, StepBatch, StepOutcome
from darkroom_engine.costs import ForwardCost
from darkroom_engine.request import Handle, Request
from darkroom_engine.scheduler import BULK_TURN, MAX_TURN, PATIENCE, ROW_LIMIT_FORWARDS, Scheduler

BULK = 1


def development(
    batch_key: str = "a",
    *,
    rows: int = 2,
    priority: int = 0,
    steps: int = 100,
    exact_rows: int | None = None,
    max_rows: int | None = None,
) -> Development:
    request = Request(
        model="tiny",
        prompt="",
        width=64,
        height=64,
        num_inference_steps=steps,
        guidance_scale=1.0,
        sampler="euler",
        seed=0,
        priority=priority,
    )
    nothing: Any = None
    return Development(
        request=request,
        handle=Handle(request, steps),
        batch_key=batch_key,
        num_rows=rows,
        noise_scheduler=nothing,
        timesteps=nothing,
        step_arguments={},
        generator=nothing,
        exact_rows=exact_rows,
        max_rows=max_rows,
    )


def scheduler_with(*developments: Development, max_rows: int = 8) -> Scheduler:
    scheduler = Scheduler(max_rows)
    for one in developments:
        scheduler.add(one)
    return scheduler


def tick(scheduler: Scheduler, outcome: StepOutcome | None = None) -> StepBatch:
    """Step whoever is picked; who has no step left leaves."""
    batch = scheduler.schedule()
    assert batch is not None
    for one in batch.developments:
        one.step += 1
    scheduler.update(batch, outcome or StepOutcome())
    scheduler.remove([one for one in batch.developments if not one.num_steps_left])
    return batch


def picked(scheduler: Scheduler) -> tuple[Development, ...]:
    return tick(scheduler).developments


def out_of_memory(scheduler: Scheduler) -> StepBatch:
    return tick(scheduler, StepOutcome(is_out_of_memory=True))


def learn(scheduler: Scheduler, batch_key: str, seconds: dict[int, float]) -> None:
    """Teach what forwards of some row counts cost; of each count the first forward is not counted."""
    for rows, each in seconds.items():
        for _ in range(2):
            scheduler.costs.record(ForwardCost(batch_key, rows, each))


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


def test_a_newcomer_is_stepped_at_the_next_tick() -> None:
    old = development(steps=2)
    scheduler = scheduler_with(old, max_rows=2)
    assert picked(scheduler) == (old,)
    new = development()
    scheduler.add(new)
    assert picked(scheduler) == (new,)


def test_who_has_the_least_work_left_keeps_its_rows_and_who_waits_is_stepped_now_and_then() -> None:
    short, long = development(steps=50), development()
    scheduler = scheduler_with(long, short, max_rows=2)
    ticks = "".join("s" if picked(scheduler) == (short,) else "l" for _ in range(3 * (PATIENCE + 1)))
    assert ticks == ("l" + "s" * PATIENCE) * 3


def test_no_long_request_is_left_to_run_alone_in_rows_that_others_had() -> None:
    short = [development(rows=1, steps=2) for _ in range(5)]
    scheduler = scheduler_with(development(rows=1, steps=10), *short, max_rows=2)
    num_forwards = 0
    while scheduler.developments:
        tick(scheduler)
        num_forwards += 1
    assert num_forwards == 12  # for 20 steps in two rows; with the least work always first it would be 14


def test_a_request_of_a_few_steps_ends_soon_behind_long_ones() -> None:
    scheduler = scheduler_with(*(development(steps=50) for _ in range(8)), max_rows=4)
    for _ in range(10):
        tick(scheduler)
    short = development(steps=4)
    scheduler.add(short)
    ticks = [short in picked(scheduler) for _ in range(8)]
    assert ticks.count(True) == 4


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


def test_rows_that_did_not_fit_are_tried_again_after_a_while() -> None:
    scheduler = scheduler_with(*(development(steps=10**6) for _ in range(4)))
    out_of_memory(scheduler)
    rows = [tick(scheduler).num_rows for _ in range(ROW_LIMIT_FORWARDS + 2)]
    assert rows == [4] * (ROW_LIMIT_FORWARDS) + [8, 8]


def test_rows_stay_within_what_fits_into_the_memory() -> None:
    scheduler = scheduler_with(*(development(max_rows=5) for _ in range(4)))
    assert [len(picked(scheduler)) for _ in range(8)] == [2] * 8


def test_rows_that_are_not_worth_their_time_do_not_run() -> None:
    scheduler = scheduler_with(*(development() for _ in range(4)))
    learn(scheduler, "a", {2: 2.0, 4: 4.0, 8: 8.0})
    assert [len(picked(scheduler)) for _ in range(8)] == [1] * 8


def test_a_turn_lasts_as_long_as_a_forward_of_the_dearest_group() -> None:
    scheduler = scheduler_with(development("small", rows=1), development("large", rows=1))
    learn(scheduler, "small", {1: 1.0})
    learn(scheduler, "large", {1: 3.5})
    keys = [picked(scheduler)[0].batch_key for _ in range(8)]
    assert keys == ["small", "small", "small", "large"] * 2


def test_a_group_whose_cost_is_unknown_counts_as_dear_as_the_dearest() -> None:
    scheduler = scheduler_with(development("small", rows=1), development("large", rows=1), development("new", rows=1))
    learn(scheduler, "small", {1: 1.0})
    learn(scheduler, "large", {1: 2.0})
    assert [picked(scheduler)[0].batch_key for _ in range(5)] == ["small", "small", "large", "new", "small"]


def test_bulk_requests_whose_group_serves_interactive_ones_have_their_turn_too() -> None:
    bulk, elsewhere = development("a", priority=BULK), development("b", priority=BULK)
    scheduler = scheduler_with(development("a"), bulk, elsewhere, max_rows=2)
    batches = [picked(scheduler) for _ in range(4 * BULK_TURN)]
    assert [sum(one in batch for batch in batches) for one in (bulk, elsewhere)] == [2, 2]


def test_an_exact_forward_says_its_rows_and_takes_any_neighbor() -> None:
    exact, guided, plain = development(rows=2, exact_rows=4), development(rows=2), development(rows=1)
    batch = tick(scheduler_with(exact, guided, plain))
    assert (batch.developments, batch.exact_rows) == ((exact, guided), 4)


def test_an_exact_forward_has_its_rows_however_few_the_engine_is_allowed() -> None:
    exact, other = development(rows=2, exact_rows=4), development(rows=2, exact_rows=4)
    batch = tick(scheduler_with(exact, other, max_rows=1))
    assert (batch.developments, batch.exact_rows) == ((exact, other), 4)


def test_an_exact_request_waits_for_a_forward_of_its_own_rows() -> None:
    normal, exact = development(rows=2), development(rows=2, exact_rows=4)
    scheduler = scheduler_with(normal, exact)
    batches = [tick(scheduler) for _ in range(2)]
    assert [batch.developments for batch in batches] == [(normal,), (normal, exact)]
    assert [batch.exact_rows for batch in batches] == [None, 4]


arrivals = st.lists(
    st.tuples(
        st.integers(0, 40),  # tick
        st.sampled_from("abc"),
        st.integers(1, 2),  # rows
        st.integers(0, 1),  # class
        st.integers(1, 60),  # steps
        st.sampled_from([None, None, 4]),  # exact rows
    ),
    min_size=1,
    max_size=16,
)
costs = st.fixed_dictionaries({key: st.sampled_from([0.0, 1.0, 1.5, 7.0]) for key in "abc"})


def longest_wait(num_requests: int, num_groups: int, turn: int, *, is_shared: bool) -> int:
    """The bound that the module states, in ticks, for a request of the class that is worse off."""
    forwards = PATIENCE + num_requests
    ticks = forwards * (1 + turn * (num_groups - 1))
    return ticks * BULK_TURN if is_shared else ticks


@given(arrivals=arrivals, max_rows=st.integers(1, 8), seconds=costs)
def test_every_request_is_stepped_within_the_stated_bound(
    arrivals: list[tuple[int, str, int, int, int, int | None]], max_rows: int, seconds: dict[str, float]
) -> None:
    scheduler = Scheduler(max_rows)
    for key, each in seconds.items():
        if each:
            learn(scheduler, key, {rows: each for rows in (1, 2, 4, 8)})
    turn = max(1, min(MAX_TURN, math.floor(max(seconds.values()) / min(each or 1.0 for each in seconds.values()))))
    bound = longest_wait(
        len(arrivals),
        len({key for _, key, *_ in arrivals}),
        turn,
        is_shared=len({priority for _, _, _, priority, *_ in arrivals}) == 2,
    )
    waits: dict[Development, int] = {}
    num_ticks = 0
    while num_ticks <= 40 or waits:
        for arrival in arrivals:
            if arrival[0] == num_ticks:
                _, key, rows, priority, steps, exact_rows = arrival
                one = development(key, rows=rows, priority=priority, steps=steps, exact_rows=exact_rows)
                scheduler.add(one)
                waits[one] = 0
        num_ticks += 1
        if not waits:
            continue
        batch = tick(scheduler)
        check(batch, max_rows)
        for one in waits:
            waits[one] = 0 if one in batch.developments else waits[one] + 1
            assert waits[one] <= bound
        waits = {one: wait for one, wait in waits.items() if one.num_steps_left}
    assert scheduler.developments == ()


def check(batch: StepBatch, max_rows: int) -> None:
    """Hold a batch to what every batch must be."""
    assert batch.num_rows <= (batch.exact_rows or max_rows) or len(batch.developments) == 1
    assert {one.batch_key for one in batch.developments} == {batch.batch_key}
    assert len(set(batch.developments)) == len(batch.developments)
    wanted = {one.exact_rows for one in batch.developments} - {None}
    assert wanted == ({batch.exact_rows} if batch.exact_rows else set())


@given(steps=st.lists(st.integers(1, 30), min_size=1, max_size=12), max_rows=st.integers(1, 8))
def test_nobody_waits_for_more_than_the_other_requests_of_its_group(steps: Sequence[int], max_rows: int) -> None:
    scheduler = scheduler_with(*(development(steps=each) for each in steps), max_rows=max_rows)
    waits = dict.fromkeys(scheduler.developments, 0)
    while scheduler.developments:
        batch = tick(scheduler)
        for one in scheduler.developments:
            waits[one] = 0 if one in batch.developments else waits[one] + 1
            assert waits[one] < PATIENCE + len(steps)


def test_importing_the_scheduler_brings_no_torch() -> None:
    check = "import sys, darkroom_engine, darkroom_engine.scheduler; print([m for m in sys.modules if m == 'torch'])"
    run = subprocess.run([sys.executable, "-W", "error", "-c", check], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
