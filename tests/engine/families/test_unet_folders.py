"""Folders of sd and sdxl that need care, or that neither can develop with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import autoencoder, stable_diffusion, stable_diffusion_xl

from darkroom_engine import Engine, Handle, ModelLoadError, Request
from darkroom_engine.families.autoencoder import Autoencoder
from darkroom_engine.families.sd import StableDiffusion
from darkroom_engine.families.sdxl import StableDiffusionXL
from darkroom_engine.quiet import quiet

CPU = torch.device("cpu")


@pytest.fixture
def photograph() -> Any:
    return np.random.default_rng(5).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def _saved(pipeline: DiffusionPipeline, folder: Path, **index: Any) -> str:
    with quiet():
        pipeline.save_pretrained(folder)
    said = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(said | index))
    return str(folder)


UNFIT: dict[str, tuple[Callable[[], DiffusionPipeline], dict[str, Any], str]] = {
    "depth to image": (
        lambda: stable_diffusion(in_channels=5),
        {},
        "the UNet takes 5 channels, and with latents of 4 must take 4, or 9 for inpainting",
    ),
    "refiner": (
        stable_diffusion_xl,
        {
            "requires_aesthetics_score": True,
            "text_encoder": [None, None],
            "_class_name": "StableDiffusionXLImg2ImgPipeline",
        },
        "is a refiner, which only finishes what another model began",
    ),
    "other time ids": (
        lambda: stable_diffusion_xl(projection_class_embeddings_input_dim=5 * 8 + 32),
        {},
        "the UNet takes 5 time ids, and 6 are known",
    ),
    "one text encoder": (stable_diffusion_xl, {"text_encoder": [None, None]}, "model_index.json names no text_encoder"),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_a_folder_that_cannot_be_developed_with_is_refused_in_one_sentence(tmp_path: Path, fault: str) -> None:
    build, index, problem = UNFIT[fault]
    source = _saved(build(), tmp_path / "model", **index)
    with pytest.raises(ModelLoadError) as refusal:
        Engine("cpu").load("mine", source=source)
    message = str(refusal.value)
    assert message.startswith(f"model 'mine' cannot be loaded: {tmp_path / 'model'}")
    assert problem in message
    assert "\n" not in message


def test_the_autoencoder_of_sdxl_that_overflows_in_half_precision_stays_in_full() -> None:
    pipeline = stable_diffusion_xl(latents={"force_upcast": True}).to(torch.float16)
    family = StableDiffusionXL(pipeline, CPU)
    assert (family.unet.dtype, family.vae.dtype) == (torch.float16, torch.float32)
    assert family.decode(torch.ones((1, 4, 8, 8), dtype=torch.float16), (16, 16)).dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "latents", "kept"),
    [(torch.float16, {"force_upcast": False}, torch.float16), (torch.bfloat16, {"force_upcast": True}, torch.bfloat16)],
)
def test_an_autoencoder_that_does_not_overflow_keeps_its_precision(
    dtype: torch.dtype, latents: dict[str, bool], kept: torch.dtype
) -> None:
    assert StableDiffusionXL(stable_diffusion_xl(latents=latents).to(dtype), CPU).vae.dtype == kept


def test_a_picture_survives_the_autoencoder_with_normalized_latents() -> None:
    normalized = autoencoder(shift_factor=None, latents_mean=[1.0, -1.0, 2.0, 0.0], latents_std=[2.0, 0.5, 3.0, 1.0])
    plain = autoencoder(shift_factor=None)
    plain.load_state_dict(normalized.state_dict())
    pictures = torch.rand((1, 3, 16, 16)) * 2 - 1
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    with torch.no_grad():
        one, other = (
            coder.decode(coder.encode(pictures, generator))
            for coder, generator in zip(map(Autoencoder, (normalized, plain)), generators, strict=True)
        )
    assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_picture_from_a_picture_is_developed_in_a_lower_dtype(
    develop: Callable[..., list[Handle]], dtype: torch.dtype, photograph: Any
) -> None:
    engine = Engine("cpu", num_threads=1)
    for name, family, pipeline in (
        ("sd", StableDiffusion, stable_diffusion()),
        ("sdxl", StableDiffusionXL, stable_diffusion_xl()),
    ):
        engine.add(name, family(pipeline.to(dtype), CPU), source="here")
        mask = photograph[..., 0]
        for fields in ({}, {"mask": mask}):
            request = Request(
                model=name,
                prompt="a red house",
                width=32,
                height=32,
                num_inference_steps=2,
                guidance_scale=3.0,
                sampler="euler_a",
                seed=1,
                image=photograph,
                strength=0.6,
                **fields,
            )
            [handle] = develop(engine, request)
            assert handle.result(0).image.std() > 5
    engine.stop()
