"""The switches of a model: the same pictures, computed another way; and what this device does not have is refused."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from darkroom_engine import Engine, Handle, ModelLoadError, Request, Tuning


@pytest.mark.parametrize(
    "tuning",
    [Tuning(channels_last=True), Tuning(attention="math"), Tuning(vae_dtype="bfloat16")],
    ids=["channels_last", "attention", "vae_dtype"],
)
def test_a_switch_changes_no_picture_that_one_could_see(
    engine: Engine, request_for: Callable[..., Request], develop: Callable[..., list[Handle]], tuning: Tuning
) -> None:
    engine.load("tuned", source="seeded:7", tuning=tuning)
    plain, tuned = (
        handle.result(0).image.astype(int) for handle in develop(engine, request_for(), request_for(model="tuned"))
    )
    # bfloat16 has 8 bits of precision; the other two only sum in another order.
    assert np.abs(plain - tuned).max() <= (12 if tuning.vae_dtype else 1)


def test_weights_lie_as_they_were_asked_to(engine: Engine) -> None:
    engine.load("tuned", source="seeded:7", tuning=Tuning(channels_last=True, vae_dtype="bfloat16"))
    model = engine._runner.models["tuned"]
    assert model.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[attr-defined]
    assert (model.vae.dtype, model.unet.dtype) == (torch.bfloat16, torch.float32)  # type: ignore[attr-defined]


def test_attention_is_computed_by_the_chosen_kernel_and_only_then(
    engine: Engine, request_for: Callable[..., Request], develop: Callable[..., list[Handle]]
) -> None:
    engine.load("tuned", source="seeded:7", tuning=Tuning(attention="math"))
    model = engine._runner.models["tuned"]
    before = set(_cur_sdpa_kernel_backends())
    seen = []
    model.unet.register_forward_pre_hook(lambda *_: seen.append(set(_cur_sdpa_kernel_backends())))  # type: ignore[attr-defined]
    develop(engine, request_for(model="tuned", num_inference_steps=1))
    assert seen == [{SDPBackend.MATH}]
    assert set(_cur_sdpa_kernel_backends()) == before


@pytest.mark.parametrize(
    ("tuning", "reason"),
    [
        (Tuning(attention="quick"), "attention 'quick' is none of cudnn, efficient, flash, math"),
        (Tuning(vae_dtype="int8"), "vae_dtype 'int8' is none of float32, float16, bfloat16"),
        (Tuning(cuda_graphs=True), "cuda_graphs needs a CUDA device, and this one is cpu"),
    ],
)
def test_a_switch_that_is_not_there_is_refused(engine: Engine, tuning: Tuning, reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        engine.load("tuned", source="seeded:7", tuning=tuning)
    assert "tuned" not in engine.models
