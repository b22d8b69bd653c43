"""Pipelines of every family, so small that a CPU develops with them at once: random weights, fixed by a seed.

The configs follow diffusers' own fast tests. Nothing here opens a file or a connection.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from torch import Generator, nn

from darkroom_engine import Request

BYTES = sorted(ByteLevel.alphabet())
SYMBOLS = [*BYTES, *(f"{symbol}</w>" for symbol in BYTES)]


@dataclass(frozen=True)
class TinyFamily:
    """A family's pipeline class in miniature, and how a request is put to diffusers' own pipeline."""

    family: str
    build: Callable[[], DiffusionPipeline]
    image_to_image: str | None = None
    # Fields of a request where the family's guidance is on, and where it is off.
    guided: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 4.0})
    unguided: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    # What to call diffusers' pipeline with beyond the fields that all have.
    arguments: Callable[[Request], Mapping[str, Any]] = lambda request: {
        "guidance_scale": request.guidance_scale,
        "negative_prompt": request.negative_prompt,
    }
    num_rows_guided: int = 2
    takes_negative_prompt: bool = True
    default_sampler: str = "euler"
    size: int = 32
    vae_multiple: int = 2  # how many times larger than their latents its pictures are; those of real models 8 times


def picture_of(
    pipeline: DiffusionPipeline, tiny: TinyFamily, request: Request, *, generator: Generator | None = None
) -> "np.ndarray[Any, Any]":
    """Develop a request with diffusers' own pipeline, or with its image-to-image sibling."""
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.num_inference_steps,
        "generator": generator or Generator().manual_seed(request.seed),
        **tiny.arguments(request),
    }
    if request.image is not None:
        assert tiny.image_to_image is not None
        pipeline = getattr(diffusers, tiny.image_to_image)(**parts_for(tiny.image_to_image, pipeline))
        arguments |= {"image": Image.fromarray(request.image), "strength": request.strength}
        accepted = inspect.signature(pipeline.__call__).parameters
        arguments = {name: value for name, value in arguments.items() if name in accepted}
    pipeline.set_progress_bar_config(disable=True)
    return np.asarray(pipeline(**arguments).images[0])


def parts_for(class_name: str, pipeline: DiffusionPipeline) -> Mapping[str, Any]:
    """The parts and settings of a pipeline that another class takes."""
    wanted = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    settings = {name: value for name, value in pipeline.config.items() if name in wanted and name != "scheduler"}
    return settings | {name: part for name, part in pipeline.components.items() if name in wanted}


def fill(module: nn.Module, seed: int) -> None:
    """Give every weight a random value of its own: what is initialized with zeros would hide a mistake."""
    generator = Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data.copy_(noise * (parameter[0].numel() ** -0.5))
        else:
            parameter.data.copy_(float(name.endswith("weight")) + 0.1 * noise)


def _built(build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Build the parts of a pipeline; the global generator keeps its state."""
    with torch.random.fork_rng(devices=[]):
        parts = build()
    for number, part in enumerate(parts.values()):
        if isinstance(part, nn.Module):
            fill(part.eval().requires_grad_(False), number)
    return parts


def clip_tokenizer() -> Any:
    """A CLIP tokenizer without merges: every byte is a token."""
    words = [*SYMBOLS, "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=77)


def clip_text_encoder(*, has_projection: bool) -> Any:
    """A CLIP text tower for `clip_tokenizer`."""
    num_tokens = len(SYMBOLS) + 2
    text_config = transformers.CLIPTextConfig(
        vocab_size=num_tokens,
        hidden_size=32,
        intermediate_size=37,
        projection_dim=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        bos_token_id=num_tokens - 2,
        eos_token_id=num_tokens - 1,
        pad_token_id=num_tokens - 1,
    )
    tower = transformers.CLIPTextModelWithProjection if has_projection else transformers.CLIPTextModel
    return tower(text_config)


def t5_tokenizer() -> Any:
    """A T5 tokenizer of which every character is a token."""
    specials = ["<pad>", "</s>", "<unk>"]
    vocabulary = [(word, -2.0) for word in [*specials, "▁", *map(chr, range(33, 127))]]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def t5_encoder() -> Any:
    """A T5 encoder for `t5_tokenizer`."""
    config = transformers.T5Config(
        vocab_size=128, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return transformers.T5EncoderModel(config)


def qwen_tokenizer() -> Any:
    """A Qwen tokenizer without merges, with a chat template."""
    words = [*BYTES, "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = transformers.Qwen2Tokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[])
    # With these, the words that Qwen-Image puts before each prompt are the 34 tokens that it then leaves out: else the
    # prompt would be a whisper among them.
    tail = "e by detailing the color, shape, size, texture, quantity, text, spatial relationships of the objects"
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", f"{tail} and background:"], special_tokens=True)
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def gemma_tokenizer() -> Any:
    """A Gemma tokenizer of which every character is a token."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    words = [*specials, "▁", "\n", *map(chr, range(33, 127))]
    return transformers.GemmaTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[])


