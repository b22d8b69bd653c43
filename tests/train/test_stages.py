"""The whole way: every stage of a small recipe, and what the next ones find."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from darkroom_engine.noising import NoiseSchedule
from darkroom_train.cli import main
from darkroom_train.data import Drawing, draw_store
from darkroom_train.denoiser import build_noise_scheduler, drop_captions, sample_positions
from darkroom_train.errors import StageMissing
from darkroom_train.latents import count_latents, load_latents
from darkroom_train.store import SHARD_PICTURES, PictureStore, count_pictures, shard_path, write_shard
from darkroom_train.text_encoder import contrastive_loss
from darkroom_train.training import CHECKPOINT
from darkroom_train.workshop import Workshop

CPU = torch.device("cpu")


def test_store_gives_back_what_was_written(tmp_path: Path) -> None:
    pictures = list(np.random.default_rng(1).integers(0, 255, (3, 3, 16, 16), dtype=np.uint8))
    write_shard(shard_path(tmp_path, 0), pictures, [["one"], ["two", "zwei"], ["drei"]])
    store = PictureStore(tmp_path)
    assert np.array_equal(store.pictures(0, 3), np.stack(pictures))
    assert store.captions == [["one"], ["two", "zwei"], ["drei"]]
    assert count_pictures(tmp_path) == len(store) == 3


def test_drawing_goes_on_where_it_ended(tmp_path: Path) -> None:
    drawing = Drawing("tiny", 1, 16, 1)
    draw_store(tmp_path, drawing, SHARD_PICTURES, processes=1, report=lambda *_: None)
    first = shard_path(tmp_path, 0).stat().st_mtime_ns
    draw_store(tmp_path, drawing, SHARD_PICTURES + 1, processes=1, report=lambda *_: None)
    assert shard_path(tmp_path, 0).stat().st_mtime_ns == first
    assert len(PictureStore(tmp_path)) == 2 * SHARD_PICTURES


def test_several_processes_draw_the_same_pictures(tmp_path: Path) -> None:
    drawing = Drawing("tiny", 1, 16, 1)
    for processes, name in ((1, "one"), (2, "two")):
        draw_store(tmp_path / name, drawing, SHARD_PICTURES, processes=processes, report=lambda *_: None)
    one, two = (shard_path(tmp_path / name, 0).read_bytes() for name in ("one", "two"))
    assert one == two


def test_latents_are_of_unit_variance(workshop: Workshop) -> None:
    latents = load_latents(workshop.folder / "latents" / "train.safetensors", CPU)
    deviation, mean = torch.std_mean(latents.latents.float(), dim=(0, 2, 3))
    # A quarter: the scale is measured on the 64 pictures that this recipe trains with, of 256.
    assert torch.allclose(deviation, torch.ones(4), atol=0.25)
    assert torch.allclose(mean, torch.zeros(4), atol=0.25)
    assert latents.tokens.shape == (256, 4, 16)


def test_latents_are_made_again_when_there_are_more_pictures(
    make_workshop: Callable[[Path], Workshop], workshop: Workshop, tmp_path: Path
) -> None:
    shutil.copytree(workshop.folder, tmp_path / "copy")
    copy = make_workshop(tmp_path / "copy")
    path = copy.folder / "latents" / "train.safetensors"
    before = path.stat().st_mtime_ns
    copy.latents()
    assert path.stat().st_mtime_ns == before
    shutil.copy(shard_path(copy.folder / "data" / "train", 0), shard_path(copy.folder / "data" / "train", 1))
    copy.latents()
    assert count_latents(path) == 2 * SHARD_PICTURES


def test_finished_stage_is_not_run_again(workshop: Workshop) -> None:
    path = workshop.folder / "denoiser" / CHECKPOINT
    before = path.stat().st_mtime_ns
    assert workshop.denoiser()
    assert path.stat().st_mtime_ns == before


def test_samples_are_left_to_look_at(workshop: Workshop) -> None:
    (sheet,) = (workshop.folder / "denoiser" / "samples").glob("*.png")
    with Image.open(sheet) as image:
        assert image.size[0] > 6 * 32


def test_stage_names_the_one_it_needs(make_workshop: Callable[[Path], Workshop], tmp_path: Path) -> None:
    with pytest.raises(StageMissing, match="run `darkroom-train data` first"):
        make_workshop(tmp_path).tokenizer()
    with pytest.raises(StageMissing, match="run `darkroom-train denoiser` first"):
        make_workshop(tmp_path).pipeline()


def test_same_captions_of_different_pictures_are_no_wrong_answers() -> None:
    tokens = torch.tensor([[1, 2], [1, 2], [3, 4]])
    likeness = torch.tensor([[9.0, 9.0, 0.0], [9.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    assert contrastive_loss(likeness, tokens) < 0.001


def test_captions_are_dropped_as_often_as_said() -> None:
    tokens, empty = torch.ones((4000, 2), dtype=torch.long), torch.zeros(2, dtype=torch.long)
    dropped = drop_captions(tokens, empty, 0.1, torch.Generator().manual_seed(1))
    assert float((dropped == 0).all(dim=1).float().mean()) == pytest.approx(0.1, abs=0.02)


def test_timesteps_stay_in_the_schedule_and_crowd_where_there_is_most_to_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    positions = sample_positions(4000, uniform_part=0.2, logit_mean=-0.4, generator=generator)
    timesteps = NoiseSchedule.of(build_noise_scheduler("v_prediction")).timesteps(positions)
    assert int(timesteps.min()) >= 0
    assert int(timesteps.max()) < 1000
    middle = ((timesteps > 200) & (timesteps < 700)).float().mean()
    assert float(middle) > 0.6


def test_the_last_timestep_leaves_nothing_of_the_picture() -> None:
    schedule = NoiseSchedule.of(build_noise_scheduler("v_prediction"))
    assert float(schedule.alphas_cumprod[-1]) < 1e-4


def test_command_line_runs_a_stage_and_plots_its_log(recipe_path: Path, tmp_path: Path, workshop: Workshop) -> None:
    runner = CliRunner()
    words = ["--recipe", str(recipe_path), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert runner.invoke(main, ["data", *words]).exit_code == 0
    plotted = tmp_path / "plot.png"
    result = runner.invoke(main, ["plot", str(workshop.folder / "autoencoder"), "--output", str(plotted)])
    assert result.exit_code == 0, result.output
    with Image.open(plotted) as image:
        assert image.size[0] > 500


def test_command_line_says_an_expected_error_in_one_sentence(recipe_path: Path, tmp_path: Path) -> None:
    words = ["--recipe", str(recipe_path), "--output", str(tmp_path / "out"), "--device", "cpu"]
    result = CliRunner().invoke(main, ["denoiser", *words])
    assert result.exit_code == 1
    assert "run `darkroom-train tokenizer` first" in result.output
    assert "Traceback" not in result.output


def test_folder_of_pictures_is_split_into_train_and_held_out(recipe_path: Path, tmp_path: Path) -> None:
    entries = []
    for number in range(40):
        Image.new("RGB", (48, 32), (6 * number, 0, 0)).save(tmp_path / f"{number}.png")
        entries.append(json.dumps({"file_name": f"{number}.png", "text": f"number {number}"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(entries))
    recipe = tmp_path / "recipe.toml"
    small = recipe_path.read_text()
    recipe.write_text(small.replace('domain = "tiny"', f'source = "folder"\nfolder = "{tmp_path}"'))
    result = CliRunner().invoke(main, ["data", "--recipe", str(recipe), "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert len(PictureStore(tmp_path / "out" / "data" / "train")) == 38
    assert PictureStore(tmp_path / "out" / "data" / "held-out").captions == [["number 0"], ["number 1"]]
