"""The autoencoder: what it begins as, that it learns, and that its scale can be folded in."""

import pytest
import torch

from darkroom_train.autoencoder import (
    AutoencoderTraining,
    build_autoencoder,
    decode,
    encode,
    fold_scale,
    peak_signal_to_noise,
)
from darkroom_train.drawing import draw
from darkroom_train.group import Group
from darkroom_train.recipe import AutoencoderRecipe
from darkroom_train.scenes import DOMAINS, sample_scene

RECIPE = AutoencoderRecipe(steps=20, batch_size=4, learning_rate=1.5e-3, warmup_steps=4, width=16, crop=32)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    scenes = [sample_scene(DOMAINS["full"], 4, index) for index in range(8)]
    return torch.stack([torch.from_numpy(draw(scene, 64)) for scene in scenes])


@torch.no_grad()
def test_it_begins_as_shrinking_and_enlarging(pictures: torch.Tensor) -> None:
    autoencoder = build_autoencoder(RECIPE, 1)
    latents = encode(autoencoder, pictures)
    assert latents.shape == (8, 4, 8, 8)
    assert peak_signal_to_noise(pictures, decode(autoencoder, latents)) > 14


def test_it_learns(pictures: torch.Tensor) -> None:
    training = AutoencoderTraining(RECIPE, seed=1, pictures=pictures, held_out=pictures, group=Group())
    before = training.report(0)["psnr"]
    for number in range(RECIPE.steps):
        training.step(number, progress=0.0, learning_rate=1.5e-3)
    assert training.report(0)["psnr"] > before + 0.5


@torch.no_grad()
def test_folded_scale_leaves_the_pictures_and_evens_the_latents(pictures: torch.Tensor) -> None:
    autoencoder = build_autoencoder(RECIPE, 1)
    # Away from the decoder's soft clamp, which is what makes folding inexact.
    autoencoder.encoder.layers[-1].weight.mul_(0.2)
    autoencoder.encoder.layers[-1].bias.mul_(0.2)
    autoencoder.decoder.layers[0].weight.mul_(5.0)
    before = decode(autoencoder, encode(autoencoder, pictures))
    small = encode(autoencoder, pictures)
    fold_scale(autoencoder, small)
    latents = encode(autoencoder, pictures)
    deviation, mean = torch.std_mean(latents, dim=(0, 2, 3))
    assert torch.allclose(deviation, torch.ones(4), atol=1e-3)
    assert torch.allclose(mean, torch.zeros(4), atol=1e-3)
    after = decode(autoencoder, latents)
    assert peak_signal_to_noise(before[:, :, 8:-8, 8:-8], after[:, :, 8:-8, 8:-8]) > 18


def test_a_picture_is_infinitely_like_itself_up_to_a_bound(pictures: torch.Tensor) -> None:
    assert peak_signal_to_noise(pictures, pictures) == pytest.approx(78.1, abs=0.1)
