"""Snapshots: a request that moves to another engine in the middle of its walk ends where it would have ended."""

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load, save

from darkroom_engine import Engine, EngineStopped, Handle, InvalidSnapshot, Output, Request, RequestFailed
from darkroom_engine.samplers import DISCRETE_SAMPLERS

UNSPACED = sorted(name for name in DISCRETE_SAMPLERS if not name.endswith(("_karras", "_exponential", "_beta")))

from_diffusers = pytest.mark.filterwarnings(
    "ignore:__array_:DeprecationWarning", "ignore:Should have ta>=t0:UserWarning"
)


def output_of(engine: Engine, handle: Handle) -> Output:
    while engine.step():
        pass
    return handle.result(0)


def snapshot_after(engine: Engine, request: Request, *, steps: int) -> bytes:
    handle = engine.submit(request)
    while handle.progress.step < steps or handle.progress.stage in ("waiting", "encode"):
        engine.step()
    return engine.snapshot(handle)


def edited(snapshot: bytes, **changes: Any) -> bytes:
    length = int.from_bytes(snapshot[:8], "little")
    words = json.loads(json.loads(snapshot[8 : 8 + length])["__metadata__"]["snapshot"])
    return save(load(snapshot), metadata={"snapshot": json.dumps(words | changes)})


@from_diffusers
@pytest.mark.parametrize("sampler", UNSPACED)
def test_a_moved_request_ends_in_the_same_picture(
    make_engine: Callable[..., Engine], request_for: Callable[..., Request], sampler: str
) -> None:
    request = request_for(sampler=sampler, num_inference_steps=6, is_exact=True)
    undisturbed = output_of(engine := make_engine(), engine.submit(request))
    snapshot = snapshot_after(make_engine(), request, steps=3)
    elsewhere = make_engine()
    moved = output_of(elsewhere, elsewhere.restore(snapshot))
    assert np.array_equal(moved.image, undisturbed.image)


def test_a_moved_request_does_only_the_steps_that_are_left(
    make_engine: Callable[..., Engine], request_for: Callable[..., Request], model: Any
) -> None:
    snapshot = snapshot_after(make_engine(), request_for(num_inference_steps=6), steps=4)
    model.rows.clear()
    elsewhere = make_engine()
    handle = elsewhere.restore(snapshot)
    assert output_of(elsewhere, handle).num_steps == 6
    assert len(model.rows) == 2


def test_a_request_goes_on_after_its_snapshot(
    make_engine: Callable[..., Engine], request_for: Callable[..., Request]
) -> None:
    request = request_for(sampler="euler_a", is_exact=True)
    undisturbed = output_of(engine := make_engine(), engine.submit(request))
    engine = make_engine()
    handle = engine.submit(request)
    engine.step()
    engine.snapshot(handle)
    assert np.array_equal(output_of(engine, handle).image, undisturbed.image)


def test_a_request_moves_before_its_first_step(
    make_engine: Callable[..., Engine], request_for: Callable[..., Request]
) -> None:
    request = request_for(is_exact=True)
    engine = make_engine()
    snapshot = engine.snapshot(engine.submit(request))
    undisturbed = output_of(engine, engine.submit(request))
    elsewhere = make_engine()
    assert np.array_equal(output_of(elsewhere, elsewhere.restore(snapshot)).image, undisturbed.image)


def test_a_moved_request_takes_its_walk_and_its_picture_along(
    make_engine: Callable[..., Engine], request_for: Callable[..., Request]
) -> None:
    picture = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 8:48] = 255
    request = request_for(
        num_inference_steps=8, is_exact=True, num_walk_frames=4, image=picture, mask=mask, strength=0.8, deadline=1e12
    )
    undisturbed = output_of(engine := make_engine(), engine.submit(request))
    elsewhere = make_engine()
    moved = output_of(elsewhere, elsewhere.restore(snapshot_after(make_engine(), request, steps=3)))
    assert np.array_equal(moved.image, undisturbed.image)
    assert undisturbed.walk is not None
    assert moved.walk is not None
    assert np.array_equal(moved.walk, undisturbed.walk)


