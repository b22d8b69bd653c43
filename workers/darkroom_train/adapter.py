"""LoRA adapters in training (Hu et al. 2021): put into a network by peft, and saved in diffusers' format.

Knows networks and files; knows no loss and no family.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from darkroom_train.errors import AdapterError
from darkroom_train.files import write_safely

# What diffusers looks for in a folder.
FILE_NAME = "pytorch_lora_weights.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
# What changes when a denoiser learns to need fewer steps: all that it multiplies with (Luo et al. 2023, LCM-LoRA).
EVERYTHING = (
    *ATTENTION,
    *("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)


def add_adapter(network: Any, *, rank: int, alpha: int, target_modules: Sequence[str], seed: int) -> None:
    """Put an adapter that changes nothing yet into a frozen network; it alone is trained, in float32.

    Raises AdapterError when the network has none of the modules.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        init_lora_weights="gaussian",
        target_modules=list(target_modules),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network.add_adapter(config)
        except ValueError as error:
            raise AdapterError(f"no module of the network is called {', '.join(target_modules)}") from error
    cast_training_params(network, dtype=torch.float32)


def trained_weights(network: nn.Module) -> dict[str, Tensor]:
    """Give the weights that are trained, by their names: of a network with an adapter, the adapter's."""
    return {name: parameter.detach() for name, parameter in network.named_parameters() if parameter.requires_grad}


def load_trained_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Take them back."""
    for name, weight in trained_weights(network).items():
        weight.copy_(weights[name])


def fused(network: Any) -> Any:
    """Give a copy of a network with its adapter added to the weights and gone."""
    whole = copy.deepcopy(network)
    whole.fuse_lora()
    whole.unload_lora()
    return whole


def save_adapter(network: Any, part: str, path: Path) -> None:
    """Write the adapter of a pipeline's part, "unet" or "transformer", safely, as load_lora_weights() reads it."""
    weights = {f"{part}.{name}": tensor.cpu() for name, tensor in get_peft_model_state_dict(network).items()}
    config = {f"{part}.{key}": value for key, value in network.peft_config["default"].to_dict().items()}
    described = json.dumps(config, default=sorted, sort_keys=True)  # a set is written as a list
    metadata = {"format": "pt", "lora_adapter_metadata": described}
    write_safely(path, lambda beside: save_file(weights, beside, metadata=metadata))
