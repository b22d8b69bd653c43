"""Steps of the denoiser's training against a plain PyTorch loop over the same UNet, text encoder and batch.

One thread and CPU seconds, steps of both taken in turns, so that a busy machine disturbs both alike.
"""

import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import DDPMScheduler
from tables import report
from torch import Generator, nn
from transformers import CLIPTextModel

from darkroom_train.denoiser import DenoiserTraining, build_denoiser
from darkroom_train.group import Group
from darkroom_train.latents import LatentStore
from darkroom_train.recipe import find_recipe, read_recipe
from darkroom_train.text_encoder import build_text_encoder
from darkroom_train.tokenizer import train_tokenizer

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

NUM_STEPS = 12
NUM_WARM_UP_STEPS = 2
RECIPE = read_recipe(find_recipe("default-cpu"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def latents() -> LatentStore:
    generator = Generator().manual_seed(1)
    tokens = torch.randint(500, (512, 4, RECIPE.tokenizer.max_length), generator=generator)
    return LatentStore(torch.randn((512, 4, 16, 16), generator=generator).half(), tokens.int())


@pytest.fixture
def text_encoder() -> CLIPTextModel:
    tokenizer = train_tokenizer(["a red star"], vocabulary=520, max_length=RECIPE.tokenizer.max_length)
    return build_text_encoder(RECIPE.text_encoder, tokenizer, 1).eval().requires_grad_(False)


def plain_step(latents: LatentStore, text_encoder: CLIPTextModel) -> Callable[[int], object]:
    """A loop body as one would write it without Darkroom."""
    recipe = RECIPE.denoiser
    unet = build_denoiser(recipe, latent_size=16, text_width=RECIPE.text_encoder.width, seed=1)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, fused=True)
    schedule = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")

    def step(number: int) -> object:
        indices = torch.randint(512, (recipe.batch_size,))
        clean, tokens = latents.latents[indices].float(), latents.tokens[indices, 0].long()
        noise, timesteps = torch.randn_like(clean), torch.randint(1000, (recipe.batch_size,))
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            prompt_embeds = text_encoder(tokens)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            noisy = schedule.add_noise(clean, noise, timesteps)
            prediction = unet(noisy, timesteps, encoder_hidden_states=prompt_embeds).sample
        loss = nn.functional.mse_loss(prediction.float(), schedule.get_velocity(clean, noise, timesteps))
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def test_training_is_as_fast_as_a_plain_loop(latents: LatentStore, text_encoder: CLIPTextModel) -> None:
    training = DenoiserTraining(
        RECIPE.denoiser,
        seed=1,
        text_encoder=text_encoder,
        empty=torch.zeros(RECIPE.tokenizer.max_length, dtype=torch.long),
        latents=latents,
        held_out=latents,
        group=Group(),
    )
    ways: dict[str, Callable[[int], object]] = {
        "darkroom-train": lambda number: training.step(number, progress=0.0, learning_rate=1e-3),
        "plain loop": plain_step(latents, text_encoder),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(NUM_WARM_UP_STEPS + NUM_STEPS):
        for name, step in ways.items():
            began = time.process_time()
            step(number)
            seconds[name].append(time.process_time() - began)
    middle = {name: statistics.median(values[NUM_WARM_UP_STEPS:]) for name, values in seconds.items()}
    rows = {
        name: {
            "cpu_s_per_step": round(value, 3),
            "samples_per_cpu_s": round(RECIPE.denoiser.batch_size / value, 1),
            "of_plain": round(middle["plain loop"] / value, 3),
        }
        for name, value in middle.items()
    }
    report("training", rows)
