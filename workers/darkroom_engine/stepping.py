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
    scales: dict[Development, float] = {}
    for development in dict.fromkeys(developments):
        if development.step_table is None:
            latents[development], scales[development] = model_input(development), 1.0
        else:
            assert development.latents is not None
            latents[development] = development.latents
            scales[development] = development.step_table[development.step].input_scale
    together = torch.cat([latents[development] for development in developments])
    if all(scale == 1 for scale in scales.values()):
        return together
    column = _column([scales[development] for development in developments], like=together)
    return (together * column).to(together.dtype)


def draws(development: Development) -> bool:
    """Whether the request's next step may draw from its generator."""
    return development.step_table is None or development.step_table[development.step].noise != 0


def advance(model: Family, developments: Sequence[Development], prediction: Tensor) -> None:
    """Bring every request one step further; prediction (rows, ...) has each one's rows, the negative prompt's first."""
    guided = _guide(model, developments, prediction)
    linear = [development for development in developments if development.step_table is not None]
    if linear:
        _advance_together(linear, torch.cat([guided[development] for development in linear]))
    for development in developments:
        if development.step_table is None:
            _advance_alone(development, guided[development])
        if development.kept is not None and development.latents is not None:
            development.latents = development.kept.put_back(development.latents, development.step)


def _guide(model: Family, developments: Sequence[Development], prediction: Tensor) -> dict[Development, Tensor]:
    """Bring the two rows of each request with guidance together: one prediction (1, ...) a request."""
    rows = iter(prediction.split(1))
    guided = {development: [next(rows) for _ in range(development.num_rows)] for development in developments}
    pairs = [development for development in developments if development.num_rows == 2]
    combined: dict[Development, Tensor] = {}
    if pairs:
        scales = [development.request.guidance_scale for development in pairs]
        together = model.guide(
            torch.cat([guided[development][0] for development in pairs]),
            torch.cat([guided[development][1] for development in pairs]),
            _column(scales, like=prediction),
        )
        combined = dict(zip(pairs, together.split(1), strict=True))
    return {development: combined.get(development, parts[0]) for development, parts in guided.items()}


def _advance_together(developments: Sequence[Development], prediction: Tensor) -> None:
    """Step by the tables: each operation is for all requests, each weight a request's own.

    Products and sums apart, because a fused multiply-add rounds differently in the last rows of a tensor.
    """
    weights = [development.step_table[development.step] for development in developments if development.step_table]

    def column(name: str) -> Tensor:
        return _column([getattr(step, name) for step in weights], like=prediction)

    latents = torch.cat([development.latents for development in developments if development.latents is not None])
    stepped = latents * column("latents") + prediction * column("prediction")
    denoised = latents * column("denoised_latents") + prediction * column("denoised_prediction")
    if any(step.previous for step in weights):
        nothing = torch.zeros_like(denoised[:1])
        previous = [nothing if development.denoised is None else development.denoised for development in developments]
        stepped = stepped + torch.cat(previous) * column("previous")
    if any(step.noise for step in weights):
        silence = torch.zeros(latents.shape[1:])[None]
        noise = [
            _draw(development) if step.noise else silence
            for development, step in zip(developments, weights, strict=True)
        ]
        stepped = stepped + torch.cat(noise).to(latents.device, non_blocking=True) * column("noise")
    rows = zip(developments, stepped.to(latents.dtype).split(1), denoised.split(1), strict=True)
    for development, own_latents, own_denoised in rows:
        development.latents, development.denoised = own_latents, own_denoised
        development.step += 1


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
