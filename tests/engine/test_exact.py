"""Exact mode: bit-equal pictures, whoever the neighbors are and whenever they come and go."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from darkroom_engine import Engine, Handle, Request
from darkroom_engine.exact import ROWS_OF_LARGE, ROWS_OF_SMALL, exact_rows

# One with a step table, one that draws noise, one with a solver's memory, one that steps with its own object.
SAMPLERS = ("euler", "euler_a", "dpmpp_2m", "heun")

Alone = Callable[[Request], tuple[Tensor, Any]]


@pytest.fixture(scope="session")
def known() -> dict[Request, tuple[Tensor, Any]]:
    return {}


@pytest.fixture
def alone(make_engine: Callable[..., Engine], known: dict[Request, tuple[Tensor, Any]]) -> Alone:
    """Develops an exact request with no neighbor: its last latents and its picture."""

    def develop(request: Request) -> tuple[Tensor, Any]:
        if request not in known:
            [known[request]] = run_all(make_engine(), [(0, request, None)])
        return known[request]

    return develop


def run_all(engine: Engine, schedule: list[tuple[int, Request, int | None]]) -> list[tuple[Tensor, Any]]:
    """Submit each request at its tick, cancel it at another if there is one; the latents and picture of the first."""
    handles: list[Handle] = []
    first: Any = None
    num_ticks = 0
    while num_ticks <= max(tick for tick, _, _ in schedule) or not all(handle.done for handle in handles):
        for tick, request, _ in schedule:
            if tick == num_ticks:
                handles.append(engine.submit(request))
                if request is schedule[0][1]:
                    mine = handles[-1]
        for handle in handles:
            if any(request is handle.request and canceled == num_ticks for _, request, canceled in schedule):
                handle.cancel()
        engine.step()
        num_ticks += 1
        own = [one for one in engine._scheduler.developments if one.request is schedule[0][1]]
        first = own[0] if own else first
    return [(first.latents, mine.result(0))]


def make(request_for: Callable[..., Request], **fields: Any) -> Request:
    return request_for(seed=5, num_inference_steps=4, prompt="a blue boat", is_exact=True, **fields)


neighbors = st.lists(
    st.tuples(
        st.integers(0, 5),  # the tick of its coming
        st.booleans(),  # exact or not
        st.integers(1, 5),  # steps
        st.sampled_from([1.0, 3.0]),
        st.sampled_from(SAMPLERS),
        st.integers(0, 1),  # class
        st.one_of(st.none(), st.integers(1, 5)),  # the tick of its being canceled
        st.sampled_from([64, 64, 64, 72]),  # width
    ),
    max_size=5,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sampler=st.sampled_from(SAMPLERS),
    guidance_scale=st.sampled_from([1.0, 3.0]),
    priority=st.integers(0, 1),
    joins_at=st.integers(0, 3),
    max_rows=st.sampled_from([1, 3, 8]),
    others=neighbors,
)
def test_a_picture_is_bit_equal_whatever_the_schedule(
    make_engine: Callable[..., Engine],
    request_for: Callable[..., Request],
    alone: Alone,
    sampler: str,
    guidance_scale: float,
    priority: int,
    joins_at: int,
    max_rows: int,
    others: list[tuple[int, bool, int, float, str, int, int | None, int]],
) -> None:
    lone_latents, lone = alone(make(request_for, sampler=sampler, guidance_scale=guidance_scale))
    request = make(request_for, sampler=sampler, guidance_scale=guidance_scale, priority=priority)
    schedule: list[tuple[int, Request, int | None]] = [(joins_at, request, None)]
    for number, (tick, is_exact, steps, scale, own_sampler, own_class, canceled_at, width) in enumerate(others):
        fields = {"num_inference_steps": steps, "guidance_scale": scale, "sampler": own_sampler, "width": width}
        neighbor = request_for(seed=100 + number, is_exact=is_exact, priority=own_class, prompt=str(number), **fields)
        schedule.append((tick, neighbor, canceled_at))
    [(latents, output)] = run_all(make_engine(max_rows=max_rows), schedule)
    assert torch.equal(latents, lone_latents)
    assert np.array_equal(output.image, lone.image)


def test_a_neighbor_that_is_no_number_leaves_an_exact_picture_as_it_is(
    make_engine: Callable[..., Engine], model: Any, request_for: Callable[..., Request], alone: Alone
) -> None:
    class PoisonedDiffusion(type(model)):  # type: ignore[misc]
        def encode(self, prompt: str, *, is_negative: bool) -> dict[str, Tensor]:
            conditioning = super().encode(prompt, is_negative=is_negative)
            return {key: embeds + (torch.nan if prompt == "poison" else 0) for key, embeds in conditioning.items()}

    request = make(request_for)
    lone_latents, _ = alone(request)
    engine = make_engine(model=PoisonedDiffusion(model._pipeline))
    engine.submit(request_for(prompt="poison", is_exact=True, num_inference_steps=9))
    [(latents, _)] = run_all(engine, [(0, request, None)])
    assert torch.equal(latents, lone_latents)


def test_every_forward_of_an_exact_request_has_the_same_rows(
    engine: Engine, model: Any, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    develop(engine, make(request_for, guidance_scale=1.0))
    assert model.rows == [ROWS_OF_SMALL] * 4
    model.rows.clear()
    develop(engine, make(request_for), *(make(request_for, guidance_scale=1.0) for _ in range(4)))
    assert set(model.rows) == {ROWS_OF_SMALL}


def test_exact_and_normal_requests_share_forwards(
    make_engine: Callable[..., Engine],
    model: Any,
    request_for: Callable[..., Request],
    develop: Callable[..., list[Handle]],
) -> None:
    develop(make_engine(max_rows=2), make(request_for), request_for(num_inference_steps=4))
    assert len(model.rows) < 2 * 4


def test_an_output_says_the_rows_and_the_device(
    engine: Engine, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    exact, normal = develop(engine, make(request_for), request_for())
    assert exact.result(0).rows == ROWS_OF_SMALL
    assert normal.result(0).rows is None
    assert exact.result(0).fingerprint == normal.result(0).fingerprint == engine.device_info.fingerprint


def test_the_rows_depend_on_the_shape_alone() -> None:
    assert [exact_rows(*size) for size in [(64, 64), (512, 512), (520, 512), (1024, 1024)]] == [
        ROWS_OF_SMALL,
        ROWS_OF_SMALL,
        ROWS_OF_LARGE,
        ROWS_OF_LARGE,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_what_else_is_in_its_forward(pipeline: Any, dtype: torch.dtype) -> None:
    unet = type(pipeline.unet).from_config(pipeline.unet.config)
    unet.load_state_dict(pipeline.unet.state_dict())
    unet.to(dtype)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(ROWS_OF_SMALL, 4, 8, 8, generator=generator).to(dtype)
    embeds = torch.randn(ROWS_OF_SMALL, 128, 64, generator=generator).to(dtype)
    timesteps = torch.tensor([1.0, 300.0, 640.5, 999.0])
    with torch.inference_mode():
        rows = unet(latents, timesteps, embeds).sample
        turned = unet(latents.flip(0), timesteps.flip(0), embeds.flip(0)).sample.flip(0)
        lone = [
            unet(latents[[n] * ROWS_OF_SMALL], timesteps[[n] * ROWS_OF_SMALL], embeds[[n] * ROWS_OF_SMALL]).sample[0]
            for n in range(ROWS_OF_SMALL)
        ]
    assert torch.equal(rows, turned)
    assert torch.equal(rows, torch.stack(lone))
