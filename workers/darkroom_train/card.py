"""The model card: what a trained model is, how it was made and how well it does, in the Hugging Face format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from darkroom_train.recipe import Recipe, digest
from darkroom_train.scenes import COLORS, get_domain

TABLE = "table.md"
PREDICTED = {"epsilon": "the noise", "v_prediction": "v", "flow": "the way from picture to noise (flow matching)"}


def model_card(recipe: Recipe, recipe_path: Path, *, state: Mapping[str, Any], evaluation: Path | None) -> str:
    """Write the card from what is known: the recipe, how long each stage ran, and the scores if there are any."""
    parts = [_front_matter(recipe), f"# {recipe.title or recipe.name}\n", _what(recipe), _data(recipe)]
    parts.append(_training(recipe, recipe_path, state))
    parts.append(_scores(evaluation))
    parts.append(_limits(recipe))
    return "\n".join(parts)


def _front_matter(recipe: Recipe) -> str:
    return (
        "---\nlicense: apache-2.0\nlibrary_name: diffusers\npipeline_tag: text-to-image\n"
        f"tags: [stable-diffusion, darkroom]\nmodel_name: {recipe.name}\n---\n"
    )


def _what(recipe: Recipe) -> str:
    size = recipe.data.size
    return (
        f"A latent diffusion model of {size}x{size} pixels, trained from scratch with `darkroom-train`: a norm-free "
        "autoencoder with 4 latent channels at an eighth of the size, a CLIP text encoder trained against an image "
        f"tower, and a UNet that predicts {PREDICTED[recipe.denoiser.prediction]}.\n"
    )


def _data(recipe: Recipe) -> str:
    if recipe.data.source == "folder":
        return "## Data\n\nA folder of captioned pictures.\n"
    domain = get_domain(recipe.data.domain)
    withheld = ", ".join(f"{color} {shape}" for color, shape in domain.withheld)
    return (
        f"## Data\n\n{recipe.data.num_pictures} scenes drawn by code from seed {recipe.seed}, no picture of anybody's: "
        f"{', '.join(domain.layouts)}. Objects: {', '.join(domain.shapes)}. Colors: {', '.join(domain.colors)}. "
        f"{'All' if domain.colors == COLORS else 'Only these'} words are known, with synonyms, in English. "
        f"Withheld from training: {withheld}.\n"
    )


def _training(recipe: Recipe, recipe_path: Path, state: Mapping[str, Any]) -> str:
    lines = [
        "## Training\n",
        f"Recipe `recipe.toml` (SHA-256 `{digest(recipe_path)[:16]}`), seed {recipe.seed}.\n",
        "| stage | steps | minutes | finished |",
        "|---|---|---|---|",
    ]
    for stage, entry in state.items():
        finished = "yes" if entry["is_finished"] else "no"
        lines.append(f"| {stage} | {entry['step']} | {entry['spent'] / 60:.1f} | {finished} |")
    return "\n".join(lines) + "\n"


def _scores(evaluation: Path | None) -> str:
    if evaluation is None or not (evaluation / TABLE).exists():
        return "## Scores\n\nNot evaluated.\n"
    return (
        "## Scores\n\nHeld-out prompts, judged by a recognizer trained on drawn pictures only.\n\n"
        + (evaluation / TABLE).read_text()
    )


def _limits(recipe: Recipe) -> str:
    return (
        "## Limits\n\nIt knows the words of its domain and nothing else: any other prompt gives something of the "
        f"domain. Best at {recipe.data.size}x{recipe.data.size}. Captions are cut at {recipe.tokenizer.max_length} "
        "tokens.\n\n## License\n\nApache-2.0, as the code that made it.\n"
    )
