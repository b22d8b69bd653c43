"""What is seen of a request on its way: its walk, when it asks for one, and previews, while somebody watches."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Generator, Tensor

from darkroom_engine import Engine, Handle, InvalidRequest, Request
from darkroom_engine.frames import FRAME_PIXELS, PREVIEW_PIXELS, shrink
from darkroom_engine.latent_colors import fit_latent_colors

Develop = Callable[..., list[Handle]]


def likeness(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """The correlation of two pictures of one size."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def noise_of(model: Any, *, seed: int) -> npt.NDArray[np.uint8]:
    """What a picture of 64 x 64 is decoded from before the first step, decoded."""
    shape = (1, model.unet.config.in_channels, *(64 // model.latent_multiple,) * 2)
    noise = torch.randn(shape, generator=Generator().manual_seed(seed))
    with torch.inference_mode():
        decoded = model.decode(noise, (64, 64))[0].permute(1, 2, 0).numpy() * 0.5 + 0.5
    return (decoded.clip(0, 1) * 255).round().astype(np.uint8)


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m_karras", "heun"])
def test_a_walk_leads_from_noise_to_the_picture(
    engine: Engine, model: Any, request_for: Callable[..., Request], develop: Develop, sampler: str
) -> None:
    [handle] = develop(engine, request_for(sampler=sampler, num_inference_steps=12, num_walk_frames=5, seed=3))
    output = handle.result(0)
    assert output.walk is not None
    assert output.walk.shape == (5, 64, 64, 3)
    difference = output.walk[-1].astype(int) - output.image
    assert np.abs(difference).max() <= 1  # decoded with the other frames: other row counts sum in another order
    assert likeness(output.walk[0], noise_of(model, seed=3)) > 0.99  # some samplers begin a hair below all noise
    assert likeness(output.walk[0], output.image) < likeness(output.walk[3], output.image)


def test_a_picture_is_the_same_with_and_without_its_walk(
    engine: Engine, request_for: Callable[..., Request], develop: Develop
) -> None:
    [plain], [walked] = (develop(engine, request_for(num_walk_frames=frames)) for frames in (0, 8))
    assert plain.result(0).walk is None
    assert np.array_equal(plain.result(0).image, walked.result(0).image)


def test_fewer_steps_than_frames_give_a_frame_for_each(
    engine: Engine, request_for: Callable[..., Request], develop: Develop
) -> None:
    [handle] = develop(engine, request_for(num_inference_steps=2, num_walk_frames=8))
    walk = handle.result(0).walk
    assert walk is not None
    assert len(walk) == 3


def test_the_walk_of_a_large_picture_is_small(
    engine: Engine, request_for: Callable[..., Request], develop: Develop
) -> None:
    [handle] = develop(engine, request_for(width=512, height=256, num_inference_steps=1, num_walk_frames=2))
    output = handle.result(0)
    assert output.image.shape == (256, 512, 3)
    assert output.walk is not None
    assert output.walk.shape == (2, FRAME_PIXELS // 2, FRAME_PIXELS, 3)


def test_shrinking_keeps_shapes_and_the_strength_of_noise() -> None:
    generator = Generator().manual_seed(1)
    shapes = torch.randn(1, 4, 8, 16, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    small, size = shrink(shapes, (256, 512), 128)
    assert size == (64, 128)
    assert torch.allclose(small, shapes[:, :, ::4, ::4], atol=1e-5)  # means of equal numbers, and a gain of one
    noise = torch.randn(1, 4, 32, 64, generator=generator)
    assert shrink(noise, (256, 512), 128)[0].std() == pytest.approx(1.0, abs=0.05)  # 512 numbers


def test_a_walk_of_more_frames_than_are_kept_is_refused(engine: Engine, request_for: Callable[..., Request]) -> None:
    with pytest.raises(InvalidRequest, match="num_walk_frames is 9"):
        engine.submit(request_for(num_walk_frames=9))


def test_nobody_watching_costs_nothing(engine: Engine, request_for: Callable[..., Request]) -> None:
    handle = engine.submit(request_for())
    engine.step()
    assert handle.preview is None
    handle.watch(0.0)
    engine.step()
    assert handle.preview is None


def test_a_preview_shows_the_picture_that_is_expected(engine: Engine, request_for: Callable[..., Request]) -> None:
    handle = engine.submit(request_for(num_inference_steps=60, width=128, height=128))
    handle.watch(600)
    while engine.step() and (handle.preview is None or handle.preview.step < 50):
        handle.shown_at = 0.0  # as if the latest preview were old
    assert handle.preview is not None
    painted = handle.preview.paint()
    while engine.step():
        pass
    assert likeness(painted, handle.result(0).image) > 0.7


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_karras"])
def test_the_first_preview_is_not_the_noise(
    engine: Engine, model: Any, request_for: Callable[..., Request], sampler: str
) -> None:
    handle = engine.submit(request_for(num_inference_steps=20, sampler=sampler, seed=3))
    handle.watch(600)
    engine.step()
    handle.shown_at = time.monotonic() + 600  # no other is due for long
    while engine.step():
        pass
    assert handle.preview is not None
    assert likeness(handle.preview.paint(), noise_of(model, seed=3)) < 0.9


def test_the_preview_of_a_large_picture_is_small(engine: Engine, request_for: Callable[..., Request]) -> None:
    handle = engine.submit(request_for(num_inference_steps=20, width=128, height=256))
    handle.watch(600)
    while engine.step():
        pass
    assert handle.preview is not None
    assert handle.preview.paint().shape == (PREVIEW_PIXELS, PREVIEW_PIXELS // 2, 3)


def test_previews_are_rare(engine: Engine, request_for: Callable[..., Request]) -> None:
    handle = engine.submit(request_for(num_inference_steps=30))
    handle.watch(600)
    engine.step()
    handle.shown_at = time.monotonic() + 600  # nothing is due for long
    while engine.step():
        pass
    assert handle.preview is not None
    assert handle.preview.step == 1


def test_a_preview_that_fails_costs_nobody_the_picture(
    make_engine: Callable[..., Engine], model: Any, request_for: Callable[..., Request]
) -> None:
    class ShyDiffusion(type(model)):  # type: ignore[misc]
        def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
            if size != (64, 256):
                raise ValueError("only the picture itself")
            images: Tensor = super().decode(latents, size)
            return images

    engine = make_engine(model=ShyDiffusion(model._pipeline))
    handle = engine.submit(request_for(num_inference_steps=20, width=256))
    handle.watch(600)
    while engine.step():
        pass
    assert handle.preview is None
    assert handle.result(0).image.shape == (64, 256, 3)


def test_the_colors_of_a_linear_vae_are_found_exactly() -> None:
    weights = torch.randn(3, 4, generator=Generator().manual_seed(1))

    class Linear:
        """A family whose decoder is a linear map, and pictures twice as large as latents."""

        latent_multiple = 2

        class vae:  # noqa: N801
            config: dict[str, int] = {"latent_channels": 4}  # noqa: RUF012
            device, dtype = torch.device("cpu"), torch.float32

        def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
            colors = torch.einsum("rc,bchw->brhw", weights, latents) + 0.25
            return colors.repeat_interleave(2, 2).repeat_interleave(2, 3)

    factors = fit_latent_colors(Linear()).factors
    assert torch.allclose(factors, torch.cat([weights.T, torch.full((1, 3), 0.25)]), atol=1e-4)  # least squares
