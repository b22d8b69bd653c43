"""What can be seen of a request before its picture: frames of its walk, and previews for whoever watches.

Both are copies of the latents that go to the host without anybody waiting for them. Knows no VAE: the walk's frames are
decoded after the picture, the previews are painted by whoever looks at them.
"""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from darkroom_engine.batch import Development
from darkroom_engine.latent_colors import LatentColors
from darkroom_engine.request import Preview
from darkroom_engine.stepping import model_input

# No more often are the latents of a request copied for those who watch it.
PREVIEW_SECONDS = 0.2
# The longer side of a walk's frame: what is larger is decoded from fewer latents.
FRAME_PIXELS = 256


def keep_frame(development: Development) -> None:
    """Keep the latents before a request's next step, scaled as the denoiser sees them, if they are a frame of its walk."""
    if development.step in walk_steps(development) and development.step not in development.walk:
        development.walk[development.step] = _on_host(model_input(development))


def walk_steps(development: Development) -> tuple[int, ...]:
    """Say before which steps frames are taken: evenly spread, the first of pure noise. The picture itself is the last."""
    num_gaps = development.request.num_walk_frames - 1
    if num_gaps < 1:
        return ()
    num_steps = len(development.timesteps)
    return tuple(dict.fromkeys(round(n * num_steps / num_gaps) for n in range(num_gaps)))


def walk_latents(development: Development) -> tuple[Tensor, tuple[int, int]]:
    """Put the frames together (F, ...), the picture's own latents last, and say at what size they are decoded."""
    assert development.latents is not None
    request, final = development.request, development.latents
    frames = [frame.to(final.device, final.dtype, non_blocking=True) for frame in development.walk.values()]
    latents = torch.cat([*frames, final])
    longer = max(request.height, request.width)
    if longer <= FRAME_PIXELS or latents.ndim != 4:
        return latents, (request.height, request.width)
    multiple = request.height // latents.shape[-2]
    height, width = (max(1, round(side * FRAME_PIXELS / longer)) for side in latents.shape[-2:])
    return _shrink(latents, (height, width)), (height * multiple, width * multiple)


def _shrink(latents: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrink latents (F, C, h, w), and give each channel back the contrast that averaging took from its noise."""
    small = torch.nn.functional.interpolate(latents, size=size, mode="area")
    mean = latents.mean(dim=(2, 3), keepdim=True)
    gain = latents.std(dim=(2, 3), keepdim=True) / small.std(dim=(2, 3), keepdim=True)
    return mean + (small - mean) * gain


def show(development: Development, colors: Mapping[str, LatentColors]) -> None:
    """Give those who watch a request what it looks like after its latest step: the picture that the sampler expects.

    Samplers that do not say what they expect show their latents.
    """
    now = time.monotonic()
    handle = development.handle
    if not handle.is_watched(now) or now - handle.shown_at < PREVIEW_SECONDS:
        return
    model_colors = colors.get(development.request.model)
    latents = development.latents if development.denoised is None else development.denoised
    if model_colors is None or latents is None or latents.ndim != 4:
        return
    on_host, copied = _on_host(latents), _record(latents)
    handle.show(Preview(development.step, partial(_paint, model_colors, on_host, copied)), now)


def _paint(colors: LatentColors, latents: Tensor, copied: Any) -> Any:
    if copied is not None:
        copied.synchronize()
    return colors.paint(latents)


def _on_host(tensor: Tensor) -> Tensor:
    """Copy to the host without waiting: what is enqueued after it on the device sees it done."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor, non_blocking=True)


def _record(tensor: Tensor) -> Any:
    if not tensor.is_cuda:
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))
    return event
