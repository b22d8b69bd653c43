"""Recipes: those that come along can be followed, and every mistake is refused with its line."""

from dataclasses import replace
from pathlib import Path

import pytest

from darkroom_train.errors import RecipeError
from darkroom_train.recipe import RECIPES, as_stored, differences, find_recipe, read_recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_recipe_that_comes_along_can_be_read(path: Path) -> None:
    assert read_recipe(path).name


def line_of(text: str, start: str) -> int:
    return 1 + next(number for number, line in enumerate(text.splitlines()) if line.startswith(start))


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("seed = 3", "sede = 3", "'sede' is unknown; known are: name"),
        ("crop = 16", "corp = 16", r"'corp' is unknown in \[autoencoder\]"),
        ("crop = 16", "crop = 20", "must be a multiple of 8"),
        ("width = 32", "width = 30", "multiple of heads"),
        ("vocabulary = 560", "vocabulary = 20", "vocabulary is 20, and must be from 516 to 49408"),
        ("vocabulary = 560", 'vocabulary = "many"', "vocabulary is 'many', and must be int"),
        ("vocabulary = 560", "vocabulary = true", "vocabulary is True, and must be int"),
        ('domain = "tiny"', 'domain = "space"', "must be one of tiny, floor, full"),
        ("size = 32", "size = 40", "must be a multiple of 16"),
        ("channels = [32, 32]", "channels = [32, 40]", "multiples of norm_groups"),
        ("attention = [false, true]", "attention = [1, 0]", "must be a list of bool"),
    ],
)
def test_mistake_is_refused_with_its_line(
    recipe_path: Path, tmp_path: Path, before: str, after: str, problem: str
) -> None:
    path = tmp_path / "recipe.toml"
    text = recipe_path.read_text().replace(before, after)
    path.write_text(text)
    with pytest.raises(RecipeError, match=problem) as refusal:
        read_recipe(path)
    assert refusal.value.line == line_of(text, after)


def test_missing_key_is_refused_with_the_line_of_its_table(recipe_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_path.read_text().replace("max_length = 16\n", "").replace("num_pictures = 256\n", ""))
    with pytest.raises(RecipeError, match=r"line 5: \[data\] lacks num_pictures"):
        read_recipe(path)


def test_what_is_not_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("name = \n")
    with pytest.raises(RecipeError, match=r"is not TOML.*line 1"):
        read_recipe(path)


def test_unknown_recipe_is_refused_with_those_that_come_along() -> None:
    with pytest.raises(RecipeError, match="default-cpu, default-gpu, laptop"):
        find_recipe("nothing-of-that-name")


def test_checkpoint_from_before_a_key_was_there_has_the_keys_default(recipe_path: Path) -> None:
    section = read_recipe(recipe_path).distill
    stored = {key: value for key, value in as_stored(section).items() if key != "lora_rank"}
    assert differences(section, stored) == []
    assert differences(replace(section, lora_rank=4), stored) == ["lora_rank"]