def test_a_running_engine_gives_snapshots_to_other_threads(
    make_engine: Callable[..., Engine], request_for: Callable[..., Request]
) -> None:
    engine, elsewhere = make_engine(), make_engine()
    begun = threading.Event()
    handle = engine.submit(request_for(num_inference_steps=100, is_exact=True))
    handle.add_done_callback(lambda _: begun.set())
    engine.start()
    snapshot = engine.snapshot(handle)
    handle.cancel()
    moved = elsewhere.restore(snapshot)
    elsewhere.start()
    assert begun.wait(30)
    assert moved.result(60).num_steps == 100


@pytest.mark.parametrize(("sampler", "can_be_taken"), [("heun", False), ("euler", True)])
def test_a_snapshot_that_breaks_ends_nobody_and_only_samplers_that_remember_need_a_fresh_one(
    make_engine: Callable[..., Engine],
    model: Any,
    request_for: Callable[..., Request],
    sampler: str,
    can_be_taken: bool,
) -> None:
    class OnceTimed(type(model)):  # type: ignore[misc]
        is_broken = False

        def timing(self, request: Request) -> Any:
            if self.is_broken:
                raise ValueError("no second time")
            return super().timing(request)

    once = OnceTimed(model._pipeline)
    engine = make_engine(model=once)
    handle = engine.submit(request_for(sampler=sampler, num_inference_steps=50))
    once.is_broken = True
    engine.start()
    if can_be_taken:
        assert engine.snapshot(handle)
    else:
        with pytest.raises(ValueError, match="no second time"):
            engine.snapshot(handle)
    assert handle.result(60).num_steps >= 50


def test_there_is_no_snapshot_of_what_is_not_in_flight(engine: Engine, request_for: Callable[..., Request]) -> None:
    handle = engine.submit(request_for())
    output_of(engine, handle)
    with pytest.raises(InvalidSnapshot, match="not in flight here"):
        engine.snapshot(handle)
    engine.start()
    with pytest.raises(InvalidSnapshot, match="not in flight here"):
        engine.snapshot(handle)
    engine.stop()
    with pytest.raises(EngineStopped):
        engine.snapshot(handle)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b"", "cannot be read"),
        (b"\x00" * 64, "cannot be read"),
        (save({}, metadata={"snapshot": "{}"}), "KeyError: 'format'"),
        (save({}, metadata={"snapshot": '{"format": "other"}'}), "its format is 'other'"),
    ],
)
def test_rubbish_is_refused(engine: Engine, broken: bytes, reason: str) -> None:
    with pytest.raises(InvalidSnapshot, match=reason):
        engine.restore(broken)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": 4}, "it is at step 4 of 4"),
        ({"step": -1}, "it is at step -1 of 4"),
        ({"sampler": {"dt": 1}}, "sampler 'euler' has nothing to remember"),
        ({"request.sampler": "heun", "sampler": {"step": 1}}, "step of sampler 'heun' is no memory of its steps"),
    ],
)
def test_a_snapshot_that_fits_nowhere_fails_its_request(
    make_engine: Callable[..., Engine], request_for: Callable[..., Request], changes: dict[str, Any], reason: str
) -> None:
    sampler = changes.pop("request.sampler", "euler")
    snapshot = edited(snapshot_after(make_engine(), request_for(sampler=sampler), steps=1), **changes)
    engine = make_engine()
    handle = engine.restore(snapshot)
    with pytest.raises(RequestFailed, match=reason):
        output_of(engine, handle)


def test_a_deadline_is_as_far_away_as_it_was(
    make_engine: Callable[..., Engine], request_for: Callable[..., Request]
) -> None:
    snapshot = snapshot_after(make_engine(), request_for(deadline=1e12), steps=1)
    assert make_engine().restore(snapshot).request.deadline == pytest.approx(1e12)
    overdue = snapshot_after(make_engine(), request_for(), steps=1)
    assert make_engine().restore(overdue).request.deadline is None
