"""The evaluation: what counts as right, and that the table can be printed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Generator

from darkroom_train.evaluate import Evaluation, format_report, frechet_distance, held_out_prompts, judge
from darkroom_train.recognizer import QUESTIONS, Labels, encode_labels, labels_of
from darkroom_train.scenes import DOMAINS, Scene, sample_scene
from darkroom_train.workshop import Workshop

FULL = DOMAINS["full"]


@pytest.fixture
def scene_with() -> Callable[[str, int], Scene]:
    """Finds a scene of a layout with so many figures."""

    def find(layout: str, num_figures: int) -> Scene:
        scenes = (sample_scene(FULL, 1, index) for index in range(1000))
        fitting = (scene for scene in scenes if scene.layout == layout and len(scene.figures) == num_figures)
        num_colors = 1 if layout == "group" else num_figures
        return next(scene for scene in fitting if len({figure.color for figure in scene.figures}) == num_colors)

    return find


def swapped(labels: Labels, *questions: tuple[str, str]) -> Labels:
    answers = dict(labels.answers)
    for one, other in questions:
        answers[one], answers[other] = answers[other], answers[one]
    return Labels(answers)


def test_a_scene_is_right_about_itself() -> None:
    for index in range(100):
        scene = sample_scene(FULL, 1, index)
        assert all(judge(scene, labels_of(scene)).values())


def test_colors_exchanged_between_figures_are_wrong(scene_with: Callable[[str, int], Scene]) -> None:
    scene = scene_with("pair", 2)
    right = judge(scene, swapped(labels_of(scene), ("first_color", "second_color")))
    assert right == {"background": True, "layout": True, "color": False, "shape": True, "everything": False}


def test_order_does_not_count_in_a_landscape(scene_with: Callable[[str, int], Scene]) -> None:
    scene = scene_with("landscape", 2)
    exchanged = swapped(labels_of(scene), ("first_color", "second_color"), ("first_shape", "second_shape"))
    assert judge(scene, exchanged)["everything"]


def test_but_in_a_landscape_each_color_must_sit_on_its_shape(scene_with: Callable[[str, int], Scene]) -> None:
    scene = scene_with("landscape", 2)
    right = judge(scene, swapped(labels_of(scene), ("first_color", "second_color")))
    assert right["color"]
    assert not right["everything"]


def test_empty_landscape_has_no_color_to_be_wrong_about(scene_with: Callable[[str, int], Scene]) -> None:
    scene = scene_with("landscape", 0)
    assert set(judge(scene, labels_of(scene))) == {"background", "layout", "everything"}


def test_wrong_count_is_wrong_layout(scene_with: Callable[[str, int], Scene]) -> None:
    scene = scene_with("group", 3)
    found = Labels({**labels_of(scene).answers, "count": "2"})
    assert not judge(scene, found)["layout"]


def test_prompts_are_never_those_trained_on() -> None:
    known = {prompt.text for prompt in held_out_prompts(FULL, 1, 30, withheld=False, known=set())}
    fresh = held_out_prompts(FULL, 1, 30, withheld=False, known=known)
    assert not known & {prompt.text for prompt in fresh}


def test_labels_have_a_place_for_every_answer() -> None:
    labels = [labels_of(sample_scene(FULL, 1, index)) for index in range(200)]
    assert encode_labels(labels).shape == (200, len(QUESTIONS))


def test_distance_of_a_set_to_itself_is_zero_and_grows_with_a_shift() -> None:
    features = torch.randn((400, 6), generator=Generator().manual_seed(1))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features, features + 2) == pytest.approx(24, rel=1e-6)


def test_evaluation_prints_a_row_for_seen_withheld_and_the_ceiling(workshop: Workshop, tmp_path: Path) -> None:
    report = Evaluation(workshop, workshop.device).run(tmp_path)
    table = format_report(report)
    assert [row.split("|")[1].split()[0] for row in table.splitlines()[2:6]] == ["seen", "withheld", "ceiling", "judge"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "scores.json",
        "sheet-seen.png",
        "sheet-withheld.png",
        "table.md",
    ]
