"""The figure "same noise, different words", made from the model that is built by code."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from darkroom_engine import Engine
from darkroom_train.cli import main
from darkroom_train.walk import MARGIN, MODEL, Walking, strip, walks

PROMPTS = ("a red house", "a blue boat at night")
WALKING = Walking(seed=7, size=32, num_inference_steps=4, guidance_scale=3.0, sampler="euler", num_frames=3)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    opened = Engine("cpu")
    opened.load(MODEL, source="seeded:7")
    yield opened
    opened.stop()


def test_walks_begin_with_one_noise_and_end_in_pictures_of_their_own(engine: Engine) -> None:
    house, boat = walks(engine, PROMPTS, WALKING)
    assert house.shape == (3, 32, 32, 3)
    assert np.abs(house[0].astype(int) - boat[0]).max() <= 1  # decoded in one batch: sums of another order
    assert np.abs(house[-1].astype(int) - boat[-1]).max() > 10


def test_strip_has_every_frame_in_its_place_and_the_words_above(engine: Engine) -> None:
    several = walks(engine, PROMPTS, WALKING)
    sheet = np.asarray(strip(several, PROMPTS, WALKING))
    assert sheet.shape[1] == MARGIN + 3 * (32 + MARGIN)
    last_row = sheet[-MARGIN - 32 : -MARGIN]
    for number in range(3):
        left = MARGIN + number * (32 + MARGIN)
        assert np.array_equal(last_row[:, left : left + 32], several[1][number])
    bare = np.asarray(strip(several, ("", ""), WALKING))
    assert not np.array_equal(sheet, bare)


def test_command_line_writes_the_strip(tmp_path: Path) -> None:
    words = ["--model", "seeded:7", "--size", "32", "--steps", "2", "--frames", "2", "--device", "cpu"]
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    result = CliRunner().invoke(main, ["walk", *words, *prompts, "--output", str(tmp_path / "strip.png")])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "strip.png") as image:
        assert image.size[0] == MARGIN + 2 * (32 + MARGIN)


def test_command_line_says_what_is_no_model(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["walk", "--model", str(tmp_path / "none"), "--prompt", "x"])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
