"""Drawn scenes: reproducible, true to their captions, nothing withheld in training."""

import numpy as np
import pytest

from darkroom_train.captions import POSITION_WORDS, RELATION_WORDS, SHAPE_WORDS, caption
from darkroom_train.drawing import draw
from darkroom_train.errors import UnknownDomain
from darkroom_train.figures import FIGURES, PALETTE
from darkroom_train.scenes import COLORS, DOMAINS, SHAPES, Domain, get_domain, sample_scene

FULL = DOMAINS["full"]


def test_scene_and_caption_and_picture_come_from_seed_and_index_alone() -> None:
    first, second = (sample_scene(FULL, 5, 17) for _ in range(2))
    assert first == second
    assert caption(first, 1) == caption(second, 1)
    assert np.array_equal(draw(first, 32), draw(second, 32))


def test_another_index_gives_another_scene() -> None:
    assert len({sample_scene(FULL, 5, index) for index in range(50)}) == 50


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS.keys())
def test_withheld_pairs_are_never_drawn_for_training(domain: Domain) -> None:
    drawn = {(figure.color, figure.shape) for index in range(2000) for figure in sample_scene(domain, 1, index).figures}
    assert not drawn & set(domain.withheld)


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS.keys())
def test_withheld_scenes_begin_with_a_withheld_pair(domain: Domain) -> None:
    for index in range(100):
        figure = sample_scene(domain, 1, index, withheld=True).figures[0]
        assert (figure.color, figure.shape) in domain.withheld


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS.keys())
def test_every_word_of_a_domain_is_drawn(domain: Domain) -> None:
    scenes = [sample_scene(domain, 1, index) for index in range(3000)]
    figures = [figure for scene in scenes for figure in scene.figures]
    assert {figure.shape for figure in figures} == set(domain.shapes)
    assert {figure.color for figure in figures} == set(domain.colors)
    assert {scene.layout for scene in scenes} == set(domain.layouts)
    assert {scene.style for scene in scenes} == set(domain.styles)


def test_complete_caption_names_every_figure() -> None:
    for index in range(200):
        scene = sample_scene(FULL, 2, index)
        text = caption(scene, index, complete=True)
        for figure in scene.figures:
            assert any(word in text or "butterflies" in text for word in SHAPE_WORDS[figure.shape]), text


def test_complete_caption_of_a_single_says_where_it_is() -> None:
    for index in range(200):
        scene = sample_scene(FULL, 2, index)
        if scene.position is not None:
            assert any(words in caption(scene, index, complete=True) for words in POSITION_WORDS[scene.position])


def test_relation_is_said_from_either_side_and_holds_in_the_picture() -> None:
    sides = set()
    for index in range(300):
        scene = sample_scene(FULL, 3, index)
        if scene.relation is None:
            continue
        first, second = scene.figures
        assert first.x < second.x if scene.relation == "left of" else first.y < second.y
        text = f" {caption(scene, index, complete=True)} "
        forward, backward = (any(f" {words} " in text for words in said) for said in RELATION_WORDS[scene.relation])
        assert forward != backward, text
        comes_first = any(f" {word} " in text.split(" of ")[0] for word in SHAPE_WORDS[first.shape])
        if scene.relation == "left of" and "a " + "drawing of" not in text and "picture of" not in text:
            assert comes_first == forward or "illustration of" in text, text
        sides.add((scene.relation, forward))
    assert len(sides) == 4


def test_captions_drop_attributes_and_vary() -> None:
    scene = next(s for s in (sample_scene(FULL, 1, index) for index in range(50)) if s.layout == "single")
    texts = {caption(scene, seed) for seed in range(100)}
    assert len(texts) > 30
    assert any("background" in text for text in texts)
    assert any("background" not in text for text in texts)


def test_both_sizes_show_the_same_scene() -> None:
    for index in range(8):
        scene = sample_scene(FULL, 9, index)
        large = draw(scene, 128).reshape(3, 64, 2, 64, 2).mean(axis=(2, 4))
        difference = np.abs(large - draw(scene, 64))
        assert difference.mean() < 4, index  # of 255: edges fall on other pixels


def test_every_shape_and_color_can_be_drawn() -> None:
    assert tuple(FIGURES) == SHAPES
    assert tuple(PALETTE) == COLORS


def test_unknown_domain_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownDomain, match="'space'; known are: tiny, floor, full"):
        get_domain("space")
