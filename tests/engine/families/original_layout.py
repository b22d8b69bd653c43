"""Writes a pipeline's tensors down as the original code of Stable Diffusion names them, which single files do."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
CLIP_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def _renamed(key: str, names: Mapping[str, str]) -> str:
    module, _, kind = key.rpartition(".")
    return f"{names[module]}.{kind}" if module in names else key


def unet_tensors(unet: Any) -> Tensors:
    """The UNet's part of a file."""
    each = unet.config.layers_per_block + 1
    named = {}
    for key, tensor in unet.state_dict().items():
        new = _renamed(key, TOP)
        if match := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", key):
            place = int(match[1]) * each + int(match[3]) + 1
            new = f"input_blocks.{place}.{_at(match[2], match[4])}"
        elif match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", key):
            new = f"input_blocks.{(int(match[1]) + 1) * each}.0.op.{match[2]}"
        elif match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key):
            place = 2 * int(match[2]) if match[1] == "resnets" else 1
            new = f"middle_block.{place}.{_at(match[1], match[3])[2:]}"
        elif match := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", key):
            new = f"output_blocks.{int(match[1]) * each + int(match[3])}.{_at(match[2], match[4])}"
        elif match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", key):
            has_attention = hasattr(unet.up_blocks[int(match[1])], "attentions")
            new = f"output_blocks.{(int(match[1]) + 1) * each - 1}.{2 if has_attention else 1}.conv.{match[2]}"
        named[f"model.diffusion_model.{new}"] = tensor
    return named


def _at(kind: str, rest: str) -> str:
    return f"0.{_renamed(rest, RESNET)}" if kind == "resnets" else f"1.{rest}"


def vae_tensors(vae: Any) -> Tensors:
    """The autoencoder's part of a file."""
    num_levels = len(vae.config.block_out_channels)
    named = {}
    for key, tensor in vae.state_dict().items():
        new = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets", lambda match: f"up.{num_levels - 1 - int(match[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{num_levels - 1 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", new)
        if match := re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.*)", new):
            new = f"{match[1]}mid.attn_1.{_renamed(match[2], ATTENTION)}"
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor  # it was a convolution
        named[f"first_stage_model.{new}"] = tensor
    return named


def clip_tensors(text_encoder: Any, prefix: str) -> Tensors:
    """OpenAI's text encoder as a part of a file."""
    named = {f"{prefix}text_model.{key}": tensor for key, tensor in text_encoder.state_dict().items()}
    return named | {f"{prefix}text_model.embeddings.position_ids": torch.arange(77)[None]}


def open_clip_tensors(text_encoder: Any, prefix: str) -> Tensors:
    """OpenCLIP's text encoder as a part of a file: queries, keys and values are one matrix."""
    named: Tensors = {}
    tensors = {key.removeprefix("text_model."): tensor for key, tensor in text_encoder.state_dict().items()}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)", key)
        if key == "text_projection.weight":
            named["text_projection"] = tensor.T.contiguous()
        elif match is None:
            named[CLIP[key]] = tensor
        elif attention := re.fullmatch(r"self_attn\.q_proj\.(.*)", match[2]):
            own = [tensors[key.replace("q_proj", name)] for name in ("q_proj", "k_proj", "v_proj")]
            named[f"transformer.resblocks.{match[1]}.attn.in_proj_{attention[1]}"] = torch.cat(own)
        elif "k_proj" not in key and "v_proj" not in key:
            rest = _renamed(match[2].replace("self_attn", "attn"), CLIP_LAYER)
            named[f"transformer.resblocks.{match[1]}.{rest}"] = tensor
    return {prefix + key: tensor for key, tensor in named.items()} | {f"{prefix}logit_scale": torch.tensor(4.6)}


def tensors_of(pipeline: Any, layout: str) -> Tensors:
    """The tensors of a file of layout "sd-1", "sd-2" or "sdxl"."""
    tensors = unet_tensors(pipeline.unet) | vae_tensors(pipeline.vae)
    if layout == "sd-1":
        return tensors | clip_tensors(pipeline.text_encoder, "cond_stage_model.transformer.")
    if layout == "sd-2":
        return tensors | open_clip_tensors(pipeline.text_encoder, "cond_stage_model.model.")
    return (
        tensors
        | clip_tensors(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
        | open_clip_tensors(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    )
