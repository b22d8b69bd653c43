"""What goes wrong with one request ends that one; its neighbours get their pictures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from darkroom_engine import Engine, EngineStopped, Handle, Request, RequestFailed
from darkroom_engine.families.base import Start


@pytest.fixture
def faulty(model: Any) -> Any:
    """A model that fails by prompt: while encoding, denoising or decoding, or quietly with numbers that are none."""

    class FaultyDiffusion(type(model)):  # type: ignore[misc]
        max_rows = 100
        rows_refused: tuple[int, ...] = ()
        error: Exception = ValueError("this prompt breaks the denoiser")

        def start(self, request: Request, noise_scheduler: Any, generator: Generator) -> Start:
            start: Start = super().start(request, noise_scheduler, generator)
            return Start(start.latents * 1e6) if request.seed == 404 else start

        def encode(self, prompt: str, *, is_negative: bool) -> Mapping[str, Tensor]:
            if prompt == "fail to encode":
                raise ValueError("this prompt breaks the encoder")
            conditioning = super().encode(prompt, is_negative=is_negative)
            marks = {"fail to denoise": torch.inf, "not a number": torch.nan}
            return {key: embeds + marks.get(prompt, 0.0) for key, embeds in conditioning.items()}

        def encode_together(self, prompts: Sequence[str]) -> list[Mapping[str, Tensor]]:
            return [self.encode(prompt, is_negative=False) for prompt in prompts]

        def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
            if len(latents) > self.max_rows:
                self.rows_refused += (len(latents),)
                raise torch.OutOfMemoryError("CUDA out of memory.")
            if any(embeds.isinf().any() for embeds in conditioning.values()):
                raise self.error
            prediction: Tensor = super().denoise(latents, timesteps, conditioning)
            return prediction

        def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
            if latents.abs().max() > 1e4:
                raise ValueError("this seed breaks the decoder")
            images: Tensor = super().decode(latents, size)
            return images

    return FaultyDiffusion(model._pipeline)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"prompt": "fail to encode"}, "ValueError: this prompt breaks the encoder"),
        ({"prompt": "fail to denoise"}, "ValueError: this prompt breaks the denoiser"),
        ({"prompt": "not a number"}, "not finite"),
        ({"seed": 404}, "ValueError: this seed breaks the decoder"),
    ],
)
def test_a_failing_request_fails_alone(
    make_engine: Callable[..., Engine],
    faulty: Any,
    request_for: Callable[..., Request],
    develop: Callable[..., list[Handle]],
    broken: dict[str, Any],
    reason: str,
) -> None:
    engine = make_engine(model=faulty)
    neighbour = request_for(seed=2, sampler="dpmpp_2m")
    [undisturbed] = develop(engine, neighbour)
    handles = develop(engine, request_for(seed=3), request_for(**broken), neighbour)
    with pytest.raises(RequestFailed, match=reason):
        handles[1].result(0)
    assert handles[0].result(0).image.shape == (64, 64, 3)
    difference = handles[2].result(0).image.astype(int) - undisturbed.result(0).image
    assert np.abs(difference).max() <= 1  # other row counts sum in another order: one gray level at most


def test_memory_running_out_halves_the_rows_and_everybody_ends(
    make_engine: Callable[..., Engine],
    faulty: Any,
    request_for: Callable[..., Request],
    develop: Callable[..., list[Handle]],
) -> None:
    faulty.max_rows = 3
    handles = develop(make_engine(model=faulty), *(request_for(seed=seed) for seed in range(4)))
    assert all(handle.result(0).image.shape == (64, 64, 3) for handle in handles)
    assert faulty.rows_refused == (8, 4)
    assert set(faulty.rows) == {2}


def test_a_request_that_does_not_fit_alone_fails_and_the_engine_goes_on(
    make_engine: Callable[..., Engine],
    faulty: Any,
    request_for: Callable[..., Request],
    develop: Callable[..., list[Handle]],
) -> None:
    faulty.max_rows = 1
    large, small = develop(make_engine(model=faulty), request_for(), request_for(guidance_scale=1.0))
    with pytest.raises(RequestFailed, match="does not fit into the device's memory"):
        large.result(0)
    assert small.result(0).image.shape == (64, 64, 3)


@pytest.mark.parametrize("exact_comes_first", [True, False])
def test_an_exact_request_whose_rows_do_not_fit_fails_alone(
    make_engine: Callable[..., Engine],
    faulty: Any,
    request_for: Callable[..., Request],
    develop: Callable[..., list[Handle]],
    exact_comes_first: bool,
) -> None:
    faulty.max_rows = 3  # an exact forward of this size has four
    requests = [request_for(is_exact=is_exact) for is_exact in (exact_comes_first, not exact_comes_first)]
    exact, normal = sorted(
        develop(make_engine(model=faulty), *requests), key=lambda handle: not handle.request.is_exact
    )
    with pytest.raises(RequestFailed, match="does not fit into the device's memory"):
        exact.result(0)
    assert normal.result(0).image.shape == (64, 64, 3)


def test_an_exact_neighbor_of_a_failing_request_gets_the_picture_it_gets_alone(
    make_engine: Callable[..., Engine],
    faulty: Any,
    request_for: Callable[..., Request],
    develop: Callable[..., list[Handle]],
) -> None:
    engine = make_engine(model=faulty)
    [alone] = develop(engine, request_for(is_exact=True))
    failing, exact = develop(engine, request_for(prompt="fail to denoise", is_exact=True), request_for(is_exact=True))
    assert np.array_equal(exact.result(0).image, alone.result(0).image)
    assert isinstance(failing._future.exception(), RequestFailed)


def test_the_thread_outlives_failures(
    make_engine: Callable[..., Engine], faulty: Any, request_for: Callable[..., Request]
) -> None:
    engine = make_engine(model=faulty)
    engine.start()
    failing = engine.submit(request_for(prompt="fail to denoise"))
    assert isinstance(failing._future.exception(30), RequestFailed)
    assert engine.submit(request_for()).result(30).image.shape == (64, 64, 3)
    assert engine.is_alive


def test_a_lost_device_ends_the_engine_and_blames_no_request(
    make_engine: Callable[..., Engine], faulty: Any, request_for: Callable[..., Request]
) -> None:
    faulty.error = torch.AcceleratorError("an illegal memory access was encountered")
    engine = make_engine(model=faulty)
    handles = [engine.submit(request_for(prompt=prompt)) for prompt in ("fail to denoise", "a red house")]
    engine.start()
    for handle in handles:
        with pytest.raises(EngineStopped):
            handle.result(30)
    engine.stop()
    assert not engine.is_alive
    with pytest.raises(EngineStopped):
        engine.submit(request_for())
