"""The figures of docs/how-pictures-are-made.md, made from the model that is built by code."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from darkroom_engine.families.base import Family
from darkroom_engine.models import load_model
from darkroom_train.cli import main
from darkroom_train.errors import TrainError
from darkroom_train.lesson import GUIDANCE_SCALES, POSITIONS, STEPS, Example, Lesson
from darkroom_train.sampling import Sampling
from darkroom_train.sheet import LINE_HEIGHT, MARGIN

SIDE = 32
CPU = torch.device("cpu")
EXAMPLE = Example(
    prompts=("a house", "a red house"), seed=7, size=SIDE, sampling=Sampling(4, "euler", guidance_scale=3.0)
)

Pixels = npt.NDArray[np.int16]


@pytest.fixture(scope="module")
def model() -> Family:
    return load_model("lesson", None, source="seeded:7", revision=None, dtype=None, device=CPU)


@pytest.fixture(scope="module")
def figures(model: Family) -> Mapping[str, Image.Image]:
    return dict(Lesson(model, EXAMPLE, CPU).figures())


def cell(figure: Image.Image, column: int, *, row: int = 0, num_lines: int = 1) -> Pixels:
    x, y = MARGIN + column * (SIDE + MARGIN), MARGIN + row * (SIDE + MARGIN + num_lines * LINE_HEIGHT)
    return np.asarray(figure.crop((x, y, x + SIDE, y + SIDE)), np.int16)


def distance(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one - other).mean())


def test_every_figure_has_a_column_for_each_of_its_pictures(figures: Mapping[str, Image.Image]) -> None:
    columns = {name: (figure.width - MARGIN) // (SIDE + MARGIN) for name, figure in figures.items()}
    assert columns == {
        "noise": len(POSITIONS),
        "denoiser": len(POSITIONS),
        "latents": 6,
        "words": len(EXAMPLE.prompts) + 1,
        "guidance": len(GUIDANCE_SCALES),
        "steps": len(STEPS),
    }


def test_picture_is_lost_in_the_noise_little_by_little(figures: Mapping[str, Image.Image]) -> None:
    noised = [cell(figures["noise"], column, num_lines=2) for column in range(len(POSITIONS))]
    to_noise = [distance(noised[-1], one) for one in noised]
    assert min(to_noise[:-1]) == to_noise[-2] < to_noise[0]
    assert distance(noised[0], cell(figures["latents"], 5, num_lines=2)) < 2, "it begins with the picture itself"


def test_denoiser_is_asked_about_the_pictures_above_what_it_says(figures: Mapping[str, Image.Image]) -> None:
    for column in range(len(POSITIONS)):
        asked = cell(figures["denoiser"], column, num_lines=2)
        assert distance(asked, cell(figures["noise"], column, num_lines=2)) == 0
    taken = cell(figures["denoiser"], 0, row=1, num_lines=2)
    assert distance(taken, cell(figures["noise"], 0, num_lines=2)) < 10, (
        "with next to no noise there is nothing to take"
    )


def test_picture_of_the_last_prompt_is_the_one_that_all_figures_are_about(figures: Mapping[str, Image.Image]) -> None:
    picture = cell(figures["latents"], 0, num_lines=2)
    assert distance(picture, cell(figures["words"], 2, num_lines=2)) <= 1
    assert distance(picture, cell(figures["guidance"], GUIDANCE_SCALES.index(3.0), num_lines=2)) <= 1
    assert distance(picture, cell(figures["steps"], STEPS.index(4), num_lines=2)) <= 1
    assert distance(picture, cell(figures["words"], 0, num_lines=2)) > 1
    assert distance(picture, cell(figures["guidance"], len(GUIDANCE_SCALES) - 1)) > 1
    assert distance(picture, cell(figures["steps"], 0)) > 1


def test_model_that_has_other_parts_is_refused() -> None:
    class Other:
        scheduler_config: Mapping[str, str] = {}

    with pytest.raises(TrainError, match="family sd"):
        Lesson(Other(), EXAMPLE, CPU)  # type: ignore[arg-type]


def test_command_line_writes_a_file_for_each_figure(tmp_path: Path) -> None:
    words = ["--model", "seeded:7", "--size", "32", "--steps", "1", "--device", "cpu", "--prompt", "a house"]
    result = CliRunner().invoke(main, ["lesson", *words, "--output", str(tmp_path / "figures")])
    assert result.exit_code == 0, result.output
    files = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert files == [f"{name}.webp" for name in ("denoiser", "guidance", "latents", "noise", "steps", "words")]
    with Image.open(tmp_path / "figures" / "words.webp") as image:
        assert image.format == "WEBP"
