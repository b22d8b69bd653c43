"""A small Stable Diffusion built by code, its weights random but fixed by a seed. Needs no file and no network.

Its pictures are abstract: the prompt changes them and does not describe them.
"""

from typing import Any

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Generator, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from darkroom_engine.families.clip_tokenizer import byte_symbols
from darkroom_engine.quiet import quiet

MAX_TOKENS = 128
TEXT_WIDTH = 64

# The decoder's kernels: over space it only blurs or leaves alone.
BLUR = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
POINT = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])


def build(seed: int, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Build the pipeline. The same seed gives the same weights; the global generator keeps its state."""
    generator = Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), quiet():
        parts: dict[str, Any] = {"unet": _unet(), "vae": _vae(), "text_encoder": _text_encoder()}
        for part in parts.values():
            _fill(part, generator)
        _strengthen(parts["unet"])
        _paint(parts["vae"].decoder.layers, Generator().manual_seed(seed))
        for part in parts.values():
            part.to(dtype)
        return StableDiffusionPipeline(
            **parts,
            tokenizer=_tokenizer(),
            scheduler=_noise_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def _tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer without merges: every byte of the prompt is a token."""
    symbols = byte_symbols()
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=MAX_TOKENS)


def _text_encoder() -> CLIPTextModel:
    num_tokens = 2 * 256 + 2
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=num_tokens,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=num_tokens - 2,
            eos_token_id=num_tokens - 1,
            pad_token_id=num_tokens - 1,
        )
    )


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
        use_linear_projection=True,
    )


def _vae() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(16, 16, 16, 16),
        decoder_block_out_channels=(16, 16, 16, 16),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )


def _noise_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _fill(module: nn.Module, generator: Generator) -> None:
    """Draw every weight: norms stay neutral, biases start at zero, the rest keeps the size of what passes through."""
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2:
            nn.init.constant_(parameter, float("norm" in name and name.endswith("weight")))
        else:
            fan_in = parameter[0].numel()
            nn.init.normal_(parameter, std=fan_in**-0.5, generator=generator)


def _strengthen(unet: UNet2DConditionModel) -> None:
    """Let the prediction outweigh the initial noise, so that the prompt shows."""
    unet.conv_out.weight.data.mul_(3.0)


def _paint(layers: nn.Sequential, generator: Generator) -> None:
    """Make the decoder turn noise into soft shapes with clear edges, where plain random weights give gray specks."""
    size = 1
    for number, layer in enumerate(layers):
        if isinstance(layer, nn.Upsample):
            size *= 2
        for conv in layer.modules():
            if isinstance(conv, nn.Conv2d):
                mix = _channel_mix(conv, generator)
                if number == 0:
                    weight = 4.0 * mix * BLUR
                elif number == len(layers) - 1:
                    weight = 0.035 * (mix + 0.7 * mix.roll(1, 0)) * BLUR
                elif isinstance(layers[number - 1], nn.Upsample):
                    weight = torch.eye(conv.out_channels)[:, :, None, None] * BLUR
                else:
                    weight = 1.3 * mix * BLUR if size < 4 else 1.2 * mix * POINT
                conv.weight.data.copy_(weight)
                if conv.bias is not None:
                    conv.bias.data.normal_(std=0.3, generator=generator)
    nn.init.constant_(layers[-1].get_parameter("bias"), 0.5)


def _channel_mix(conv: nn.Conv2d, generator: Generator) -> torch.Tensor:
    """Draw (C_out, C_in, 1, 1) that sums to zero over C_in: else positive activations would drown the shapes."""
    mix = torch.randn((conv.out_channels, conv.in_channels), generator=generator) * (2 / conv.in_channels) ** 0.5
    zero_sum: torch.Tensor = mix - mix.mean(dim=1, keepdim=True)
    return zero_sum[:, :, None, None]