def autoencoder(**config: Any) -> Any:
    """A variational autoencoder that halves the size once."""
    return diffusers.AutoencoderKL(
        **{
            "sample_size": 32,
            "block_out_channels": (4, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 2,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            "shift_factor": 0.0609,
            "scaling_factor": 1.5035,
            **config,
        }
    )


def unet(**config: Any) -> Any:
    """A UNet of two levels, the lower one with attention to the prompt."""
    return diffusers.UNet2DConditionModel(
        **{
            "sample_size": 32,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (2, 4),
            "cross_attention_dim": 32,
            "norm_num_groups": 16,
            **config,
        }
    )


def unet_scheduler(**config: Any) -> Any:
    """The noise schedule of the Stable Diffusion models."""
    return diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, **config
    )


def stable_diffusion(
    pipeline: str = "StableDiffusionPipeline", *, prediction_type: str = "epsilon", scheduler: Any = None, **config: Any
) -> DiffusionPipeline:
    """Stable Diffusion 1.x or 2.x, its UNet as `config` says."""
    parts = _built(
        lambda: {
            "unet": unet(**config),
            "vae": autoencoder(shift_factor=None, scaling_factor=0.18215),
            "text_encoder": clip_text_encoder(has_projection=False),
        }
    )
    return getattr(diffusers, pipeline)(
        **parts,
        tokenizer=clip_tokenizer(),
        scheduler=scheduler or unet_scheduler(prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(
    pipeline: str = "StableDiffusionXLPipeline",
    *,
    force_zeros_for_empty_prompt: bool = True,
    latents: Mapping[str, Any] | None = None,
    **config: Any,
) -> DiffusionPipeline:
    """Stable Diffusion XL, its UNet as `config` says, its latents scaled as `latents` says."""
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "transformer_layers_per_block": (1, 2),
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
        "cross_attention_dim": 64,
        "use_linear_projection": True,
    }
    parts = _built(
        lambda: {
            "unet": unet(**(added | config)),
            "vae": autoencoder(shift_factor=None, scaling_factor=0.13025, **(latents or {})),
            "text_encoder": clip_text_encoder(has_projection=False),
            "text_encoder_2": clip_text_encoder(has_projection=True),
        }
    )
    return getattr(diffusers, pipeline)(
        **parts,
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        scheduler=unet_scheduler(),
        force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        add_watermarker=False,
    )


def stable_diffusion_3(**absent: None) -> DiffusionPipeline:
    """Stable Diffusion 3, any of its three text encoders and their tokenizers left out."""
    parts = _built(
        lambda: {
            "transformer": diffusers.SD3Transformer2DModel(
                sample_size=16,
                patch_size=2,
                in_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=4,
                caption_projection_dim=32,
                joint_attention_dim=64,
                pooled_projection_dim=64,
                out_channels=4,
                pos_embed_max_size=32,
            ),
            "vae": autoencoder(),
            "text_encoder": clip_text_encoder(has_projection=True),
            "text_encoder_2": clip_text_encoder(has_projection=True),
            "text_encoder_3": transformers.T5EncoderModel(
                transformers.T5Config(
                    vocab_size=128, d_model=64, d_kv=8, d_ff=37, num_layers=2, num_heads=4, dropout_rate=0.0
                )
            ),
        }
    )
    tokenizers = {"tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer(), "tokenizer_3": t5_tokenizer()}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.StableDiffusion3Pipeline(**(parts | tokenizers | {"scheduler": scheduler} | absent))


def flux(*, embeds_guidance: bool) -> DiffusionPipeline:
    """Flux: dev, which takes the guidance scale as an input, or schnell, which does not."""
    parts = _built(
        lambda: {
            "transformer": diffusers.FluxTransformer2DModel(
                patch_size=1,
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=32,
                axes_dims_rope=(4, 4, 8),
                guidance_embeds=embeds_guidance,
            ),
            "vae": autoencoder(),
            "text_encoder": clip_text_encoder(has_projection=False),
            "text_encoder_2": t5_encoder(),
        }
    )
    return diffusers.FluxPipeline(
        **parts,
        tokenizer=clip_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=embeds_guidance, max_shift=1.15),
    )


def pixart(class_name: str, *, sample_size: int) -> DiffusionPipeline:
    """PixArt alpha or sigma; a sample size of 128 makes alpha take rows of resolution and aspect ratio."""
    parts = _built(
        lambda: {
            "transformer": diffusers.PixArtTransformer2DModel(
                sample_size=sample_size,
                num_layers=2,
                patch_size=2,
                attention_head_dim=8,
                num_attention_heads=3,
                caption_channels=32,
                in_channels=4,
                cross_attention_dim=24,
                out_channels=8,
                attention_bias=True,
                num_embeds_ada_norm=1000,
                norm_elementwise_affine=False,
                norm_eps=1e-6,
            ),
            "vae": autoencoder(shift_factor=None, scaling_factor=0.18215),
            "text_encoder": t5_encoder(),
        }
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    return getattr(diffusers, class_name)(**parts, tokenizer=t5_tokenizer(), scheduler=scheduler)


def sana() -> DiffusionPipeline:
    """Sana, whose autoencoder and text encoder are of kinds of their own."""
    parts = _built(
        lambda: {
            "transformer": diffusers.SanaTransformer2DModel(
                patch_size=1,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                num_attention_heads=2,
                attention_head_dim=4,
                num_cross_attention_heads=2,
                cross_attention_head_dim=4,
                cross_attention_dim=8,
                caption_channels=8,
                sample_size=32,
                timestep_scale=0.5,
            ),
            "vae": diffusers.AutoencoderDC(
                in_channels=3,
                latent_channels=4,
                attention_head_dim=2,
                encoder_block_types=("ResBlock", "EfficientViTBlock"),
                decoder_block_types=("ResBlock", "EfficientViTBlock"),
                encoder_block_out_channels=(8, 8),
                decoder_block_out_channels=(8, 8),
                encoder_qkv_multiscales=((), (5,)),
                decoder_qkv_multiscales=((), (5,)),
                encoder_layers_per_block=(1, 1),
                decoder_layers_per_block=(1, 1),
                downsample_block_type="conv",
                upsample_block_type="interpolate",
                decoder_norm_types="rms_norm",
                decoder_act_fns="silu",
                scaling_factor=0.41407,
            ),
            "text_encoder": transformers.Gemma2Model(
                transformers.Gemma2Config(
                    head_dim=16,
                    hidden_size=8,
                    intermediate_size=8,
                    num_attention_heads=2,
                    num_hidden_layers=1,
                    num_key_value_heads=2,
                    vocab_size=128,
                )
            ),
        }
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(**parts, tokenizer=gemma_tokenizer(), scheduler=scheduler)


def qwen_image() -> DiffusionPipeline:
    """Qwen-Image, whose autoencoder is one of videos and whose text encoder one of pictures."""
    text_config = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 300,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
    }
    vision_config = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
    }
    parts = _built(
        lambda: {
            "transformer": diffusers.QwenImageTransformer2DModel(
                patch_size=2,
                in_channels=16,
                out_channels=4,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=3,
                joint_attention_dim=16,
                axes_dims_rope=(8, 4, 4),
            ),
            "vae": diffusers.AutoencoderKLQwenImage(
                base_dim=24,
                z_dim=4,
                dim_mult=[1, 2, 4],
                num_res_blocks=1,
                temperal_downsample=[False, True],
                latents_mean=[0.1, -0.2, 0.3, -0.4],
                latents_std=[1.5, 2.0, 0.7, 1.1],
            ),
            "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration(
                transformers.Qwen2_5_VLConfig(text_config=text_config, vision_config=vision_config)
            ),
        }
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=0.9, shift_terminal=0.02)
    return diffusers.QwenImagePipeline(**parts, tokenizer=qwen_tokenizer(), scheduler=scheduler)


