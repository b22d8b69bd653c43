"""Steps the latents of a whole batch: guidance, then the samplers, in a handful of operations for all requests at once.

A sampler without a step table steps with its own noise_scheduler, one request at a time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from darkroom_engine.batch import Development
from darkroom_engine.families.base import Family
from darkroom_engine.samplers import scale_model_input
from darkroom_engine.step_table import draws_float32


def model_input(development: Development) -> Tensor:
    """Give the latents (1, ...) as the denoiser is to see them at the request's step."""
    assert development.latents is not None
    if development.step_table is None:
        timestep = development.timesteps[development.step]
        return scale_model_input(development.noise_scheduler, development.latents, timestep)
    scale = development.step_table[development.step].input_scale
    return development.latents if scale == 1 else development.latents * scale


def model_inputs(developments: Sequence[Development]) -> Tensor:
    """Give the same of many, (B, ...) together; one that is named more than once has as many rows."""
    latents: dict[Development, Tensor] = {}
    scales: list[float] = []
    for development in developments:
        if development.step_table is None:
            if development not in latents:
                latents[development] = model_input(development)
            scales.append(1.0)
        else:
            assert development.latents is not None
            latents[development] = development.latents
            scales.append(development.step_table[development.step].input_scale)
    together = torch.cat([latents[development] for development in developments])
    if all(scale == 1 for scale in scales):
        return together
    return (together * _column(scales, like=together)).to(together.dtype)


def draws(development: Development) -> bool:
    """Whether the request's next step may draw from its generator."""
    return development.step_table is None or development.step_table[development.step].noise != 0


def advance(model: Family, developments: Sequence[Development], prediction: Tensor) -> None:
    """Bring every request one step further, those of two rows first.

    Prediction (rows, ...) has each one's rows in that order, the negative prompt's before the prompt's own.
    """
    guided = _guide(model, developments, prediction)
    if all(development.step_table is not None for development in developments):
        _advance_together(developments, guided)
    else:
        _advance_apart(developments, guided)
    for development in developments:
        if development.kept is not None and development.latents is not None:
            development.latents = development.kept.put_back(development.latents, development.step)


def _guide(model: Family, developments: Sequence[Development], prediction: Tensor) -> Tensor:
    """Bring the two rows of each request with guidance together: one row (B, ...) a request."""
    scales = [development.request.guidance_scale for development in developments if development.num_rows == 2]
    if not scales:
        return prediction
    pairs, rest = prediction[: 2 * len(scales)], prediction[2 * len(scales) :]
    together = model.guide(pairs[0::2], pairs[1::2], _column(scales, like=prediction))
    return torch.cat([together, rest]) if len(rest) else together


def _advance_apart(developments: Sequence[Development], prediction: Tensor) -> None:
    """Step those with a table together, and each of the others with its own noise_scheduler."""
    rows = dict(zip(developments, prediction.chunk(len(developments)), strict=True))
    linear = [development for development in developments if development.step_table is not None]
    if linear:
        _advance_together(linear, torch.cat([rows[development] for development in linear]))
    for development in developments:
        if development.step_table is None:
            _advance_alone(development, rows[development])


def _advance_together(developments: Sequence[Development], prediction: Tensor) -> None:
    """Step by the tables: each operation is for all requests, each weight a request's own.

    Products and sums apart, because a fused multiply-add rounds differently in the last rows of a tensor. All weights
    are brought to the device at once: the host's time for a step is mostly the number of its operations.
    """
    weights = [development.step_table[development.step] for development in developments if development.step_table]
    _, of_latents, of_prediction, of_previous, of_noise, denoised_latents, denoised_prediction = _columns(
        [step.in_order for step in weights], like=prediction
    )
    latents = torch.cat([development.latents for development in developments if development.latents is not None])
    stepped = latents * of_latents + prediction * of_prediction
    denoised = latents * denoised_latents + prediction * denoised_prediction
    if any(step.previous for step in weights):
        nothing = torch.zeros_like(denoised[:1])
        previous = [nothing if development.denoised is None else development.denoised for development in developments]
        stepped = stepped + torch.cat(previous) * of_previous
    if any(step.noise for step in weights):
        silence = torch.zeros(latents.shape[1:])[None]
        noise = [
            _draw(development) if step.noise else silence
            for development, step in zip(developments, weights, strict=True)
        ]
        stepped = stepped + torch.cat(noise).to(latents.device, non_blocking=True) * of_noise
    num = len(developments)
    rows = zip(developments, stepped.to(latents.dtype).chunk(num), denoised.chunk(num), strict=True)
    for development, own_latents, own_denoised in rows:
        development.latents, development.denoised = own_latents, own_denoised
        development.step += 1


def _columns(rows: Sequence[tuple[float, ...]], *, like: Tensor) -> tuple[Tensor, ...]:
    """Give the numbers of each request (B, K) as K columns, each float32 (B, 1, ...)."""
    numbers = torch.tensor([number for row in rows for number in row], dtype=torch.float32)
    shape = (len(rows), len(rows[0]), *(1 for _ in like.shape[1:]))
    columns: tuple[Tensor, ...] = numbers.to(like.device, non_blocking=True).view(shape).unbind(1)
    return columns


def _column(numbers: Sequence[float], *, like: Tensor) -> Tensor:
    """Give one number a row, float32 (B, 1, ...), without making the device wait."""
    shape = (-1, *(1 for _ in like.shape[1:]))
    return torch.tensor(numbers, dtype=torch.float32).view(shape).to(like.device, non_blocking=True)


def _draw(development: Development) -> Tensor:
    """Draw fresh noise (1, ...) on the CPU, where every device draws the same, in the type that diffusers draws it."""
    assert development.latents is not None
    dtype = torch.float32 if draws_float32(development.noise_scheduler) else development.latents.dtype
    return torch.randn(development.latents.shape, generator=development.generator, dtype=dtype).float()


def _advance_alone(development: Development, prediction: Tensor) -> None:
    timestep = development.timesteps[development.step]
    development.latents = development.noise_scheduler.step(
        prediction.to(development.latents), timestep, development.latents, **development.step_arguments
    )[0]
    development.step += 1
