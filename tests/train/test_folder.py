"""Folders of captioned pictures: what is read, and what is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darkroom_train.errors import FolderError, PictureError
from darkroom_train.folder import MIN_PICTURES, read_folder, read_picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As many good pictures as are needed."""
    for number in range(MIN_PICTURES):
        Image.new("RGB", (40 + number, 50), (10 * number, 90, 30)).save(tmp_path / f"{number}.png")
    write_metadata(tmp_path, [{"file_name": f"{number}.png", "text": f"picture {number}"} for number in range(16)])
    return tmp_path


def write_metadata(folder: Path, entries: list[dict[str, object]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def add(folder: Path, name: str, **fields: object) -> None:
    with (folder / "metadata.jsonl").open("a") as metadata:
        metadata.write(json.dumps({"file_name": name, "text": "one more", **fields}) + "\n")


def test_pictures_of_mixed_sizes_become_squares_of_one_size(folder: Path) -> None:
    reading = read_folder(folder, 32)
    assert {picture.shape for picture in reading.pictures} == {(3, 32, 32)}
    assert reading.captions[3] == "picture 3"
    assert reading.pictures[3][0, 0, 0] == 30


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.array_equal(read_picture(tmp_path / "clear.png", 32), np.full((3, 32, 32), 255))


def save_animated(path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), (shade, 0, 0)) for shade in (0, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def save_cut_short(path: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:2000])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "animated.gif": (save_animated, "animated"),
    "cmyk.jpg": (lambda path: Image.new("CMYK", (40, 40)).save(path), "CMYK"),
    "deep.png": (lambda path: Image.fromarray(np.zeros((40, 40), dtype=np.uint16)).save(path), "16 or more bits"),
    "small.png": (lambda path: Image.new("RGB", (40, 20)).save(path), "40x20, smaller than the 32 pixels"),
    "text.png": (lambda path: path.write_text("no picture"), "no picture that can be read"),
    "short.png": (save_cut_short, "broken"),
    "absent.png": (lambda path: None, "is not there"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_picture_is_refused_by_name(folder: Path, name: str) -> None:
    save, problem = BAD[name]
    save(folder / name)
    add(folder, name)
    with pytest.raises(PictureError, match=f"{name} .*{problem}"):
        read_folder(folder, 32)


@pytest.mark.parametrize("name", BAD)
def test_skip_bad_leaves_it_out_and_says_why(folder: Path, name: str) -> None:
    save, problem = BAD[name]
    save(folder / name)
    add(folder, name)
    reading = read_folder(folder, 32, skip_bad=True)
    assert len(reading.pictures) == MIN_PICTURES
    (skipped,) = reading.skipped
    assert problem in skipped


@pytest.mark.parametrize("text", [None, "", "  ", 5])
def test_missing_caption_is_refused(folder: Path, text: object) -> None:
    add(folder, "3.png", text=text)
    with pytest.raises(PictureError, match=r"3\.png has no caption: line 17 of metadata\.jsonl"):
        read_folder(folder, 32)


def test_line_that_is_no_json_is_refused_with_its_number(folder: Path) -> None:
    with (folder / "metadata.jsonl").open("a") as metadata:
        metadata.write("{broken\n")
    with pytest.raises(PictureError, match="line 17 is not JSON"):
        read_folder(folder, 32)


def test_picture_outside_the_folder_is_refused(folder: Path) -> None:
    add(folder, "../other.png")
    with pytest.raises(PictureError, match=r"line 17: \.\./other\.png lies outside the folder"):
        read_folder(folder, 32)


def test_too_few_pictures_are_refused_with_the_number_skipped(folder: Path) -> None:
    (folder / "0.png").unlink()
    with pytest.raises(FolderError, match="has 15 usable pictures, 1 were skipped; training needs at least 16"):
        read_folder(folder, 32, skip_bad=True)


def test_folder_without_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"has no metadata\.jsonl"):
        read_folder(tmp_path, 32)
