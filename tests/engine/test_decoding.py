"""Pictures are decoded beside the steps: together where they may be, alone where they must, and nobody waits."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from darkroom_engine import Engine, Handle, Request, RequestCanceled
from darkroom_engine.decoding import MAX_PIXELS_TOGETHER
from darkroom_engine.tiling import WHOLE_PIXELS, tile_large_pictures


@pytest.fixture
def gated(model: Any) -> Iterator[Any]:
    """A model whose decoder waits at a gate, which is open at first, and notes the shapes of what it decodes."""

    class GatedDiffusion(type(model)):  # type: ignore[misc]
        def __init__(self, pipeline: Any) -> None:
            super().__init__(pipeline)
            self.shapes: list[tuple[int, ...]] = []
            self.gate = threading.Event()
            self.gate.set()
            self.is_waiting = threading.Event()

        def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
            self.shapes.append(tuple(latents.shape))
            self.is_waiting.set()
            assert self.gate.wait(30)
            images: Tensor = super().decode(latents, size)
            return images

    gated = GatedDiffusion(model._pipeline)
    yield gated
    gated.gate.set()


@pytest.fixture
def open_engine(make_engine: Callable[..., Engine], gated: Any) -> Engine:
    engine = make_engine(model=gated)
    gated.shapes.clear()  # of what is decoded while a model is taken in
    gated.is_waiting.clear()
    return engine


def test_pictures_that_end_together_are_decoded_together(
    open_engine: Engine, gated: Any, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    requests = [request_for(seed=seed, guidance_scale=1.0) for seed in range(3)]
    handles = develop(open_engine, *requests)
    assert [shape[0] for shape in gated.shapes] == [3]
    alone = [develop(open_engine, request)[0] for request in requests]
    for together, apart in zip(handles, alone, strict=True):
        difference = together.result(0).image.astype(int) - apart.result(0).image
        assert np.abs(difference).max() <= 1  # other row counts sum in another order: one gray level at most


def test_sizes_are_decoded_apart(open_engine: Engine, gated: Any, request_for: Callable[..., Request]) -> None:
    gated.gate.clear()
    handles = [open_engine.submit(request_for(num_inference_steps=1))]
    open_engine.step()
    assert gated.is_waiting.wait(30)  # all that follow wait together
    sizes = [(64, 64), (64, 96), (96, 64), (64, 96)]
    handles += [open_engine.submit(request_for(height=height, width=width)) for height, width in sizes]
    while any(handle.progress.stage != "decode" for handle in handles):
        open_engine.step()
    gated.gate.set()
    while open_engine.step():
        pass
    assert [handle.result(0).image.shape[:2] for handle in handles[1:]] == sizes
    assert sorted(shape[0] for shape in gated.shapes) == [1, 1, 1, 2]


def test_exact_pictures_are_decoded_one_by_one(
    open_engine: Engine, gated: Any, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    gated.features = gated.features | {"exact"}
    develop(open_engine, *(request_for(seed=seed, guidance_scale=1.0, is_exact=seed > 1) for seed in range(4)))
    assert sorted(shape[0] for shape in gated.shapes) == [1, 1, 2]


def test_no_more_is_decoded_together_than_memory_is_kept_for(
    make_engine: Callable[..., Engine],
    model: Any,
    request_for: Callable[..., Request],
    develop: Callable[..., list[Handle]],
) -> None:
    shapes: list[tuple[int, ...]] = []

    class GrayDiffusion(type(model)):  # type: ignore[misc]
        """Large pictures at no cost."""

        def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
            return torch.zeros_like(latents)

        def decode(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
            shapes.append(tuple(latents.shape))
            return torch.zeros(len(latents), 3, *size)

    engine = make_engine(model=GrayDiffusion(model._pipeline))
    shapes.clear()
    side = {"width": 1024, "height": 1024}
    assert MAX_PIXELS_TOGETHER == 4 * 1024 * 1024
    develop(engine, *(request_for(seed=seed, num_inference_steps=1, guidance_scale=1.0, **side) for seed in range(5)))
    assert [shape[0] for shape in shapes] == [4, 1]


def test_steps_go_on_while_a_picture_is_decoded(
    open_engine: Engine, gated: Any, request_for: Callable[..., Request]
) -> None:
    gated.gate.clear()
    short, long = (open_engine.submit(request_for(num_inference_steps=steps)) for steps in (1, 6))
    open_engine.step()
    assert gated.is_waiting.wait(30)
    for _ in range(4):
        open_engine.step()
    assert (short.progress.stage, long.progress.step) == ("decode", 5)
    late = open_engine.submit(request_for(num_inference_steps=9))
    open_engine.step()
    assert late.progress.step == 1
    gated.gate.set()
    while open_engine.step():
        pass
    assert all(handle.result(0).image.shape == (64, 64, 3) for handle in (short, long, late))


def test_a_cancel_acts_while_the_picture_is_decoded(
    open_engine: Engine, gated: Any, request_for: Callable[..., Request]
) -> None:
    gated.gate.clear()
    canceled, waiting = (open_engine.submit(request_for(num_inference_steps=steps)) for steps in (1, 2))
    open_engine.step()
    assert gated.is_waiting.wait(30)
    open_engine.step()
    canceled.cancel()
    open_engine.step()
    with pytest.raises(RequestCanceled):
        canceled.result(0)
    gated.gate.set()
    while open_engine.step():
        pass
    assert waiting.result(0).image.shape == (64, 64, 3)


def test_a_stop_ends_who_waits_for_a_picture(
    open_engine: Engine, gated: Any, request_for: Callable[..., Request]
) -> None:
    gated.gate.clear()
    handles = [open_engine.submit(request_for(num_inference_steps=steps)) for steps in (1, 2)]
    open_engine.start()
    assert gated.is_waiting.wait(30)
    threading.Timer(0.05, gated.gate.set).start()
    open_engine.stop()
    assert all(handle.done for handle in handles)


class RecordingVae(AutoencoderKL):  # type: ignore[misc]
    """Notes whether it was asked for tiles."""

    tiled = False

    def tiled_decode(self, *arguments: Any, **options: Any) -> Any:
        self.tiled = True
        return super().tiled_decode(*arguments, **options)


@pytest.mark.parametrize(("side", "is_tiled"), [(WHOLE_PIXELS, False), (WHOLE_PIXELS + 2, True)])
def test_only_pictures_above_the_threshold_are_decoded_in_tiles(side: int, is_tiled: bool) -> None:
    blocks = {"block_out_channels": (2, 2), "layers_per_block": 1, "norm_num_groups": 1, "latent_channels": 1}
    types = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = RecordingVae(**blocks, **types, mid_block_add_attention=False)
    tile_large_pictures(vae)
    with torch.inference_mode():
        image = vae.decode(torch.zeros(1, 1, 32, side // 2)).sample
    assert image.shape == (1, 3, 64, side)
    assert vae.tiled is is_tiled
