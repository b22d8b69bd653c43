"""The figure "same noise, different words": for each prompt a strip of frames from one starting noise to its picture.

Knows the engine and how to lay pictures out; knows no training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from darkroom_engine import Engine, Request
from darkroom_train.sheet import INK, PAPER

MODEL = "model"
MARGIN = 8
# The height of a label, by the side of a frame.
LABEL_PART = 1 / 7
MIN_LABEL = 11

Walk = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Walking:
    """How the walks are made."""

    seed: int
    size: int
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    num_frames: int


def walks(engine: Engine, prompts: Sequence[str], walking: Walking) -> list[Walk]:
    """Develop every prompt from the noise of the same seed: frames (F, h, w, 3), noise first, the picture last."""
    handles = [
        engine.submit(
            Request(
                model=MODEL,
                prompt=prompt,
                width=walking.size,
                height=walking.size,
                num_inference_steps=walking.num_inference_steps,
                guidance_scale=walking.guidance_scale,
                sampler=walking.sampler,
                seed=walking.seed,
                num_walk_frames=walking.num_frames,
            )
        )
        for prompt in prompts
    ]
    while engine.step():
        pass
    found = []
    for handle in handles:
        walk = handle.result().walk
        assert walk is not None
        found.append(walk)
    return found


def strip(several: Sequence[Walk], prompts: Sequence[str], walking: Walking) -> Image.Image:
    """Lay walks of one length out below each other, each under its prompt, and say what the ends are."""
    num_frames, height, width, _ = several[0].shape
    size = max(MIN_LABEL, round(height * LABEL_PART))
    font, line = ImageFont.load_default(size), round(1.5 * size)
    sheet = Image.new(
        "RGB",
        (MARGIN + num_frames * (width + MARGIN), line + len(several) * (line + height + MARGIN) + MARGIN),
        PAPER,
    )
    pencil = ImageDraw.Draw(sheet)
    right = sheet.width - MARGIN
    pencil.text((MARGIN, MARGIN / 2), f"one noise, seed {walking.seed}", fill=INK, font=font)
    pencil.text((right, MARGIN / 2), "picture", fill=INK, font=font, anchor="ra")
    for row, (walk, prompt) in enumerate(zip(several, prompts, strict=True)):
        top = line + MARGIN + row * (line + height + MARGIN)
        pencil.text((MARGIN, top), prompt, fill=INK, font=font)
        for number, frame in enumerate(walk):
            sheet.paste(Image.fromarray(frame), (MARGIN + number * (width + MARGIN), top + line))
    return sheet
