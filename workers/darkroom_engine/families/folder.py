"""Model folders as save_pretrained writes them: reads them part by part, and says what is wrong with which file.

Takes safetensors only, runs no code from the folder, opens no connection.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from darkroom_engine.errors import ModelLoadError
from darkroom_engine.quiet import quiet

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


class ModelFolder:
    """A pipeline's folder. `name` is the model's, for the errors; each of them is a ModelLoadError."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        if not path.is_dir():
            raise ModelLoadError(name, f"there is no folder {path}")
        self._index = self._read_index()

    @property
    def components(self) -> set[str]:
        """The names of the parts that the folder holds."""
        return {name for name, place in self._index.items() if isinstance(place, list) and place[0] is not None}

    def check(self, component: str, files: tuple[str, ...]) -> None:
        """Refuse a component that is missing, comes from a foreign library, or has none of `files`."""
        if component not in self.components:
            raise ModelLoadError(self.name, f"{self.path / INDEX} names no {component}")
        library = self._index[component][0]
        if library not in LIBRARIES:
            raise ModelLoadError(
                self.name, f"{self.path / INDEX} takes {component} from {library!r}, and only {LIBRARIES} are allowed"
            )
        if not any((self.path / component / file).is_file() for file in files):
            raise ModelLoadError(self.name, f"{self.path / component} has no {' or '.join(files)}")

    def load(self, component: str, dtype: torch.dtype) -> Any:
        """Load a component that has weights, every one of them from the folder."""
        path = self.path / component
        self._check_weights(path)
        library, class_name = self._index[component]
        component_class = getattr(import_module(library), class_name, None)
        if component_class is None:
            raise ModelLoadError(self.name, f"{self.path / INDEX} names {class_name}, which {library} does not have")
        with self.reading(path):
            model, loading = component_class.from_pretrained(
                path, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        if loading["missing_keys"]:
            missing = sorted(loading["missing_keys"])
            raise ModelLoadError(self.name, f"{path} lacks {len(missing)} of its weights, among them {missing[0]}")
        return model

    @contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """Turn whatever diffusers and transformers raise over a broken file, which is anything, into one sentence."""
        try:
            with quiet():
                yield
        except Exception as error:
            raise ModelLoadError(self.name, f"{path}: {_first_line(error)}") from error

    def _read_index(self) -> Mapping[str, Any]:
        path = self.path / INDEX
        if not path.is_file():
            raise ModelLoadError(self.name, f"{self.path} has no {INDEX}")
        try:
            index = json.loads(path.read_bytes())
        except ValueError as error:
            raise ModelLoadError(self.name, f"{path} is not JSON: {error}") from error
        if not isinstance(index, dict):
            raise ModelLoadError(self.name, f"{path} is not a JSON object")
        return index

    def _check_weights(self, path: Path) -> None:
        files = sorted(path.iterdir())
        if any(file.suffix == ".safetensors" for file in files):
            return
        pickles = [file for file in files if file.suffix in PICKLE_SUFFIXES]
        if pickles:
            raise ModelLoadError(self.name, f"{pickles[0]} is a pickle, and only safetensors are loaded")
        raise ModelLoadError(self.name, f"{path} has no .safetensors file")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