def z_image() -> DiffusionPipeline:
    """Z-Image, whose denoiser takes lists."""
    parts = _built(
        lambda: {
            "transformer": diffusers.ZImageTransformer2DModel(
                all_patch_size=(2,),
                all_f_patch_size=(1,),
                in_channels=4,
                dim=32,
                n_layers=2,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=16,
                axes_dims=[8, 4, 4],
                axes_lens=[640, 64, 64],
            ),
            "vae": autoencoder(),
            "text_encoder": transformers.Qwen3Model(
                transformers.Qwen3Config(
                    hidden_size=16,
                    intermediate_size=16,
                    num_hidden_layers=3,
                    num_attention_heads=2,
                    num_key_value_heads=2,
                    head_dim=8,
                    vocab_size=300,
                    max_position_embeddings=512,
                )
            ),
        }
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.ZImagePipeline(**parts, tokenizer=qwen_tokenizer(), scheduler=scheduler)


def aura_flow() -> DiffusionPipeline:
    """AuraFlow, which has no family of its own."""
    parts = _built(
        lambda: {
            "transformer": diffusers.AuraFlowTransformer2DModel(
                sample_size=16,
                patch_size=2,
                in_channels=4,
                num_mmdit_layers=1,
                num_single_dit_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                caption_projection_dim=32,
                joint_attention_dim=32,
                out_channels=4,
                pos_embed_max_size=1024,
            ),
            "vae": autoencoder(shift_factor=None),
            "text_encoder": t5_encoder(),
        }
    )
    # Among its 256 tokens, all but a few are padding: else the prompt would hardly be heard.
    parts["transformer"].joint_transformer_blocks[0].attn.add_v_proj.weight.data.mul_(100)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.7)
    return diffusers.AuraFlowPipeline(**parts, tokenizer=t5_tokenizer(), scheduler=scheduler)


