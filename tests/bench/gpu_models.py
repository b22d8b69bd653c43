"""Stable Diffusion 1.5, SDXL and SD3-medium in their public shapes, with random weights: built on the device by code.

Random, never zero: the same matrix product runs an eighth faster on zeros. `tiny` builds the same kinds with few
channels, to try the benchmark itself where there is no GPU.
"""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from darkroom_engine.families.seeded import _tokenizer

MAX_TOKENS = 77
WEIGHT_STD = 0.02


@contextmanager
def _on(device: torch.device, dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _randomize(module: nn.Module) -> Any:
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=WEIGHT_STD)
        else:
            nn.init.constant_(parameter, float("norm" in name and name.endswith("weight")))
    return module.eval().requires_grad_(False)


def _text_encoder(build: Callable[[CLIPTextConfig], Any], width: int, layers: int, projection: int) -> Any:
    return build(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64),
            max_position_embeddings=MAX_TOKENS,
            projection_dim=projection,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )


def _tokens() -> Any:
    tokenizer = _tokenizer()
    tokenizer.model_max_length = MAX_TOKENS
    return tokenizer


def _vae(tiny: bool, scaling_factor: float) -> AutoencoderKL:
    channels = (8, 8, 8, 8) if tiny else (128, 256, 512, 512)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1 if tiny else 2,
        latent_channels=4,
        norm_num_groups=8 if tiny else 32,
        scaling_factor=scaling_factor,
    )


def _noise_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


def sd15(device: torch.device, dtype: torch.dtype, *, tiny: bool) -> StableDiffusionPipeline:
    """Build Stable Diffusion 1.5."""
    with _on(device, dtype):
        parts = {
            "vae": _vae(tiny, 0.18215),
            "unet": UNet2DConditionModel(
                sample_size=64,
                block_out_channels=(32, 32, 64, 64) if tiny else (320, 640, 1280, 1280),
                layers_per_block=1 if tiny else 2,
                cross_attention_dim=64 if tiny else 768,
                attention_head_dim=8,
            ),
            "text_encoder": _text_encoder(CLIPTextModel, *((64, 1, 64) if tiny else (768, 12, 768))),
        }
        parts = {name: _randomize(part) for name, part in parts.items()}
    return StableDiffusionPipeline(
        **parts,
        tokenizer=_tokens(),
        scheduler=_noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(device: torch.device, dtype: torch.dtype, *, tiny: bool) -> StableDiffusionXLPipeline:
    """Build SDXL. Its text encoders have two layers: their cost is not what is measured."""
    first, second = (32, 32) if tiny else (768, 1280)
    with _on(device, dtype):
        parts = {
            "vae": _vae(tiny, 0.13025),
            "unet": UNet2DConditionModel(
                sample_size=128,
                block_out_channels=(32, 64, 64) if tiny else (320, 640, 1280),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                layers_per_block=1 if tiny else 2,
                transformer_layers_per_block=(1, 1, 1) if tiny else (1, 2, 10),
                attention_head_dim=(1, 2, 2) if tiny else (5, 10, 20),
                cross_attention_dim=first + second,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8 if tiny else 256,
                projection_class_embeddings_input_dim=second + 6 * (8 if tiny else 256),
            ),
            "text_encoder": _text_encoder(CLIPTextModel, first, 2, first),
            "text_encoder_2": _text_encoder(CLIPTextModelWithProjection, second, 2, second),
        }
        parts = {name: _randomize(part) for name, part in parts.items()}
    return StableDiffusionXLPipeline(
        **parts,
        tokenizer=_tokens(),
        tokenizer_2=_tokens(),
        scheduler=_noise_scheduler(),
        add_watermarker=False,
    )


def sd3_medium(device: torch.device, dtype: torch.dtype, *, tiny: bool) -> SD3Transformer2DModel:
    """Build SD3-medium's transformer."""
    with _on(device, dtype):
        return _randomize(
            SD3Transformer2DModel(
                sample_size=128,
                num_layers=1 if tiny else 24,
                num_attention_heads=2 if tiny else 24,
                attention_head_dim=8 if tiny else 64,
                joint_attention_dim=32 if tiny else 4096,
                caption_projection_dim=16 if tiny else 1536,
                pooled_projection_dim=32 if tiny else 2048,
                pos_embed_max_size=192,
            )
        )
