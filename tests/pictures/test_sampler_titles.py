"""The titles of samplers, and that the engine says the same."""

import pytest

from darkroom.sampler_titles import name_of, title_of
from darkroom_engine.samplers import DISCRETE_SAMPLERS, EDM_SAMPLERS, FLOW_SAMPLERS

ENGINE = {
    name: sampler.title for table in (DISCRETE_SAMPLERS, FLOW_SAMPLERS, EDM_SAMPLERS) for name, sampler in table.items()
}


@pytest.mark.parametrize("name", ENGINE)
def test_title_is_the_engines_and_leads_back(name):
    assert title_of(name) == ENGINE[name]
    assert name_of(ENGINE[name]) == name


@pytest.mark.parametrize(
    ("title", "spacing", "name"),
    [
        ("DPM++ 2M", "Karras", "dpmpp_2m_karras"),
        ("dpm++ 2m karras", "", "dpmpp_2m_karras"),
        ("Euler", "Automatic", "euler"),
        ("Euler", "", "euler"),
        ("Euler a", "Karras", "euler_a_karras"),
        ("Nobody's", "Karras", None),
        ("", "", None),
        ("Karras", "", None),
    ],
)
def test_title_is_read_as_people_write_it(title, spacing, name):
    assert name_of(title, spacing=spacing) == name


def test_sampler_without_a_title_is_called_by_its_name():
    assert title_of("new_thing") == "new_thing"
