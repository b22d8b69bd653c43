"""The text-encoder stage: CLIP. A text tower and an image tower learn together which caption belongs to which picture.

Only the text tower stays; the denoiser is steered by what it says of every token.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from darkroom_train.group import Group
from darkroom_train.latents import LatentStore
from darkroom_train.recipe import TextEncoderRecipe
from darkroom_train.training import Optimization

EMBEDDING_SIZE = 256
# CLIP's own start, and its bound (Radford et al. 2021, section 2.5).
INITIAL_TEMPERATURE = 0.07
MAX_LOGIT_SCALE = 100.0


def build_text_encoder(recipe: TextEncoderRecipe, tokenizer: CLIPTokenizer, seed: int) -> CLIPTextModel:
    """Build the text tower in its initial state. The tokenizer's end of text is where the caption is pooled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=recipe.width,
                intermediate_size=4 * recipe.width,
                num_hidden_layers=recipe.layers,
                num_attention_heads=recipe.heads,
                max_position_embeddings=tokenizer.model_max_length,
                projection_dim=EMBEDDING_SIZE,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )


class ImageTower(nn.Module):
    """A small convolutional network over latents (B, 4, h, w) that keeps where things are."""

    def __init__(self, width: int, latent_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(4, width, 3, padding=1)]
        size = latent_size
        while size > 4:
            layers += [_Block(width), nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)]
            width, size = 2 * width, (size + 1) // 2
        layers += [_Block(width), nn.Flatten(), nn.Linear(width * size * size, EMBEDDING_SIZE)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        embeds: Tensor = self.layers(latents)
        return embeds


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, hidden: Tensor) -> Tensor:
        added: Tensor = hidden + self.layers(hidden)
        return added


class ContrastiveTowers(nn.Module):
    """Both towers and the scale of their likeness."""

    def __init__(self, text_encoder: CLIPTextModel, image_width: int, latent_size: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.text_projection = nn.Linear(text_encoder.config.hidden_size, EMBEDDING_SIZE, bias=False)
        self.image_tower = ImageTower(image_width, latent_size)
        self.logit_scale = nn.Parameter(torch.tensor(1 / INITIAL_TEMPERATURE).log())

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """Give how alike each picture and each caption are, (B, B)."""
        image_embeds = normalize(self.image_tower(latents).float(), dim=-1)
        text_embeds = normalize(self.text_projection(self.text_encoder(tokens).pooler_output).float(), dim=-1)
        scale = self.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        return scale * image_embeds @ text_embeds.T


def contrastive_loss(likeness: Tensor, tokens: Tensor) -> Tensor:
    """Ask each picture for its caption and each caption for its picture (Radford et al. 2021, figure 3).

    Captions that read the same as another picture's are no wrong answers: they are left out of the comparison.
    """
    same = (tokens[:, None] == tokens[None]).all(dim=-1)
    twins = same & ~torch.eye(len(tokens), dtype=torch.bool, device=tokens.device)
    logits = likeness.masked_fill(twins, -torch.inf)
    targets = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2


class TextEncoderTraining:
    """The stage as the loop sees it."""

    def __init__(
        self,
        recipe: TextEncoderRecipe,
        *,
        seed: int,
        tokenizer: CLIPTokenizer,
        latents: LatentStore,
        held_out: LatentStore,
        group: Group,
    ) -> None:
        text_encoder = build_text_encoder(recipe, tokenizer, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.towers = ContrastiveTowers(text_encoder, recipe.image_width, latents.latents.shape[-1]).to(
                group.device
            )
        self._recipe = recipe
        self._seed = seed
        self._latents = latents
        self._held_out = held_out
        self._group = group
        self._optimization = Optimization(self.towers, recipe, group)
        self._forward = torch.compile(self.towers, dynamic=False) if recipe.compile else self.towers

    @property
    def text_encoder(self) -> CLIPTextModel:
        """The tower that stays."""
        return self.towers.text_encoder

    def step(self, number: int, *, progress: float, learning_rate: float) -> Mapping[str, Tensor]:
        """Train on a batch of pictures, each with one of its captions."""
        generator = self._group.generator(self._seed, number)
        latents, tokens = self._latents.sample(self._group.share(self._recipe.batch_size), generator)
        with self._optimization.autocast():
            likeness = self._forward(latents, tokens)
        loss = contrastive_loss(likeness.float(), tokens)
        self._optimization.apply(loss, number, learning_rate=learning_rate)
        return {"loss": loss.detach()}

    @torch.no_grad()
    def report(self, number: int) -> Mapping[str, float]:
        """Measure how often the likest of all held-out captions is the picture's own, and the other way around."""
        tokens = self._held_out.tokens[:, 0].long()
        likeness = self.towers(self._held_out.latents.float(), tokens)
        same = (tokens[:, None] == tokens[None]).all(dim=-1)
        rows = torch.arange(len(tokens), device=tokens.device)
        return {
            "caption_recall": float(same[rows, likeness.argmax(dim=1)].float().mean()),
            "picture_recall": float(same[rows, likeness.argmax(dim=0)].float().mean()),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"towers": self.towers.state_dict(), **self._optimization.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.towers.load_state_dict(state["towers"])
        self._optimization.load_state_dict(state)
