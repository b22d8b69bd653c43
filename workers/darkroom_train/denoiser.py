"""The denoiser stage: a UNet learns to take noise off latents, told by the captions' embeddings what to find there.

The forward process and the parameterization are the engine's own.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UniPCMultistepScheduler
from torch import Tensor
from transformers import CLIPTextModel

from darkroom_engine.noising import PARAMETERIZATIONS, ForwardProcess, NoiseSchedule, Parameterization, StraightLine
from darkroom_train.group import Group
from darkroom_train.latents import LatentStore
from darkroom_train.recipe import DenoiserRecipe
from darkroom_train.training import Optimization, attention_of_small_pictures

# Where the held-out error is measured.
REPORTED_TIMESTEPS = (50, 200, 400, 600, 800)


class Sampler(Protocol):
    """Draws samples with the weights as they are now, and leaves them where a person can look."""

    def __call__(self, unet: UNet2DConditionModel, number: int, /) -> None: ...


def build_denoiser(recipe: DenoiserRecipe, *, latent_size: int, text_width: int, seed: int) -> UNet2DConditionModel:
    """Build the UNet in its initial state."""
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in recipe.attention]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(recipe.attention)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=latent_size,
            block_out_channels=recipe.channels,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            layers_per_block=recipe.layers,
            attention_head_dim=recipe.heads,  # diffusers' name for the number of heads
            cross_attention_dim=text_width,
            norm_num_groups=recipe.norm_groups,
            use_linear_projection=True,
        )


def build_noise_scheduler(prediction: str) -> Any:
    """Build the noise_scheduler that training noises with and that the exported model names.

    Linear betas end at a signal of 4e-5 of the variance, so no rescaling to zero is needed and every sampler agrees.
    For flow matching it is one that StableDiffusionPipeline can use: FlowMatchEulerDiscreteScheduler lacks what that
    pipeline asks of it. The engine takes its own flow samplers for both.
    """
    if prediction == "flow":
        return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type=prediction,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_forward_process(prediction: str, device: torch.device) -> ForwardProcess:
    """Build the forward process that belongs to a prediction."""
    if prediction == "flow":
        return StraightLine()
    return NoiseSchedule.of(build_noise_scheduler(prediction)).to(device)


def sample_positions(batch_size: int, *, uniform_part: float, logit_mean: float, generator: torch.Generator) -> Tensor:
    """Draw positions (B,) on the way from the picture, 0, to noise, 1, where the denoiser is to learn.

    Some are uniform, the others logit-normal (Esser et al. 2024, section 3.1). Linear betas leave a third of all
    timesteps as nearly pure noise, where there is little to learn; flow matching has its hardest in the middle.
    """
    device = generator.device
    normal = torch.randn(batch_size, generator=generator, device=device)
    uniform = torch.rand(batch_size, generator=generator, device=device)
    is_uniform = torch.rand(batch_size, generator=generator, device=device) < uniform_part
    return torch.where(is_uniform, uniform, torch.sigmoid(normal + logit_mean))


def drop_captions(tokens: Tensor, empty: Tensor, part: float, generator: torch.Generator) -> Tensor:
    """Replace some captions by the empty one (length,), for guidance (Ho and Salimans 2022, algorithm 1)."""
    is_dropped = torch.rand(len(tokens), generator=generator, device=tokens.device) < part
    return torch.where(is_dropped[:, None], empty[None], tokens)


class Denoising:
    """A forward of the denoiser and its loss, side by side."""

    def __init__(self, unet: Any, forward_process: ForwardProcess, parameterization: Parameterization) -> None:
        self._unet = unet
        self.forward_process = forward_process
        self._parameterization = parameterization

    def losses(self, latents: Tensor, noise: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Noise latents, predict, and give each sample's error (B,)."""
        noisy = self.forward_process.add_noise(latents, noise, timesteps)
        prediction = self._unet(noisy, timesteps, encoder_hidden_states=prompt_embeds, return_dict=False)[0]
        return self._parameterization.losses(prediction, latents, noise, self.forward_process.scales(timesteps))


