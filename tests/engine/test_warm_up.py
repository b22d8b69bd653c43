"""What is measured before the first request, what follows from it, and what a request must fit into."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from darkroom_engine import Engine, Handle, InvalidRequest, Request, UnknownModel
from darkroom_engine.memory import CPU_SHARE, MemoryBound, cpu_bound
from darkroom_engine.stopwatch import HostStopwatch, stopwatch_for


def test_a_warm_up_measures_every_row_count_the_engine_may_run(make_engine: Callable[..., Engine], model: Any) -> None:
    engine = make_engine(max_rows=6)
    engine.warm_up("tiny", [(64, 64), (96, 64)], seconds=100)
    assert set(model.rows) == {1, 2, 3, 4, 6}
    assert len(engine._scheduler.costs._curves) == 2


def test_a_warm_up_teaches_the_shape_that_requests_have(
    engine: Engine, model: Any, request_for: Callable[..., Request]
) -> None:
    engine.warm_up("tiny", [(64, 64)])
    engine.submit(request_for())
    engine.step()
    [development] = engine._scheduler.developments
    seconds = engine._scheduler.costs.seconds(development.batch_key, 4)
    assert seconds is not None
    assert seconds > 0


def test_a_warm_up_ends_when_its_seconds_do(engine: Engine, model: Any) -> None:
    engine.warm_up("tiny", [(64, 64)], seconds=0)
    assert set(model.rows) == {1}


def test_a_warm_up_ends_where_the_memory_does(make_engine: Callable[..., Engine], model: Any) -> None:
    class SmallDevice(type(model)):  # type: ignore[misc]
        def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
            if len(latents) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            prediction: Tensor = super().denoise(latents, timesteps, conditioning)
            return prediction

    small = SmallDevice(model._pipeline)
    make_engine(model=small).warm_up("tiny", [(64, 64)], seconds=100)
    assert set(small.rows) == {1, 2, 3}


def test_a_warm_up_leaves_no_trace_in_pictures_and_no_request_in_flight(
    make_engine: Callable[..., Engine], request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    warm, cold = make_engine(), make_engine()
    warm.warm_up("tiny", [(64, 64)])
    assert not warm.step()
    [first], [second] = develop(warm, request_for(is_exact=True)), develop(cold, request_for(is_exact=True))
    assert (first.result(0).image == second.result(0).image).all()


def test_only_a_loaded_model_is_warmed_up_and_only_before_the_start(engine: Engine) -> None:
    with pytest.raises(UnknownModel):
        engine.warm_up("huge", [(64, 64)])
    engine.start()
    with pytest.raises(RuntimeError, match="before it is started"):
        engine.warm_up("tiny", [(64, 64)])


def test_a_request_beyond_the_memory_is_refused_with_the_limit(
    engine: Engine, request_for: Callable[..., Request]
) -> None:
    engine._runner.memory["tiny"] = MemoryBound(3000.0 * 64 * 64, 1000.0, 1000.0)
    engine.submit(request_for())
    with pytest.raises(InvalidRequest, match="width times height is 4608, and must be at most 4096"):
        engine.submit(request_for(width=72))


def test_rows_stay_within_the_memory_of_their_shape(
    engine: Engine, model: Any, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    engine._runner.memory["tiny"] = MemoryBound(5000.0 * 64 * 64, 1000.0, 1000.0)
    develop(engine, *(request_for(seed=seed) for seed in range(4)))
    assert max(model.rows) == 4


def test_a_model_says_how_many_pixels_fit(engine: Engine) -> None:
    published = engine.models["tiny"].max_pixels
    assert published == cpu_bound(engine.device_info.memory_bytes).max_pixels
    assert published is not None
    assert published > 0


def test_a_bound_leaves_room_for_a_decode() -> None:
    bound = MemoryBound(100.0, 2.0, 6.0)
    assert bound.max_pixels == 10
    assert [bound.max_rows(pixels) for pixels in (1, 5, 10)] == [47, 7, 2]


def test_the_stricter_of_two_bounds_is_that_of_each_part() -> None:
    assert MemoryBound(100.0, 2.0, 6.0).stricter(MemoryBound(90.0, 3.0, 5.0)) == MemoryBound(90.0, 3.0, 6.0)


def test_a_cpu_gives_a_part_of_its_memory() -> None:
    assert cpu_bound(1 << 30).budget_bytes == CPU_SHARE * (1 << 30)


def test_a_failed_forward_costs_nothing() -> None:
    stopwatch = HostStopwatch()
    with pytest.raises(ValueError, match="no"), stopwatch.timing("a", 2):
        raise ValueError("no")
    with stopwatch.timing("a", 3):
        pass
    assert [(cost.batch_key, cost.num_rows) for cost in stopwatch.costs()] == [("a", 3)]
    assert stopwatch.costs() == []


def test_what_forwards_cost_is_learned_while_they_run(
    engine: Engine, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    develop(engine, request_for(num_inference_steps=4))
    [curve] = engine._scheduler.costs._curves.values()
    assert [rows for rows, _ in curve.points] == [2]


if torch.cuda.is_available():  # no skip: where there is no such device, there is no such test

    def test_a_device_that_queues_its_work_is_timed_by_its_own_clock() -> None:
        stopwatch = stopwatch_for(torch.device("cuda"))
        matrix = torch.randn(8192, 8192, device="cuda")
        with stopwatch.timing("a", 2):
            for _ in range(20):
                matrix @ matrix
        assert stopwatch.costs() == []  # still running: nobody waited
        torch.cuda.synchronize()
        [cost] = stopwatch.costs()
        assert cost.seconds > 0
