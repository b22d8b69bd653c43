"""The distill stage: the denoiser learns to jump to the picture in a few steps, guidance included.

Latent consistency distillation (Luo et al. 2023, algorithm 1) at one guidance scale, so that the distilled model
needs one row instead of two. Sampled with "lcm" and guidance 1.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from darkroom_engine.noising import PARAMETERIZATIONS, ForwardProcess
from darkroom_train.adapter import EVERYTHING, add_adapter, fused, load_trained_weights, save_adapter, trained_weights
from darkroom_train.denoiser import Sampler, build_forward_process
from darkroom_train.group import Group
from darkroom_train.latents import LatentStore
from darkroom_train.recipe import DistillRecipe
from darkroom_train.training import Optimization, attention_of_small_pictures

# As diffusers' LCMScheduler has them: the variance of the latents, and how fast the identity fades.
SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0
HUBER = 0.001


def boundary_scales(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Give c_skip and c_out, each (B, 1, 1, 1): at timestep 0 the answer is what came in (Luo et al. 2023, eq. 9)."""
    scaled = (TIMESTEP_SCALING * timesteps.float())[:, None, None, None]
    total = scaled.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled / total.sqrt()


def ddim_step(
    forward_process: ForwardProcess, denoised: Tensor, noisy: Tensor, *, timesteps: Tensor, earlier: Tensor
) -> Tensor:
    """Go from timesteps to earlier ones along the deterministic path (Song, Meng and Ermon 2021, eq. 12)."""
    alpha, sigma = forward_process.scales(timesteps)
    noise = (noisy - alpha * denoised) / sigma
    alpha, sigma = forward_process.scales(earlier)
    return alpha * denoised + sigma * noise


def huber_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Give a squared error that grows only linearly far away (Luo et al. 2023, appendix)."""
    squared = (found.float() - wanted.float()).square()
    return ((squared + HUBER**2).sqrt() - HUBER).mean()


class Distillation:
    """The stage as the loop sees it. Student and target begin as the teacher; the text encoder is frozen."""

    def __init__(
        self,
        recipe: DistillRecipe,
        *,
        seed: int,
        teacher: UNet2DConditionModel,
        prediction: str,
        text_encoder: CLIPTextModel,
        empty: Tensor,
        latents: LatentStore,
        group: Group,
        sampling: Sampler | None = None,
    ) -> None:
        self._recipe = recipe
        self._seed = seed
        self._group = group
        self._sampling = sampling
        self._latents = latents
        self._teacher = teacher.to(group.device).eval().requires_grad_(False)
        self.student = copy.deepcopy(self._teacher).train()
        if recipe.lora_rank:
            add_adapter(
                self.student, rank=recipe.lora_rank, alpha=recipe.lora_rank, target_modules=EVERYTHING, seed=seed
            )
        else:
            self.student.requires_grad_(True)
        self._text_encoder = text_encoder.to(group.device).eval().requires_grad_(False)
        self._empty = empty.to(group.device)
        self._parameterization = PARAMETERIZATIONS[prediction]
        self._forward_process = build_forward_process(prediction, group.device)
        self._optimization = Optimization(self.student, recipe, group, ema_decay=recipe.ema_decay)
        self._target = copy.deepcopy(self.student).eval()
        self._followers = [parameter for parameter in self._target.parameters() if parameter.requires_grad]
        self._target.requires_grad_(False)
        self._forwards = {
            "student": torch.compile(self.student, dynamic=False) if recipe.compile else self.student,
            "target": torch.compile(self._target, dynamic=False) if recipe.compile else self._target,
            "teacher": torch.compile(self._teacher, dynamic=False) if recipe.compile else self._teacher,
        }

    def step(self, number: int, *, progress: float, learning_rate: float) -> Mapping[str, Tensor]:
        """Ask the student for the picture that its own average sees one teacher's step closer to it."""
        recipe, generator = self._recipe, self._group.generator(self._seed, number)
        device = self._group.device
        latents, tokens = self._latents.sample(self._group.share(recipe.batch_size), generator)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        stride = self._forward_process.num_timesteps // recipe.distilled_steps
        place = torch.randint(recipe.distilled_steps, (len(latents),), generator=generator, device=device)
        timesteps = (place + 1) * stride - 1
        earlier = (timesteps - stride).clamp(min=0)
        noisy = self._forward_process.add_noise(latents, noise, timesteps)
        with self._optimization.autocast(), attention_of_small_pictures(device):
            prompt_embeds = self._embed(tokens)
            closer = self._teach(noisy, timesteps, earlier, prompt_embeds)
            with torch.no_grad():
                wanted = self._consistent("target", closer, earlier, prompt_embeds)
            found = self._consistent("student", noisy, timesteps, prompt_embeds)
        loss = huber_loss(found, wanted)
        self._optimization.apply(loss, number, learning_rate=learning_rate)
        self._follow()
        return {"loss": loss.detach()}

    def report(self, number: int) -> Mapping[str, float]:
        """Draw samples with the averaged weights."""
        if self._sampling is not None:
            self._sampling(self.averaged_unet(), number)
        return {}

    def averaged_unet(self) -> UNet2DConditionModel:
        """Give a copy of the student with the averaged weights, an adapter added to them: what is exported."""
        if self._recipe.lora_rank:
            with self._optimization.averaged():
                whole: UNet2DConditionModel = fused(self.student)
            return whole
        averaged = UNet2DConditionModel.from_config(self.student.config)
        with self._optimization.averaged():
            averaged.load_state_dict(self.student.state_dict())
        return averaged

    def save_adapter(self, path: Path) -> None:
        """Write the averaged adapter in diffusers' format."""
        with self._optimization.averaged():
            save_adapter(self.student, "unet", path)

    def state_dict(self) -> dict[str, Any]:
        return {"student": trained_weights(self.student), **self._optimization.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_trained_weights(self.student, state["student"])
        self._optimization.load_state_dict(state)
        self._follow()

    @torch.no_grad()
    def _teach(self, noisy: Tensor, timesteps: Tensor, earlier: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Take one guided step of the teacher."""
        empty = self._embed(self._empty[None]).expand_as(prompt_embeds)
        both = self._predict(
            "teacher", noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), torch.cat([empty, prompt_embeds])
        )
        unconditional, conditional = both.chunk(2)
        prediction = unconditional + self._recipe.guidance_scale * (conditional - unconditional)
        denoised = self._parameterization.denoised(noisy, prediction, *self._forward_process.scales(timesteps))
        return ddim_step(self._forward_process, denoised, noisy, timesteps=timesteps, earlier=earlier)

    def _consistent(self, who: str, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Give the picture that one of the networks jumps to."""
        prediction = self._predict(who, noisy, timesteps, prompt_embeds)
        denoised = self._parameterization.denoised(noisy, prediction, *self._forward_process.scales(timesteps))
        skip, out = boundary_scales(timesteps)
        return skip * noisy + out * denoised

    def _predict(self, who: str, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        unet = self._forwards[who]
        prediction: Tensor = unet(noisy, timesteps, encoder_hidden_states=prompt_embeds, return_dict=False)[0]
        return prediction.float()

    @torch.no_grad()
    def _embed(self, tokens: Tensor) -> Tensor:
        prompt_embeds: Tensor = self._text_encoder(tokens)[0]
        return prompt_embeds

    @torch.no_grad()
    def _follow(self) -> None:
        """Let the target be the average of the student."""
        torch._foreach_copy_(self._followers, self._optimization.averages)
