"""What a request must be, before it is taken in. Refuses with the field's name and its limit; changes nothing."""

import math
from collections.abc import Collection
from typing import Any

from darkroom_engine.errors import InvalidRequest
from darkroom_engine.request import IMAGE_TO_IMAGE, INPAINTING, LORAS, Request

MAX_SEED = 2**64 - 1
MAX_WALK_FRAMES = 8


def check_request(request: Request, *, samplers: Collection[str], latent_multiple: int, max_steps: int) -> None:
    """Raise InvalidRequest for the first field that this model cannot develop."""
    _check_text("prompt", request.prompt)
    _check_text("negative_prompt", request.negative_prompt)
    for field, size in (("width", request.width), ("height", request.height)):
        _check_integer(field, size, low=1)
        if size % latent_multiple:
            raise InvalidRequest(field, f"is {size}, and must be a multiple of {latent_multiple}")
    _check_integer("num_inference_steps", request.num_inference_steps, low=1, high=max_steps)
    _check_number("guidance_scale", request.guidance_scale, low=0)
    if request.sampler not in samplers:
        raise InvalidRequest("sampler", f"is {request.sampler!r}, and must be one of {', '.join(samplers)}")
    _check_integer("seed", request.seed, low=0, high=MAX_SEED)
    _check_integer("priority", request.priority, low=0, high=1)
    if request.deadline is not None:
        _check_number("deadline", request.deadline)


def check_extras(request: Request, *, features: Collection[str]) -> None:
    """Raise InvalidRequest for the first thing beyond text-to-image that is wrong, or that this model does not do."""
    for field, is_asked, feature in (
        ("mask", request.mask is not None, INPAINTING),
        ("image", request.image is not None and request.mask is None, IMAGE_TO_IMAGE),
        ("loras", bool(request.loras), LORAS),
    ):
        if is_asked and feature not in features:
            raise InvalidRequest(field, f"is given, and this model does not do {feature}")
    _check_pixels("image", request.image, (request.height, request.width, 3))
    _check_pixels("mask", request.mask, (request.height, request.width))
    if request.mask is not None and request.image is None:
        raise InvalidRequest("mask", "is given, and there is no image that it could be for")
    _check_number("strength", request.strength, low=0)
    if not 0 < request.strength <= 1:
        raise InvalidRequest("strength", f"is {request.strength}, and must be above 0 and at most 1")
    if request.strength != 1 and request.image is None:
        raise InvalidRequest("strength", f"is {request.strength}, and there is no image that it could be for")
    _check_loras(request.loras)
    _check_integer("num_walk_frames", request.num_walk_frames, low=0, high=MAX_WALK_FRAMES)


def _check_pixels(field: str, pixels: Any, shape: tuple[int, ...]) -> None:
    if pixels is None:
        return
    if getattr(pixels, "dtype", None) != "uint8" or pixels.shape != shape:
        found = f"{pixels.dtype} {pixels.shape}" if hasattr(pixels, "dtype") else f"a {type(pixels).__name__}"
        raise InvalidRequest(field, f"is {found}, and must be uint8 {shape}")


def _check_loras(loras: tuple[tuple[str, float], ...]) -> None:
    names = [name for name, _ in loras]
    for name, weight in loras:
        if names.count(name) > 1:
            raise InvalidRequest("loras", f"names {name!r} more than once")
        _check_number(f"loras: the weight of {name!r}", weight)


def check_pixels(request: Request, max_pixels: int) -> None:
    """Raise InvalidRequest for a picture of more pixels than the device's memory is enough for."""
    num_pixels = request.width * request.height
    if num_pixels > max_pixels:
        raise InvalidRequest("width", f"times height is {num_pixels}, and must be at most {max_pixels}")


def _check_text(field: str, text: object) -> None:
    if not isinstance(text, str):
        raise InvalidRequest(field, f"is a {type(text).__name__}, and must be a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(field, "holds a lone surrogate, and must be valid Unicode") from error


def _check_integer(field: str, number: object, *, low: int, high: int | None = None) -> None:
    limit = f"an integer from {low} to {high}" if high is not None else f"an integer of at least {low}"
    if not isinstance(number, int) or isinstance(number, bool):
        raise InvalidRequest(field, f"is a {type(number).__name__}, and must be {limit}")
    if number < low or (high is not None and number > high):
        raise InvalidRequest(field, f"is {number}, and must be {limit}")


def _check_number(field: str, number: object, *, low: float | None = None) -> None:
    limit = "a finite number" if low is None else f"a finite number of at least {low}"
    if not isinstance(number, int | float) or not math.isfinite(number) or (low is not None and number < low):
        raise InvalidRequest(field, f"is {number!r}, and must be {limit}")
