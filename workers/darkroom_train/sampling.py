"""Draws pictures with a model in training, through the same engine that serves it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from darkroom_engine import Engine, Request
from darkroom_engine.families.base import Family

MODEL = "trained"
MAX_ROWS = {"cpu": 8, "cuda": 128}


@dataclass(frozen=True)
class Sampling:
    """How a picture is drawn."""

    num_inference_steps: int
    sampler: str
    guidance_scale: float


@dataclass(frozen=True)
class Order:
    """One picture to draw."""

    prompt: str
    seed: int
    sampling: Sampling


def generate(model: Family, orders: Sequence[Order], *, side: int, device: torch.device) -> list[npt.NDArray[np.uint8]]:
    """Draw one picture (3, side, side) for each order, with a model in memory."""
    engine = Engine(str(device), MAX_ROWS.get(device.type, 8))
    engine.add(MODEL, model, source="training")
    handles = [
        engine.submit(
            Request(
                model=MODEL,
                prompt=order.prompt,
                width=side,
                height=side,
                num_inference_steps=order.sampling.num_inference_steps,
                guidance_scale=order.sampling.guidance_scale,
                sampler=order.sampling.sampler,
                seed=order.seed,
            )
        )
        for order in orders
    ]
    while engine.step():
        pass
    return [np.ascontiguousarray(handle.result().image.transpose(2, 0, 1)) for handle in handles]
