"""The model that comes with Darkroom: whole, small enough to travel, and what the catalog says of it."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from darkroom.catalog import BUILT_IN
from darkroom_engine import Engine, ModelLoadError, Request
from darkroom_engine.sources import SHIPPED_FOLDER
from darkroom_train.export import MAX_FILE_BYTES, OFFER, check_manifest

MAX_BYTES = 35 * 2**20
NAME = "darkroom-128"
FOLDER = SHIPPED_FOLDER / NAME


def test_every_file_is_what_the_manifest_says() -> None:
    assert check_manifest(FOLDER) == []


def test_it_is_small_enough_to_travel() -> None:
    sizes = [path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()]
    assert max(sizes) < MAX_FILE_BYTES
    assert sum(sizes) <= MAX_BYTES


def test_the_catalog_offers_it_as_its_folder_does() -> None:
    entry = tomllib.loads(BUILT_IN.read_text())["models"][NAME]
    offer = tomllib.loads((FOLDER / OFFER).read_text())
    assert entry["defaults"] == offer["defaults"]
    assert {name: entry["limits"][name] for name in offer["limits"]} == offer["limits"]
    assert entry["title"] == offer["title"]


def test_its_words_steer_the_picture() -> None:
    engine = Engine("cpu", num_threads=1)
    engine.load(NAME, source=f"shipped:{NAME}")
    engine.start()
    asked = {"width": 128, "height": 128, "num_inference_steps": 12, "guidance_scale": 3.0, "sampler": "dpmpp_2m"}
    prompts = ("the sea by day", "the sea at night")
    handles = [engine.submit(Request(model=NAME, prompt=prompt, seed=7, **asked)) for prompt in prompts]
    day, night = (handle.result(timeout=120).image for handle in handles)
    engine.stop()

    sky_by_day, sky_at_night = (np.asarray(picture)[:48].mean(axis=(0, 1)) for picture in (day, night))
    # The same noise under other words: by day the sky is far brighter, and bluer than red.
    assert sky_by_day.mean() > sky_at_night.mean() + 60
    assert sky_by_day[2] > sky_by_day[0] + 20


def test_a_model_that_does_not_come_along_is_named_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=rf"no model 'other' comes with the engine; known are: .*{NAME}"):
        Engine("cpu").load("mine", source="shipped:other")
