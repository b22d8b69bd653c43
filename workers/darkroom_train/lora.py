"""Fine-tunes a LoRA adapter on captioned pictures, for a checkpoint of family sd, sdxl or flux.

The forward is that of the engine's family, so what is trained is what will be asked; the loss is the one the checkpoint
was made by. The checkpoint's own weights stay as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from darkroom_engine import Request
from darkroom_engine.families.autoencoder import Autoencoder
from darkroom_engine.families.base import Conditioning
from darkroom_engine.families.flux import Flux
from darkroom_engine.families.sd import StableDiffusion
from darkroom_engine.families.sdxl import StableDiffusionXL
from darkroom_engine.models import load_model
from darkroom_engine.noising import PARAMETERIZATIONS, ForwardProcess, NoiseSchedule, StraightLine
from darkroom_engine.quiet import quiet
from darkroom_engine.samplers import DISCRETE_SAMPLERS, FLOW_SAMPLERS, samplers_for
from darkroom_train.adapter import (
    ATTENTION,
    FILE_NAME,
    add_adapter,
    load_trained_weights,
    save_adapter,
    trained_weights,
)
from darkroom_train.autoencoder import to_signed
from darkroom_train.denoiser import Sampler, sample_positions
from darkroom_train.errors import ModelUnfit
from darkroom_train.files import write_json
from darkroom_train.folder import read_folder
from darkroom_train.group import Group
from darkroom_train.recipe import Training, as_stored
from darkroom_train.sampling import Order, Sampling, generate
from darkroom_train.sheet import contact_sheet, save_sheet
from darkroom_train.training import Optimization, train
from darkroom_train.workshop import Conditions

Tunable = StableDiffusion | StableDiffusionXL | Flux

SETTINGS = "lora.json"
NUM_SAMPLES = 4
NUM_MEASURED = 16


@dataclass(frozen=True, kw_only=True)
class LoraRecipe(Training):
    """What an adapter is made by. `guidance_scale` is that of the samples, and what Flux is told while it learns."""

    model: str
    folder: str
    resolution: int
    seed: int = 1
    rank: int = 8
    alpha: int = 8
    target_modules: tuple[str, ...] = ATTENTION
    gradient_accumulation: int = 1
    caption_dropout: float = 0.1
    guidance_scale: float = 3.5
    sample_steps: int = 20


def fine_tune(recipe: LoraRecipe, output: Path, conditions: Conditions) -> bool:
    """Train an adapter, or go on from the checkpoint in `output`, and leave it there in diffusers' format.

    Gives whether the end was reached. Raises FolderError, PictureError, ModelUnfit, AdapterError, and what the engine
    raises over a model that it cannot load.
    """
    model = open_model(recipe, conditions.group.device)
    reading = read_folder(Path(recipe.folder), recipe.resolution, skip_bad=conditions.skip_bad, at_least=1)
    for problem in reading.skipped:
        conditions.say(f"skipped: {problem}")
    trainee = LoraTraining(
        recipe,
        model=model,
        pictures=torch.stack([torch.from_numpy(picture) for picture in reading.pictures]),
        captions=reading.captions,
        group=conditions.group,
        sampling=partial(_draw_samples, recipe, model, reading.captions[:NUM_SAMPLES], output),
    )
    if conditions.group.is_first:
        write_json(output / SETTINGS, as_stored(recipe))
    is_done = train(
        trainee,
        recipe,
        output,
        group=conditions.group,
        minutes=conditions.minutes,
        checkpoint_minutes=conditions.checkpoint_minutes,
        show=conditions.show,
    )
    if conditions.group.is_first:
        trainee.save(output / FILE_NAME)
    return is_done


def open_model(recipe: LoraRecipe, device: torch.device) -> Tunable:
    """Load the checkpoint that is fine-tuned. Raises ModelUnfit, and what the engine raises."""
    loaded = load_model("model", None, source=recipe.model, revision=None, dtype=recipe.precision, device=device)
    if not isinstance(loaded, Tunable):
        raise ModelUnfit(recipe.model, f"it is of family {loaded.family}, and only sd, sdxl and flux are fine-tuned")
    if not isinstance(loaded, Flux) and loaded.unet.config.in_channels != loaded.vae.config.latent_channels:
        raise ModelUnfit(recipe.model, "its UNet is made for inpainting")
    if recipe.resolution % loaded.latent_multiple:
        raise ModelUnfit(recipe.model, f"its pictures have sides that are multiples of {loaded.latent_multiple}")
    return loaded


def forward_process_of(model: Tunable, source: str, device: torch.device) -> tuple[ForwardProcess, str]:
    """Say how a checkpoint's latents were noised, and what it was trained to predict. Raises ModelUnfit."""
    config = model.scheduler_config
    samplers = samplers_for(config)
    if samplers is FLOW_SAMPLERS:
        return StraightLine(), "flow"
    prediction = config.get("prediction_type", "epsilon")
    if samplers is not DISCRETE_SAMPLERS or prediction not in PARAMETERIZATIONS:
        raise ModelUnfit(source, f"what its denoiser predicts, {prediction}, has no loss here")
    with quiet():
        schedule = NoiseSchedule.of(DDPMScheduler.from_config(config))
    return schedule.to(device), prediction


