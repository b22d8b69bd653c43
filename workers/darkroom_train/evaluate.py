"""The evaluation: held-out prompts drawn by the engine, judged by the recognizer, attribute by attribute.

Beside the model's scores stand the ceiling, drawn pictures through the autoencoder, and the judge's own, drawn
pictures as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from darkroom_engine.families.sd import StableDiffusion
from darkroom_train.autoencoder import decode, encode, peak_signal_to_noise
from darkroom_train.captions import caption
from darkroom_train.data import EVALUATION_SEED
from darkroom_train.drawing import draw
from darkroom_train.files import write_json, write_safely
from darkroom_train.recognizer import Labels, Recognizer, labels_of, picture_features, recognize
from darkroom_train.sampling import Order, Sampling, generate
from darkroom_train.scenes import Domain, Scene, get_domain, sample_scene
from darkroom_train.sheet import contact_sheet, save_sheet
from darkroom_train.workshop import Workshop

ATTRIBUTES = ("background", "layout", "color", "shape", "everything")
NUM_SHEET = 48
SHEET_COLUMNS = 8

Pictures = Sequence[npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Prompt:
    """A held-out scene and one complete way to say it."""

    scene: Scene
    text: str
    seed: int


@dataclass(frozen=True)
class Scores:
    """The part of answers that were right, by attribute, over those that the attribute applies to."""

    shares: Mapping[str, float]
    num_pictures: int


@dataclass(frozen=True)
class Report:
    """Everything that the evaluation found, row by row."""

    rows: Mapping[str, Scores]
    distance: float
    autoencoder_psnr: float
    sampling: Sampling


def held_out_prompts(
    domain: Domain, seed: int, count: int, *, withheld: bool, known: frozenset[str] | set[str]
) -> list[Prompt]:
    """Draw scenes until there are `count` prompts whose words were never trained on."""
    prompts: list[Prompt] = []
    index = 0
    while len(prompts) < count:
        scene = sample_scene(domain, EVALUATION_SEED + seed, index, withheld=withheld)
        text = caption(scene, EVALUATION_SEED + index, complete=True)
        # A tiny domain runs out of new words; then old ones have to do.
        if text not in known or index > 20 * count:
            prompts.append(Prompt(scene, text, seed=index))
        index += 1
    return prompts


def judge(scene: Scene, found: Labels) -> dict[str, bool]:
    """Compare what was found with the scene. An attribute that does not apply is left out."""
    wanted = labels_of(scene)
    right = {
        "background": all(found[question] == wanted[question] for question in ("background", "time", "ground")),
        "layout": all(found[question] == wanted[question] for question in _layout_questions(scene)),
    }
    if scene.figures:
        right["color"] = _same_figures(scene, found, wanted, "color")
        right["shape"] = _same_figures(scene, found, wanted, "shape")
    right["everything"] = all(right.values()) and (not scene.figures or _same_pairs(scene, found, wanted))
    return right


def _layout_questions(scene: Scene) -> tuple[str, ...]:
    return {
        "single": ("count", "position"),
        "pair": ("count", "relation"),
        "group": ("count",),
        "landscape": ("layout", "count"),
    }[scene.layout]


def _figures(labels: Labels, what: str) -> list[str]:
    return [labels[f"first_{what}"], labels[f"second_{what}"]]


def _same_figures(scene: Scene, found: Labels, wanted: Labels, what: str) -> bool:
    """Compare in order, but for a landscape, whose captions do not say which figure is left."""
    some, others = _figures(found, what), _figures(wanted, what)
    return sorted(some) == sorted(others) if scene.layout == "landscape" else some == others


def _same_pairs(scene: Scene, found: Labels, wanted: Labels) -> bool:
    """Whether each color sits on its own shape, where the order alone does not say so."""
    some = list(zip(_figures(found, "shape"), _figures(found, "color"), strict=True))
    others = list(zip(_figures(wanted, "shape"), _figures(wanted, "color"), strict=True))
    return sorted(some) == sorted(others)


def score(scenes: Sequence[Scene], found: Sequence[Labels]) -> Scores:
    """Give the part that is right of each attribute."""
    judged = [judge(scene, labels) for scene, labels in zip(scenes, found, strict=True)]
    shares = {}
    for attribute in ATTRIBUTES:
        answers = [right[attribute] for right in judged if attribute in right]
        if answers:
            shares[attribute] = sum(answers) / len(answers)
    return Scores(shares, len(scenes))


def frechet_distance(some: Tensor, others: Tensor) -> float:
    """Give the Fréchet distance of two sets of features (N, D) taken as Gaussian (Heusel et al. 2017, eq. 6)."""
    first, second = some.double(), others.double()
    covariances = torch.cov(first.T), torch.cov(second.T)
    root = _square_root(covariances[0])
    # The trace of (A B)^1/2 is that of (A^1/2 B A^1/2)^1/2, which is symmetric.
    eigenvalues = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0)
    traces = torch.trace(covariances[0]) + torch.trace(covariances[1]) - 2 * eigenvalues.sqrt().sum()
    return float((first.mean(dim=0) - second.mean(dim=0)).square().sum() + traces)


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    return root


class Evaluation:
    """One evaluation of a workshop's model."""

    def __init__(self, workshop: Workshop, device: torch.device) -> None:
        self._workshop = workshop
        self._device = device
        self._recipe = workshop.recipe
        self._recognizer: Recognizer = workshop.load_recognizer()
        domain = get_domain(self._recipe.data.domain)
        counts = self._recipe.evaluate
        known = workshop.training_captions()
        self.seen = held_out_prompts(domain, self._recipe.seed, counts.num_prompts, withheld=False, known=known)
        self.withheld = held_out_prompts(domain, self._recipe.seed, counts.num_withheld, withheld=True, known=known)

    def run(self, folder: Path, *, stage: str = "denoiser", num_inference_steps: int | None = None) -> Report:
        """Draw with the UNet of a stage, judge, and write scores.json, table.md and the sheets."""
        sampling = self._workshop.sampling_of(stage)
        if num_inference_steps is not None:
            sampling = replace(sampling, num_inference_steps=num_inference_steps)
        pictures = {"seen": self._generate(self.seen, stage, sampling)}
        if self.withheld:
            pictures["withheld"] = self._generate(self.withheld, stage, sampling)
        rows = {
            name: score([prompt.scene for prompt in prompts], self._recognize(pictures[name]))
            for name, prompts in (("seen", self.seen), ("withheld", self.withheld))
            if name in pictures
        }
        scenes = [prompt.scene for prompt in self.seen]
        drawn = [draw(scene, self._recipe.data.size) for scene in scenes]
        returned = self._through_autoencoder(drawn)
        rows["ceiling (drawn, through the autoencoder)"] = score(scenes, self._recognize(returned))
        rows["judge (drawn)"] = score(scenes, self._recognize(drawn))
        distance = frechet_distance(self._features(drawn), self._features(pictures["seen"]))
        psnr = peak_signal_to_noise(torch.from_numpy(np.stack(drawn)), torch.from_numpy(np.stack(returned)))
        report = Report(rows, distance, psnr, sampling)
        self._write(folder, report, pictures)
        return report

    def _generate(self, prompts: Sequence[Prompt], stage: str, sampling: Sampling) -> Pictures:
        orders = [Order(prompt.text, prompt.seed, sampling) for prompt in prompts]
        model = StableDiffusion(self._workshop.pipeline(stage), self._device)
        return generate(model, orders, side=self._recipe.data.size, device=self._device)

    def _recognize(self, pictures: Pictures) -> list[Labels]:
        return recognize(self._recognizer, torch.from_numpy(np.stack(pictures)).to(self._device))

    def _features(self, pictures: Pictures) -> Tensor:
        return picture_features(self._recognizer, torch.from_numpy(np.stack(pictures)).to(self._device)).cpu()

    @torch.no_grad()
    def _through_autoencoder(self, pictures: Pictures) -> Pictures:
        autoencoder = self._workshop.load_autoencoder().to(self._device)
        batches = torch.from_numpy(np.stack(pictures)).to(self._device).split(32)
        returned = torch.cat([decode(autoencoder, encode(autoencoder, batch)) for batch in batches])
        return list(returned.cpu().numpy())

    def _write(self, folder: Path, report: Report, pictures: Mapping[str, Pictures]) -> None:
        rows = {name: {**scores.shares, "num_pictures": scores.num_pictures} for name, scores in report.rows.items()}
        content = {
            "sampling": asdict(report.sampling),
            "rows": rows,
            "frechet_distance": report.distance,
            "autoencoder_psnr": report.autoencoder_psnr,
        }
        write_json(folder / "scores.json", content)
        table = format_report(report)
        write_safely(folder / "table.md", lambda beside: _write_text(beside, table))
        for name, prompts in (("seen", self.seen), ("withheld", self.withheld)):
            if name in pictures:
                texts = [prompt.text for prompt in prompts[:NUM_SHEET]]
                sheet = contact_sheet(pictures[name][:NUM_SHEET], columns=SHEET_COLUMNS, captions=texts)
                save_sheet(sheet, folder / f"sheet-{name}.png")


def format_report(report: Report) -> str:
    """Give the table as Markdown."""
    titles = {
        "background": "background, scene",
        "layout": "position, count, relation",
        "color": "color",
        "shape": "shape",
        "everything": "everything",
    }
    lines = [
        "| pictures of | n | " + " | ".join(titles.values()) + " |",
        "|---|---|" + "---|" * len(titles),
    ]
    for name, scores in report.rows.items():
        cells = [f"{100 * scores.shares[key]:.1f} %" if key in scores.shares else "-" for key in titles]
        lines.append(f"| {name} | {scores.num_pictures} | " + " | ".join(cells) + " |")
    lines.append("")
    sampling = report.sampling
    lines.append(
        f"{sampling.num_inference_steps} steps of {sampling.sampler}, guidance {sampling.guidance_scale:g}. "
        f"Fréchet distance on the recognizer's features, drawn against generated: {report.distance:.3f}. "
        f"Autoencoder: {report.autoencoder_psnr:.1f} dB on held-out pictures."
    )
    return "\n".join(lines) + "\n"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
