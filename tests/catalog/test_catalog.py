"""Which models are on offer; what is wrong with a catalog is told with the file and the entry."""

import json
from pathlib import Path

import pytest

from darkroom.catalog import Catalog
from darkroom.config import load_settings
from darkroom.errors import CatalogError, UnknownModel

GOOD = """
[models.mine]
family = "sd"
source = "somebody/something"
"""


def load(path: Path, text: str) -> Catalog:
    file = path / "models.toml"
    file.write_text(text)
    return Catalog.load(load_settings(home=path, catalog=file))


def test_built_in_catalog_has_a_default() -> None:
    catalog = Catalog.load(load_settings())
    assert catalog.default == catalog.models[0]
    assert catalog.get(catalog.default.name) == catalog.default
    assert all(entry.license for entry in catalog.models)


def test_operators_models_are_added(tmp_path: Path) -> None:
    catalog = load(tmp_path, GOOD)
    entry = catalog.get("mine")
    assert (entry.title, entry.family, entry.source) == ("mine", "sd", "somebody/something")
    assert catalog.default.name != "mine"


def test_operator_chooses_the_default(tmp_path: Path) -> None:
    catalog = load(tmp_path, 'default = "mine"' + GOOD)
    assert catalog.default.name == "mine"
    assert catalog.models[0].name == "mine"


def test_operator_may_replace_a_built_in_model(tmp_path: Path) -> None:
    name = Catalog.load(load_settings()).default.name
    assert load(tmp_path, GOOD.replace("mine", name)).default.source == "somebody/something"


def test_source_that_is_a_folder_beside_the_catalog_is_found(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    assert load(tmp_path, GOOD.replace("somebody/something", "weights")).get("mine").source == str(tmp_path / "weights")


WRONG = {
    "no TOML": ("models = [", "models.toml"),
    "models is a list": ("models = [1]", "models must be tables"),
    "entry is no table": ("[models]\nmine = 3", "models.mine"),
    "no family": ('[models.mine]\nsource = "x"', "models.mine.family"),
    "no source": ('[models.mine]\nfamily = "sd"', "models.mine.source"),
    "bad name": (GOOD.replace("mine", '"My Model"'), "models.My Model.name"),
    "unknown key": (GOOD + "colour = 1", "models.mine.colour"),
    "unknown limit": (GOOD + "[models.mine.limits]\nmax = 1", "models.mine.limits.max"),
    "limit below its least": (GOOD + "[models.mine.limits]\nmax_steps = 0", "models.mine.limits.max_steps"),
    "default size too large": (GOOD + "[models.mine.defaults]\nwidth = 4096", "default size 4096x512"),
    "default size no multiple": (GOOD + "[models.mine.defaults]\nwidth = 513", "default size 513x512"),
    "default area too large": (GOOD + "[models.mine.limits]\nmax_pixels = 4096", "more than 4096 pixels"),
    "default sampler unknown": (GOOD + '[models.mine.defaults]\nsampler = "x"', "default sampler 'x'"),
    "default steps too many": (GOOD + "[models.mine.defaults]\nnum_inference_steps = 151", "default steps 151"),
    "default steps too few": (GOOD + "[models.mine.defaults]\nnum_inference_steps = 0", "default steps 0"),
    "default guidance too large": (GOOD + "[models.mine.defaults]\nguidance_scale = 31", "default guidance 31"),
    "default guidance negative": (GOOD + "[models.mine.defaults]\nguidance_scale = -1", "default guidance -1"),
    "default model unknown": ('default = "other"' + GOOD, "default model 'other'"),
    "default model no text": ("default = [1]" + GOOD, "default model '[1]'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_catalog_is_refused_with_file_and_entry(tmp_path: Path, what: str) -> None:
    text, named = WRONG[what]
    with pytest.raises(CatalogError) as refusal:
        load(tmp_path, text)
    assert named in str(refusal.value)
    assert "models.toml" in str(refusal.value)


def test_catalog_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"absent\.toml: No such file"):
        Catalog.load(load_settings(catalog=tmp_path / "absent.toml"))
    (tmp_path / "latin.toml").write_bytes(b"title = '\xe9'")
    with pytest.raises(CatalogError, match=r"latin\.toml: is not UTF-8"):
        Catalog.load(load_settings(catalog=tmp_path / "latin.toml"))


def test_folders_of_models_are_on_offer(tmp_path: Path) -> None:
    (tmp_path / "houses").mkdir()
    (tmp_path / "houses/model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (tmp_path / "notes").mkdir()
    entry = Catalog.load(load_settings(models_dir=tmp_path)).get("houses")
    assert (entry.family, entry.source) == ("sd", str(tmp_path / "houses"))


def test_model_in_a_folder_says_itself_how_it_draws_best(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small/model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    words = tmp_path / "small/darkroom.toml"
    words.write_text('title = "Small"\nfamily = "flux"\n[defaults]\nwidth = 64\nheight = 64\n')
    entry = Catalog.load(load_settings(models_dir=tmp_path)).get("small")
    assert (entry.title, entry.family, entry.defaults.width) == ("Small", "sd", 64)
    words.write_text("wide = 64\n")
    with pytest.raises(CatalogError, match=r"models\.small\.wide"):
        Catalog.load(load_settings(models_dir=tmp_path))


@pytest.mark.parametrize("index", ["", "[]", "{}", "null", '{"_class_name": "MyModel"}', '{"_class_name": []}'])
def test_folder_of_a_model_that_nobody_develops_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/model_index.json").write_text(index)
    with pytest.raises(CatalogError, match=r"odd/model_index\.json: names no pipeline"):
        Catalog.load(load_settings(models_dir=tmp_path))


def test_a_folder_takes_what_its_family_says(tmp_path: Path) -> None:
    for name, pipeline in {"dev": "FluxPipeline", "aura": "AuraFlowPipeline"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    catalog = Catalog.load(load_settings(models_dir=tmp_path))
    dev, aura = catalog.get("dev"), catalog.get("aura")
    assert (dev.family, dev.defaults.sampler, dev.limits.size_multiple) == ("flux", "euler", 16)
    assert "img2img" in dev.features
    assert (aura.family, aura.limits.samplers, aura.features) == ("whole", ("default",), frozenset())


def test_an_entry_says_more_than_its_family(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(
        '[models.turbo]\nfamily = "z-image"\nsource = "x/y"\nfeatures = []\n'
        "defaults = { num_inference_steps = 8, guidance_scale = 0 }\nlimits = { max_steps = 20 }\n"
    )
    turbo = Catalog.load(load_settings(catalog=file)).get("turbo")
    assert (turbo.defaults.num_inference_steps, turbo.defaults.guidance_scale, turbo.defaults.width) == (8, 0, 1024)
    assert (turbo.limits.max_steps, turbo.limits.size_multiple) == (20, 16)
    assert not turbo.features


def test_folder_of_models_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no such folder of models"):
        Catalog.load(load_settings(models_dir=tmp_path / "absent"))


@pytest.mark.parametrize("name", ["", "DARKROOM-SEEDED", "../etc", "x" * 10_000])
def test_unknown_model_is_answered_with_the_known_ones(name: str) -> None:
    catalog = Catalog.load(load_settings())
    with pytest.raises(UnknownModel) as refusal:
        catalog.get(name)
    assert refusal.value.known == tuple(entry.name for entry in catalog.models)
