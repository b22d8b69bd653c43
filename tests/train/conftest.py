"""A recipe so small that every stage takes a second, and what it leaves, made once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from darkroom_train.group import Group
from darkroom_train.recipe import read_recipe
from darkroom_train.workshop import Conditions, Workshop

SMALL = Path(__file__).with_name("small.toml")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several threads, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def recipe_path() -> Path:
    return SMALL


@pytest.fixture(scope="session")
def make_workshop(recipe_path: Path) -> Callable[[Path], Workshop]:
    """Opens workshops of the small recipe."""

    def make(folder: Path) -> Workshop:
        return Workshop(read_recipe(recipe_path), recipe_path, folder, Conditions(Group()))

    return make


@pytest.fixture(scope="session")
def workshop(make_workshop: Callable[[Path], Workshop], tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A workshop in which every stage has run."""
    opened = make_workshop(tmp_path_factory.mktemp("workshop"))
    for stage in (opened.data, opened.tokenizer, opened.autoencoder, opened.text_encoder, opened.denoiser):
        assert stage()
    assert opened.recognizer()
    return opened