def _true_guidance(request: Request) -> Mapping[str, Any]:
    return {"true_cfg_scale": request.guidance_scale, "negative_prompt": request.negative_prompt}


def _as_asked(request: Request) -> Mapping[str, Any]:
    return {
        "guidance_scale": request.guidance_scale,
        "negative_prompt": request.negative_prompt,
        "use_resolution_binning": False,
        "clean_caption": False,
    }


def _absent_negative(request: Request) -> Mapping[str, Any]:
    return {"guidance_scale": request.guidance_scale, "negative_prompt": request.negative_prompt or None}


TINY_FAMILIES: Mapping[str, TinyFamily] = {
    "sd": TinyFamily("sd", stable_diffusion, image_to_image="StableDiffusionImg2ImgPipeline"),
    "sd-2": TinyFamily(
        "sd",
        lambda: stable_diffusion(prediction_type="v_prediction", use_linear_projection=True),
        image_to_image="StableDiffusionImg2ImgPipeline",
    ),
    "sd-lcm": TinyFamily(
        "sd",
        lambda: stable_diffusion(
            "LatentConsistencyModelPipeline", scheduler=diffusers.LCMScheduler(steps_offset=1), time_cond_proj_dim=32
        ),
        image_to_image="StableDiffusionImg2ImgPipeline",
        arguments=lambda request: {"guidance_scale": request.guidance_scale},
        num_rows_guided=1,
        takes_negative_prompt=False,
        default_sampler="lcm",
    ),
    "sdxl": TinyFamily(
        "sdxl",
        stable_diffusion_xl,
        image_to_image="StableDiffusionXLImg2ImgPipeline",
        arguments=_absent_negative,
    ),
    "sdxl-playground": TinyFamily(
        "sdxl",
        lambda: stable_diffusion_xl(
            force_zeros_for_empty_prompt=False,
            latents={"latents_mean": [0.1, -0.2, 0.3, -0.4], "latents_std": [1.5, 2.0, 0.7, 1.1]},
        ),
        image_to_image="StableDiffusionXLImg2ImgPipeline",
        arguments=_absent_negative,
    ),
    "sd3": TinyFamily("sd3", stable_diffusion_3, image_to_image="StableDiffusion3Img2ImgPipeline"),
    "flux-dev": TinyFamily(
        "flux",
        lambda: flux(embeds_guidance=True),
        image_to_image="FluxImg2ImgPipeline",
        guided={"guidance_scale": 3.5},
        arguments=lambda request: {"guidance_scale": request.guidance_scale},
        num_rows_guided=1,
        takes_negative_prompt=False,
    ),
    "flux-schnell": TinyFamily(
        "flux",
        lambda: flux(embeds_guidance=False),
        image_to_image="FluxImg2ImgPipeline",
        guided={"guidance_scale": 3.5, "negative_prompt": "blue"},
        arguments=lambda request: _true_guidance(request) if request.negative_prompt else {},
    ),
    "pixart-alpha": TinyFamily(
        "pixart",
        lambda: pixart("PixArtAlphaPipeline", sample_size=128),
        arguments=_as_asked,
        default_sampler="dpmpp_2m",
    ),
    "pixart-sigma": TinyFamily(
        "pixart",
        lambda: pixart("PixArtSigmaPipeline", sample_size=16),
        arguments=_as_asked,
        default_sampler="dpmpp_2m",
    ),
    "sana": TinyFamily("sana", sana, arguments=_as_asked, default_sampler="dpmpp_2m"),
    "qwen-image": TinyFamily(
        "qwen-image",
        qwen_image,
        image_to_image="QwenImageImg2ImgPipeline",
        arguments=_true_guidance,
        vae_multiple=4,
    ),
    "z-image": TinyFamily(
        "z-image",
        z_image,
        image_to_image="ZImageImg2ImgPipeline",
        unguided={"guidance_scale": 0.0},
    ),
    "aura-flow": TinyFamily("whole", aura_flow, num_rows_guided=1, default_sampler="default"),
}
