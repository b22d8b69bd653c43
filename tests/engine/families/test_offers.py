"""The platform's table of families and the engine's own say the same, though neither imports the other."""

from tiny_pipelines import TINY_FAMILIES, TinyFamily

from darkroom.catalog import (
    DEFAULTS_OF_FAMILY,
    FAMILY_OF_PIPELINE,
    FEATURES_OF_FAMILY,
    LIMITS_OF_FAMILY,
    WHOLE,
    ModelEntry,
)
from darkroom_engine import Engine
from darkroom_engine.models import FAMILIES

# What the engine does for every family that is not run whole, and does not list.
FOR_ALL_BUT_WHOLE = {"exact", "preview", "walk"}
REAL_VAE_MULTIPLE = 8


def entry(family: str) -> ModelEntry:
    return ModelEntry.model_validate({"name": "mine", "title": "mine", "family": family, "source": "x/y"})


def test_both_know_the_same_pipeline_classes() -> None:
    engines = {pipeline: family.family for family in FAMILIES.values() for pipeline in family.pipelines}
    assert dict(FAMILY_OF_PIPELINE) == engines
    assert {*FEATURES_OF_FAMILY, WHOLE} == set(FAMILIES)
    assert {*DEFAULTS_OF_FAMILY, *LIMITS_OF_FAMILY} <= set(FAMILIES)


def test_every_family_is_tested() -> None:
    assert {tiny.family for tiny in TINY_FAMILIES.values()} == set(FAMILIES)


def test_what_a_family_offers_its_engine_does(engine: Engine, name: str, tiny: TinyFamily) -> None:
    loaded = engine.models[name]
    offered = entry(loaded.family)
    assert set(offered.limits.samplers) <= set(loaded.samplers)
    assert offered.features - FOR_ALL_BUT_WHOLE == loaded.features
    assert (offered.features >= FOR_ALL_BUT_WHOLE) == (loaded.family != WHOLE)
    if loaded.family != "sana":  # whose pipeline asks for 32 whatever its autoencoder does
        assert offered.limits.size_multiple % (loaded.latent_multiple // tiny.vae_multiple * REAL_VAE_MULTIPLE) == 0
