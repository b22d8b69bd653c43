"""Starting, stopping, canceling, deadlines, progress: what a caller sees of a request over time."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from darkroom_engine import (
    DeadlineExceeded,
    DeviceUnavailable,
    Engine,
    EngineStopped,
    Handle,
    Request,
    RequestCanceled,
)


def test_the_thread_develops_what_many_threads_submit(engine: Engine, request_for: Callable[..., Request]) -> None:
    engine.start()
    handles: list[Handle] = []
    threads = [
        threading.Thread(target=lambda seed=seed: handles.append(engine.submit(request_for(seed=seed))))
        for seed in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(handle.result(30).seed for handle in handles) == list(range(8))


def test_starting_and_stopping_twice_is_starting_and_stopping_once(engine: Engine) -> None:
    threads_before = threading.active_count()
    engine.start()
    engine.start()
    assert engine.is_alive
    assert threading.active_count() == threads_before + 1
    engine.stop()
    engine.stop()
    assert not engine.is_alive


def test_a_stop_may_come_before_the_start(engine: Engine) -> None:
    engine.stop()
    with pytest.raises(EngineStopped):
        engine.start()
    assert not engine.is_alive


def test_a_stopped_engine_refuses_requests(engine: Engine, request_for: Callable[..., Request]) -> None:
    engine.start()
    engine.stop()
    with pytest.raises(EngineStopped):
        engine.submit(request_for())


@pytest.mark.parametrize("is_started", [True, False])
def test_stopping_ends_the_requests_in_flight(
    engine: Engine, request_for: Callable[..., Request], is_started: bool
) -> None:
    handles = [engine.submit(request_for(num_inference_steps=1000)) for _ in range(2)]
    if is_started:
        engine.start()
    engine.stop()
    for handle in handles:
        with pytest.raises(EngineStopped):
            handle.result(0)


def test_a_callback_may_stop_the_engine(engine: Engine, request_for: Callable[..., Request]) -> None:
    handle = engine.submit(request_for())
    stopped = threading.Event()
    handle.add_done_callback(lambda _: (engine.stop(), stopped.set()))
    engine.start()
    assert stopped.wait(30)
    engine.stop()
    assert not engine.is_alive


def test_a_cancel_acts_at_the_next_step_and_frees_the_rows(
    make_engine: Callable[..., Engine], model: object, request_for: Callable[..., Request]
) -> None:
    engine = make_engine(max_rows=2)
    running, waiting = engine.submit(request_for()), engine.submit(request_for(seed=2))
    engine.step()
    running.cancel()
    engine.step()
    with pytest.raises(RequestCanceled):
        running.result(0)
    assert waiting.progress.step == 1


def test_a_cancel_leaves_the_neighbours_pictures_as_they_are(
    make_engine: Callable[..., Engine], request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    engine = make_engine()
    neighbour, canceled = engine.submit(request_for(seed=2)), engine.submit(request_for(sampler="dpmpp_2m"))
    engine.step()
    canceled.cancel()
    while engine.step():
        pass
    [undisturbed] = develop(make_engine(), request_for(seed=2))
    difference = neighbour.result(0).image.astype(int) - undisturbed.result(0).image
    assert np.abs(difference).max() <= 1  # other row counts sum in another order: one gray level at most


def test_a_cancel_reaches_a_request_that_waits_for_the_thread(
    engine: Engine, request_for: Callable[..., Request]
) -> None:
    handle = engine.submit(request_for())
    handle.cancel()
    engine.start()
    with pytest.raises(RequestCanceled):
        handle.result(30)


def test_canceling_a_done_request_changes_nothing(
    engine: Engine, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    [handle] = develop(engine, request_for())
    handle.cancel()
    assert handle.result(0).image.shape == (64, 64, 3)


def test_a_deadline_acts_at_the_next_step(
    engine: Engine, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    late = engine.submit(request_for(deadline=time.monotonic()))
    timely = engine.submit(request_for(deadline=time.monotonic() + 600))
    while engine.step():
        pass
    with pytest.raises(DeadlineExceeded):
        late.result(0)
    assert late.progress.step == 0
    assert timely.result(0).image.shape == (64, 64, 3)


def test_progress_counts_the_samplers_own_steps(engine: Engine, request_for: Callable[..., Request]) -> None:
    handle = engine.submit(request_for(sampler="heun", num_inference_steps=3))
    seen = [(handle.progress.stage, handle.progress.step, handle.progress.num_steps)]
    while engine.step():
        seen.append((handle.progress.stage, handle.progress.step, handle.progress.num_steps))
    steps = [("denoise", step, 5) for step in range(1, 5)]
    assert list(dict.fromkeys(seen)) == [("waiting", 0, 5), *steps, ("decode", 5, 5), ("done", 5, 5)]


def test_progress_says_when_it_changed(engine: Engine, request_for: Callable[..., Request]) -> None:
    handle = engine.submit(request_for())
    submitted_at = handle.progress.changed_at
    engine.step()
    assert submitted_at < handle.progress.changed_at <= time.monotonic()


def test_callbacks_run_once_whether_added_before_or_after(
    engine: Engine, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    called: list[Handle] = []
    handle = engine.submit(request_for())
    handle.add_done_callback(called.append)
    assert not handle.done
    while engine.step():
        pass
    handle.add_done_callback(called.append)
    assert handle.done
    assert called == [handle, handle]


@pytest.mark.parametrize("device", ["cuda:99", "meta", "toaster"])
def test_a_device_that_is_not_there_is_refused_by_name(device: str) -> None:
    with pytest.raises(DeviceUnavailable, match=f"device '{device}' cannot be used"):
        Engine(device)


def test_an_engine_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="max_rows is 0"):
        Engine("cpu", 0)
