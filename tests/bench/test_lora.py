"""What a LoRA costs: changing the weights when a group's turn comes, against peft's layers beside them.

The UNet is seeded's, which a CPU is bound by the dispatch of: the worst case for layers beside the weights.
"""

import copy
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from tables import milliseconds, report

from darkroom_engine.families import seeded
from darkroom_engine.families.lora import Adapters
from darkroom_engine.quiet import quiet

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

NUM_ROUNDS = 15
RANK = 8
ENDINGS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
LORAS = ("ink", "wool")


def test_lora_switch(tmp_path: Path) -> None:
    """A switch and a forward with either, in turns; 2, 8 rows."""
    torch.set_num_threads(1)
    plain = seeded.build(7)
    files = {name: _lora(plain.unet, tmp_path / f"{name}.safetensors") for name in LORAS}
    changed, beside = copy.deepcopy(plain.unet), seeded.build(7)
    adapters = Adapters({"unet": changed}, StableDiffusionPipeline)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name, file in files.items():
            adapters.load(name, file)
            beside.load_lora_weights(str(file), adapter_name=name)
    rows: dict[str, Any] = {}
    for num_rows in (2, 8):
        cases: dict[str, Callable[[int], object]] = {
            "forward without": lambda _, n=num_rows: _forward(plain.unet, n),
            "forward, in the weights": lambda _, n=num_rows: _forward(changed, n),
            "forward, beside them": lambda _, n=num_rows: _forward(beside.unet, n),
            "switch of the weights": lambda number: adapters.activate(((LORAS[number % 2], 0.8),)),
            "switch of what is beside": lambda number: beside.set_adapters(LORAS[number % 2], 0.8),
        }
        seconds: dict[str, list[float]] = {case: [] for case in cases}
        with torch.inference_mode():
            for number in range(NUM_ROUNDS + 2):
                for case, run in cases.items():
                    began = time.perf_counter()
                    run(number)
                    seconds[case].append(time.perf_counter() - began)
        rows |= {f"{case}, {num_rows} rows": milliseconds(taken[2:]) for case, taken in seconds.items()}
    report("lora_switch", rows)


def _lora(unet: UNet2DConditionModel, path: Path) -> Path:
    tensors = {}
    for name, module in unet.named_modules():
        if name.endswith(ENDINGS):
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(RANK, module.weight[0].numel()) * 0.01
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(len(module.weight), RANK) * 0.01
    save_file(tensors, path)
    return path


def _forward(unet: UNet2DConditionModel, num_rows: int) -> object:
    latents = torch.randn(num_rows, 4, 16, 16)
    prompt_embeds = torch.randn(num_rows, 32, seeded.TEXT_WIDTH)
    return unet(latents, torch.full((num_rows,), 500.0), prompt_embeds, return_dict=False)
