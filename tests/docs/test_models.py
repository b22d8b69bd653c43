"""docs/models.md says of each family what the engine and the catalog say."""

import re
from pathlib import Path

import pytest

from darkroom.catalog import FAMILY_OF_PIPELINE, Catalog, ModelEntry
from darkroom.config import load_settings
from darkroom_engine.models import FAMILIES
from darkroom_engine.samplers import DISCRETE_SAMPLERS, FLOW_SAMPLERS, OWN_SAMPLERS, SPACINGS

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
KINDS = {"discrete": DISCRETE_SAMPLERS, "flow": FLOW_SAMPLERS, "own": OWN_SAMPLERS}


def rows() -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| `")]
    return {first.strip("`"): others for first, *others in cells}


def entry(family: str) -> ModelEntry:
    return ModelEntry.model_validate({"name": "mine", "title": "mine", "family": family, "source": "x/y"})


def test_every_family_has_a_row() -> None:
    assert list(rows()) == list(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_row_says_what_it_takes(family: str) -> None:
    pipelines, features, samplers, multiple, _ = rows()[family]
    offered = entry(family)
    assert re.findall(r"`(\w+)`", pipelines) == [name for name, known in FAMILY_OF_PIPELINE.items() if known == family]
    assert features == ", ".join(sorted(offered.features))
    assert set(offered.limits.samplers) <= set(KINDS[samplers])
    assert multiple == str(offered.limits.size_multiple)


@pytest.mark.parametrize("kind", KINDS)
def test_every_sampler_is_on_the_page(kind: str) -> None:
    [paragraph] = re.findall(rf"(?ms)^- \*\*{kind}\*\*.*?(?=^- \*\*|^$)", PAGE)
    said = set(re.findall(r"`([a-z]\w*)`", paragraph))
    spacings = tuple(f"_{suffix}" for suffix in SPACINGS)
    assert said == {name for name in KINDS[kind] if not name.endswith(spacings)}


def test_the_example_of_a_catalog_is_taken(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "catalog.toml").write_text(example)
    catalog = Catalog.load(load_settings(home=tmp_path, catalog=tmp_path / "catalog.toml"))
    assert catalog.default.name == "paintings"
    assert catalog.default.tuning.cuda_graphs
    assert set(catalog.default.loras) == {"ink"}