class DenoiserTraining:
    """The stage as the loop sees it. The text encoder is frozen; `empty` are the ids of the empty caption."""

    def __init__(
        self,
        recipe: DenoiserRecipe,
        *,
        seed: int,
        text_encoder: CLIPTextModel,
        empty: Tensor,
        latents: LatentStore,
        held_out: LatentStore,
        group: Group,
        sampling: Sampler | None = None,
    ) -> None:
        self.unet = build_denoiser(
            recipe,
            latent_size=latents.latents.shape[-1],
            text_width=text_encoder.config.hidden_size,
            seed=seed,
        ).to(group.device)
        self._recipe = recipe
        self._seed = seed
        self._text_encoder = text_encoder.to(group.device).eval().requires_grad_(False)
        self._empty = empty.to(group.device)
        self._latents = latents
        self._held_out = held_out
        self._group = group
        self._device = group.device
        self._sampling = sampling
        self._optimization = Optimization(self.unet, recipe, group, ema_decay=recipe.ema_decay)
        forward_process = build_forward_process(recipe.prediction, group.device)
        forward = torch.compile(self.unet, dynamic=False) if recipe.compile else self.unet
        self._denoising = Denoising(forward, forward_process, PARAMETERIZATIONS[recipe.prediction])
        self._eager = Denoising(self.unet, forward_process, PARAMETERIZATIONS[recipe.prediction])

    def step(self, number: int, *, progress: float, learning_rate: float) -> Mapping[str, Tensor]:
        """Train on a batch of latents, each at a timestep and with noise of its own."""
        recipe = self._recipe
        generator = self._group.generator(self._seed, number)
        latents, tokens = self._latents.sample(self._group.share(recipe.batch_size), generator)
        tokens = drop_captions(tokens, self._empty, recipe.caption_dropout, generator)
        noise = torch.randn(latents.shape, generator=generator, device=self._device)
        positions = sample_positions(
            len(latents),
            uniform_part=recipe.uniform_part,
            logit_mean=recipe.logit_mean,
            generator=generator,
        )
        timesteps = self._denoising.forward_process.timesteps(positions)
        with self._optimization.autocast(), attention_of_small_pictures(self._device):
            loss = self._denoising.losses(latents, noise, timesteps, self._embed(tokens)).mean()
        self._optimization.apply(loss, number, learning_rate=learning_rate)
        return {"loss": loss.detach()}

    @torch.no_grad()
    def report(self, number: int) -> Mapping[str, float]:
        """Measure the averaged weights on held-out latents at a few timesteps, and draw samples."""
        generator = self._group.generator(self._seed, 0)
        latents = self._held_out.latents[:128].float()
        prompt_embeds = self._embed(self._held_out.tokens[:128, 0].long())
        values = {}
        with self._optimization.averaged():
            for timestep in REPORTED_TIMESTEPS:
                noise = torch.randn(latents.shape, generator=generator, device=self._device)
                timesteps = torch.full((len(latents),), timestep, device=self._device)
                losses = self._eager.losses(latents, noise, timesteps, prompt_embeds)
                values[f"held_out_{timestep}"] = float(losses.mean())
        if self._sampling is not None:
            self._sampling(self.averaged_unet(), number)
        return values

    def averaged_unet(self) -> UNet2DConditionModel:
        """Give a copy of the UNet with the averaged weights: what is exported."""
        copy = UNet2DConditionModel.from_config(self.unet.config)
        with self._optimization.averaged():
            copy.load_state_dict(self.unet.state_dict())
        return copy

    def state_dict(self) -> dict[str, Any]:
        return {"unet": self.unet.state_dict(), **self._optimization.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.unet.load_state_dict(state["unet"])
        self._optimization.load_state_dict(state)

    @torch.no_grad()
    def _embed(self, tokens: Tensor) -> Tensor:
        prompt_embeds: Tensor = self._text_encoder(tokens)[0]
        return prompt_embeds
