"""The recognizer: a small network that says what a picture shows. Trained on drawn pictures, never on generated ones.

It judges the evaluation, so it shares nothing with the model but the words of the domain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from darkroom_train.data import RECOGNIZER_SIDE as SIDE
from darkroom_train.group import Group
from darkroom_train.recipe import RecognizerRecipe
from darkroom_train.scenes import (
    BACKGROUNDS,
    COLORS,
    GROUNDS,
    LAYOUTS,
    MAX_COUNT,
    POSITIONS,
    RELATIONS,
    SHAPES,
    TIMES,
    Scene,
)
from darkroom_train.training import Optimization

NONE = "none"

# What it says: for each question the possible answers.
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "layout": LAYOUTS,
    "background": (NONE, *BACKGROUNDS),
    "time": (NONE, *TIMES),
    "ground": (NONE, *GROUNDS),
    "count": tuple(str(count) for count in range(MAX_COUNT + 1)),
    "position": (NONE, *POSITIONS),
    "relation": (NONE, *RELATIONS),
    "first_shape": (NONE, *SHAPES),
    "first_color": (NONE, *COLORS),
    "second_shape": (NONE, *SHAPES),
    "second_color": (NONE, *COLORS),
}


@dataclass(frozen=True)
class Labels:
    """The answer to each question."""

    answers: Mapping[str, str]

    def __getitem__(self, question: str) -> str:
        return self.answers[question]


def labels_of(scene: Scene) -> Labels:
    """Answer all questions for a scene. Of a group only its first figure counts: the others are the same."""
    slots: list[tuple[str, str]] = [(figure.shape, figure.color) for figure in scene.figures]
    if scene.layout == "group":
        slots = slots[:1]
    (first, second) = ([*slots, (NONE, NONE), (NONE, NONE)])[:2]
    return Labels(
        {
            "layout": scene.layout,
            "background": scene.background or NONE,
            "time": scene.time or NONE,
            "ground": scene.ground or NONE,
            "count": str(len(scene.figures)),
            "position": scene.position or NONE,
            "relation": scene.relation or NONE,
            "first_shape": first[0],
            "first_color": first[1],
            "second_shape": second[0],
            "second_color": second[1],
        }
    )


def encode_labels(labels: Sequence[Labels]) -> Tensor:
    """Give the answers' places among the possible ones, (N, questions)."""
    return torch.tensor(
        [[answers.index(label[question]) for question, answers in QUESTIONS.items()] for label in labels]
    )


class Recognizer(nn.Module):
    """A convolutional network that keeps where things are, and a head for each question."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 3 * width)
        layers: list[nn.Module] = [nn.Conv2d(3, width, 5, stride=2, padding=2)]
        for before, after in pairwise(widths):
            layers += [_Block(before), nn.Conv2d(before, after, 3, stride=2, padding=1)]
        layers += [_Block(widths[-1]), nn.Conv2d(widths[-1], 2 * width, 1), nn.SiLU(), nn.Flatten()]
        layers += [nn.Linear(2 * width * (SIDE // 8) ** 2, 256), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({question: nn.Linear(256, len(answers)) for question, answers in QUESTIONS.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Give the logits of each question for pictures as `look` gives them."""
        features = self.features(pictures)
        return {question: head(features) for question, head in self.heads.items()}


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        added: Tensor = hidden + self.layers(hidden)
        return added


def look(pictures: Tensor) -> Tensor:
    """Bring uint8 pictures (B, 3, H, W) to what the recognizer looks at: values from -1 to 1, 64 pixels a side."""
    values = pictures.float() / 127.5 - 1
    if values.shape[-1] == SIDE:
        return values
    return interpolate(values, (SIDE, SIDE), mode="area")


@torch.no_grad()
def recognize(recognizer: Recognizer, pictures: Tensor) -> list[Labels]:
    """Say what uint8 pictures (B, 3, H, W) show."""
    recognizer.eval()
    found: list[Labels] = []
    for some in pictures.split(64):
        logits = recognizer(look(some))
        chosen = {question: logits[question].argmax(dim=1).tolist() for question in QUESTIONS}
        found += [
            Labels({question: answers[chosen[question][row]] for question, answers in QUESTIONS.items()})
            for row in range(len(some))
        ]
    return found


@torch.no_grad()
def picture_features(recognizer: Recognizer, pictures: Tensor) -> Tensor:
    """Give the features (B, 256) by which sets of pictures are compared."""
    recognizer.eval()
    return torch.cat([recognizer.features(look(some)).float() for some in pictures.split(64)])


class RecognizerTraining:
    """The stage as the loop sees it. `pictures` are uint8 (N, 3, H, W), `labels` (N, questions), on the device."""

    def __init__(
        self,
        recipe: RecognizerRecipe,
        *,
        seed: int,
        pictures: Tensor,
        labels: Tensor,
        held_out: tuple[Tensor, Tensor],
        group: Group,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.recognizer = Recognizer(recipe.width).to(group.device)
        self._recipe = recipe
        self._seed = seed
        self._pictures = pictures
        self._labels = labels
        self._held_out = held_out
        self._group = group
        self._device = group.device
        self._optimization = Optimization(self.recognizer, recipe, group)

    def step(self, number: int, *, progress: float, learning_rate: float) -> Mapping[str, Tensor]:
        """Train on a batch, blurred and shifted in tone a little, as pictures from an autoencoder are."""
        generator = self._group.generator(self._seed, number)
        indices = torch.randint(
            len(self._pictures), (self._group.share(self._recipe.batch_size),), generator=generator, device=self._device
        )
        pictures = _disturbed(look(self._pictures[indices]), generator)
        self.recognizer.train()
        with self._optimization.autocast():
            logits = self.recognizer(pictures)
        losses = [
            cross_entropy(logits[question].float(), self._labels[indices, number])
            for number, question in enumerate(QUESTIONS)
        ]
        loss = torch.stack(losses).mean()
        self._optimization.apply(loss, number, learning_rate=learning_rate)
        return {"loss": loss.detach()}

    def report(self, number: int) -> Mapping[str, float]:
        """Measure how often each question is answered right on held-out drawn pictures."""
        pictures, labels = self._held_out
        found = encode_labels(recognize(self.recognizer, pictures))
        right = (found == labels.cpu()).float()
        shares = dict(zip(QUESTIONS, right.mean(dim=0).tolist(), strict=True))
        return {**shares, "everything": float(right.all(dim=1).float().mean())}

    def state_dict(self) -> dict[str, Any]:
        return {"recognizer": self.recognizer.state_dict(), **self._optimization.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.recognizer.load_state_dict(state["recognizer"])
        self._optimization.load_state_dict(state)


def _disturbed(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Blur some pictures (B, 3, H, W), and add a little noise and a change of tone to all."""
    amount = torch.rand((len(pictures), 1, 1, 1), generator=generator, device=pictures.device)
    blurred = interpolate(interpolate(pictures, scale_factor=0.5, mode="area"), scale_factor=2.0, mode="bilinear")
    tone = torch.randn((len(pictures), 3, 1, 1), generator=generator, device=pictures.device)
    noise = torch.randn(pictures.shape, generator=generator, device=pictures.device)
    mixed: Tensor = pictures + (blurred - pictures) * amount + 0.02 * tone + 0.03 * noise
    return mixed
