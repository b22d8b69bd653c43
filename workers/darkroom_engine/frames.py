"""What can be seen of a request before its picture: latents for the frames of its walk, and for previews.

Knows no VAE and no thread.
"""

import torch
from torch import Tensor

from darkroom_engine.batch import Development
from darkroom_engine.lanes import copy_to_host
from darkroom_engine.stepping import model_input

# No more often is a request shown to those who watch it.
PREVIEW_SECONDS = 0.2
# The longer side of a walk's frame, and of a preview that is decoded: what is larger is decoded from fewer latents.
FRAME_PIXELS = 256
PREVIEW_PIXELS = 128

Size = tuple[int, int]


def keep_frame(development: Development) -> None:
    """Keep the latents before a request's next step, as the denoiser sees them, if they are a frame of its walk."""
    if development.step in _walk_steps(development) and development.step not in development.walk:
        development.walk[development.step] = copy_to_host(model_input(development))


def _walk_steps(development: Development) -> tuple[int, ...]:
    """Say before which steps frames are taken: evenly spread, the first of pure noise. The last is the picture."""
    num_gaps = development.request.num_walk_frames - 1
    if num_gaps < 1:
        return ()
    num_steps = development.num_steps
    return tuple(dict.fromkeys(round(n * num_steps / num_gaps) for n in range(num_gaps)))


def walk_latents(development: Development) -> tuple[Tensor, Size]:
    """Put the frames together (F, ...), the picture's own latents last, and say at what size they are decoded."""
    final = development.latents
    assert final is not None
    frames = [frame.to(final.device, final.dtype, non_blocking=True) for frame in development.walk.values()]
    return shrink(torch.cat([*frames, final]), (development.request.height, development.request.width), FRAME_PIXELS)


def preview_latents(development: Development) -> Tensor:
    """What the sampler expects the picture to be (1, ...); of samplers that do not say, the latents as they are."""
    return model_input(development) if development.denoised is None else development.denoised


def wants_preview(development: Development, now: float) -> bool:
    """Whether somebody watches the request, and has waited long enough. Not for its last step: the picture follows."""
    handle = development.handle
    is_due = now - handle.shown_at >= PREVIEW_SECONDS
    return handle.is_watched(now) and is_due and development.step < development.num_steps


def shrink(latents: Tensor, size: Size, max_pixels: int) -> tuple[Tensor, Size]:
    """Shrink latents (B, C, h, w) of pictures of a size (H, W) so that their longer side has at most max_pixels.

    Each channel gets back the contrast that averaging takes from its noise.
    """
    longer = max(size)
    if longer <= max_pixels or latents.ndim != 4:
        return latents, size
    multiple = size[0] // latents.shape[-2]
    height, width = (max(1, round(side * max_pixels / longer)) for side in latents.shape[-2:])
    small = torch.nn.functional.interpolate(latents, size=(height, width), mode="area")
    mean = latents.mean(dim=(2, 3), keepdim=True)
    gain = _spread(latents) / _spread(small).clamp(min=1e-6)
    return mean + (small - mean) * gain, (height * multiple, width * multiple)


def _spread(latents: Tensor) -> Tensor:
    return latents.std(dim=(2, 3), keepdim=True, correction=0)  # (B, C, 1, 1)
