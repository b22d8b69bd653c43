"""The platform names the samplers without loading the engine: both must say the same."""

from darkroom.sampler_titles import name_of, title_of
from darkroom_engine.samplers import DISCRETE_SAMPLERS, EDM_SAMPLERS, FLOW_SAMPLERS


def test_platform_and_engine_call_the_samplers_the_same() -> None:
    for samplers in (DISCRETE_SAMPLERS, FLOW_SAMPLERS, EDM_SAMPLERS):
        for name, sampler in samplers.items():
            assert title_of(name) == sampler.title
            assert name_of(sampler.title) == name
