"""The cost table, on made-up costs."""

from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom_engine.costs import MAX_AGE, MAX_KEYS, NEARLY_BEST, NUM_SAMPLES, CostTable, ForwardCost

COUNTS = (1, 2, 4, 8)


def table_of(seconds: Mapping[int, float], *, batch_key: str = "a") -> CostTable:
    """A table that knows what forwards of these row counts cost; the first forward of a count is never counted."""
    table = CostTable()
    for rows, each in seconds.items():
        record(table, batch_key, rows, [999.0, each])
    return table


def record(table: CostTable, batch_key: str, rows: int, seconds: list[float]) -> None:
    for each in seconds:
        table.record(ForwardCost(batch_key, rows, each))


def test_while_nothing_is_known_all_rows_run() -> None:
    assert CostTable().rows_worth_running("a", 7) == 7
    assert CostTable().seconds("a", 7) is None


def test_another_shapes_costs_say_nothing() -> None:
    assert table_of({1: 1.0, 8: 8.0}).rows_worth_running("b", 8) == 8


def test_the_first_forward_of_a_count_is_not_counted() -> None:
    table = CostTable()
    record(table, "a", 4, [9.0])
    assert table.seconds("a", 4) is None
    record(table, "a", 4, [1.0])
    assert table.seconds("a", 4) == 1.0


@pytest.mark.parametrize(
    ("name", "cost", "worth"),
    [
        ("bound by dispatch: more rows are free", lambda rows: 1.0, 8),
        ("bound by compute: more rows only make everybody wait", lambda rows: float(rows), 1),
        ("dispatch up to four rows, then compute", lambda rows: max(1.0, rows / 4), 4),
        ("half and half: each row still adds to the rate", lambda rows: 1.0 + rows, 8),
        ("worse than linear", lambda rows: rows**1.5, 1),
        ("so nearly linear that the difference is not worth the wait", lambda rows: 0.04 + rows, 1),
    ],
)
def test_rows_run_while_they_raise_the_rate(name: str, cost: Callable[[int], float], worth: int) -> None:
    table = table_of({rows: cost(rows) for rows in COUNTS})
    assert table.rows_worth_running("a", 8) == worth, name


def test_few_waiting_rows_are_judged_among_themselves() -> None:
    table = table_of({1: 1.0, 2: 1.0, 4: 4.0, 8: 2.5})
    assert [table.rows_worth_running("a", rows) for rows in (1, 2, 3, 4, 8)] == [1, 2, 2, 2, 8]


def test_between_two_counts_the_cost_is_on_the_line() -> None:
    table = table_of({2: 1.0, 6: 3.0})
    assert [table.seconds("a", rows) for rows in (1, 2, 3, 4, 6)] == [1.0, 1.0, 1.5, 2.0, 3.0]


def test_beyond_the_greatest_count_the_cost_goes_on_as_the_line_did() -> None:
    assert table_of({2: 1.0, 4: 2.0}).seconds("a", 8) == 4.0
    assert table_of({2: 1.0, 4: 0.5}).seconds("a", 8) == 0.5  # noise: nothing gets cheaper by being more


def test_a_count_that_nobody_measured_is_tried_and_then_known() -> None:
    table = table_of({2: 1.0})
    assert table.rows_worth_running("a", 8) == 8
    record(table, "a", 8, [999.0, 4.0])
    assert table.rows_worth_running("a", 8) == 2


def test_the_cost_is_the_least_of_the_latest() -> None:
    table = table_of({4: 1.0})
    record(table, "a", 4, [50.0] * (NUM_SAMPLES - 1))
    assert table.seconds("a", 4) == 1.0
    record(table, "a", 4, [2.0])
    assert table.seconds("a", 4) == 2.0


def test_a_measurement_that_nobody_renews_is_forgotten_and_tried_again() -> None:
    table = table_of({2: 1.0, 8: 40.0})
    assert table.rows_worth_running("a", 8) == 2
    record(table, "a", 2, [1.0] * MAX_AGE)
    assert table.rows_worth_running("a", 8) == 8
    record(table, "a", 8, [3.0])
    assert table.seconds("a", 8) == 3.0


def test_only_the_shapes_used_last_are_kept() -> None:
    table = table_of({1: 1.0})
    for number in range(MAX_KEYS - 1):
        record(table, f"other {number}", 1, [1.0, 1.0])
    record(table, "a", 1, [1.0])
    record(table, "one too many", 1, [1.0, 1.0])
    assert table.seconds("a", 1) == 1.0
    assert table.seconds("other 0", 1) is None


@given(
    seconds=st.lists(st.floats(0.001, 10.0), min_size=4, max_size=4)
    .map(sorted)
    .map(lambda ascending: dict(zip(COUNTS, ascending, strict=True))),
    num_rows=st.sampled_from(COUNTS),
)
def test_the_rows_run_at_nearly_the_best_rate_and_no_fewer_would(seconds: dict[int, float], num_rows: int) -> None:
    worth = table_of(seconds).rows_worth_running("a", num_rows)
    rates = {rows: rows / each for rows, each in seconds.items() if rows <= num_rows}
    assert rates[worth] >= NEARLY_BEST * max(rates.values())
    assert all(rate < NEARLY_BEST * max(rates.values()) for rows, rate in rates.items() if rows < worth)