class LoraTraining:
    """The fine-tuning as the loop sees it. Pictures are uint8 (N, 3, S, S); each has one caption."""

    def __init__(
        self,
        recipe: LoraRecipe,
        *,
        model: Tunable,
        pictures: Tensor,
        captions: Sequence[str],
        group: Group,
        sampling: Sampler | None = None,
    ) -> None:
        self._recipe = recipe
        self._model = model
        self._group = group
        self._sampling = sampling
        self._forward_process, prediction = forward_process_of(model, recipe.model, group.device)
        self._parameterization = PARAMETERIZATIONS[prediction]
        # As these models were trained: uniform over a table of betas, logit-normal over the straight line.
        self._uniform_part = 0.0 if prediction == "flow" else 1.0
        self.network = getattr(model, _part_of(model))
        self._dtype = self.network.dtype
        self._latents = self._encode(pictures)
        self._captions = captions
        self._conditionings = {caption: self._condition(caption, is_negative=False) for caption in captions}
        self._empty = self._condition("", is_negative=True)
        add_adapter(
            self.network,
            rank=recipe.rank,
            alpha=recipe.alpha,
            target_modules=recipe.target_modules,
            seed=recipe.seed,
        )
        self._optimization = Optimization(self.network, recipe, group)

    def step(self, number: int, *, progress: float, learning_rate: float) -> Mapping[str, Tensor]:
        """Train on as many batches as the recipe gathers for one step."""
        generator = self._group.generator(self._recipe.seed, number)
        num_batches = self._recipe.gradient_accumulation
        losses = []
        for _ in range(num_batches - 1):
            losses.append(self.batch_loss(generator) / num_batches)
            losses[-1].backward()
        losses.append(self.batch_loss(generator) / num_batches)
        self._optimization.apply(losses[-1], number, learning_rate=learning_rate)
        return {"loss": torch.stack([loss.detach() for loss in losses]).sum()}

    @torch.no_grad()
    def report(self, number: int) -> Mapping[str, float]:
        """Measure how well the first pictures are told from always the same noise, and draw samples."""
        generator = self._group.generator(self._recipe.seed, 0)
        latents = self._latents[:NUM_MEASURED]
        conditionings = [self._conditionings[caption] for caption in self._captions[:NUM_MEASURED]]
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        positions = torch.linspace(0.1, 0.9, len(latents), device=latents.device)
        loss = self._losses(latents, noise, self._forward_process.timesteps(positions), conditionings).mean()
        if self._sampling is not None:
            self._sampling(self.network, number)
        return {"fixed_noise_loss": float(loss)}

    def save(self, path: Path) -> None:
        """Write the adapter in diffusers' format."""
        save_adapter(self.network, _part_of(self._model), path)

    def state_dict(self) -> dict[str, Any]:
        return {"adapter": trained_weights(self.network), **self._optimization.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_trained_weights(self.network, state["adapter"])
        self._optimization.load_state_dict(state)

    def batch_loss(self, generator: torch.Generator) -> Tensor:
        """Noise some pictures, each to a timestep and with noise of its own, some with their caption dropped."""
        recipe, device = self._recipe, self._latents.device
        batch_size = self._group.share(recipe.batch_size)
        indices = torch.randint(len(self._latents), (batch_size,), generator=generator, device=device)
        is_dropped = torch.rand(batch_size, generator=generator, device=device) < recipe.caption_dropout
        positions = sample_positions(batch_size, uniform_part=self._uniform_part, logit_mean=0.0, generator=generator)
        latents = self._latents[indices]
        noise = torch.randn(latents.shape, generator=generator, device=device)
        conditionings = [
            self._empty if dropped else self._conditionings[self._captions[index]]
            for index, dropped in zip(indices.tolist(), is_dropped.tolist(), strict=True)
        ]
        return self._losses(latents, noise, self._forward_process.timesteps(positions), conditionings).mean()

    def _losses(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, conditionings: Sequence[Conditioning]
    ) -> Tensor:
        """Noise latents, predict, and give each sample's error (B,)."""
        noisy = self._forward_process.add_noise(latents, noise, timesteps).to(self._dtype)
        stacked = self._model.stack(conditionings)
        on_device = {name: tensor.to(latents.device) for name, tensor in stacked.items()}
        with self._optimization.autocast():
            prediction = self._model.denoise(noisy, timesteps.float(), on_device)
        return self._parameterization.losses(prediction, latents, noise, self._forward_process.scales(timesteps))

    @torch.no_grad()
    def _encode(self, pictures: Tensor) -> Tensor:
        """Turn pictures into latents (N, C, h, w), float32, one by one: at full size a VAE takes much memory."""
        generator = torch.Generator().manual_seed(self._recipe.seed)
        autoencoder, config = Autoencoder(self._model.vae), self._model.vae.config
        images = (to_signed(picture[None]).to(self._group.device) for picture in pictures)
        latents = torch.cat([autoencoder.encode(image, generator) for image in images])
        shift: float = (config.get("shift_factor") or 0.0) * config.scaling_factor
        return latents - shift

    @torch.no_grad()
    def _condition(self, caption: str, *, is_negative: bool) -> Conditioning:
        """Say a caption as the engine says a prompt, and keep what comes of it in the host's memory."""
        recipe = self._recipe
        request = Request(
            model=recipe.model,
            prompt=caption,
            width=recipe.resolution,
            height=recipe.resolution,
            num_inference_steps=recipe.sample_steps,
            guidance_scale=recipe.guidance_scale,
            sampler="euler",
            seed=recipe.seed,
        )
        encoded = self._model.encode(caption, is_negative=is_negative)
        conditioning = self._model.condition(request, encoded, None)
        return {name: tensor.cpu() for name, tensor in conditioning.items()}


def _part_of(model: Tunable) -> str:
    """Say what the pipeline calls its denoiser."""
    return "transformer" if isinstance(model, Flux) else "unet"


def _draw_samples(
    recipe: LoraRecipe, model: Tunable, captions: Sequence[str], output: Path, network: Any, number: int, /
) -> None:
    """Leave the adapter, and a sheet of the first captions, always with the same noise, so that sheets compare."""
    save_adapter(network, _part_of(model), output / FILE_NAME)
    sampling = Sampling(recipe.sample_steps, "euler", recipe.guidance_scale)
    orders = [Order(caption, seed, sampling) for seed, caption in enumerate(captions)]
    pictures = generate(model, orders, side=recipe.resolution, device=model.vae.device)
    sheet = contact_sheet(pictures, columns=len(captions), captions=captions)
    save_sheet(sheet, output / "samples" / f"step-{number:08}.png")
