"""Model folders as save_pretrained writes them: reads them part by part, and says what is wrong with which file.

Takes safetensors only, runs no code from the folder, opens no connection.
"""

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open

from darkroom_engine.errors import ModelLoadError, first_sentence
from darkroom_engine.families.base import Family
from darkroom_engine.quiet import quiet
from darkroom_engine.sources import INDEX

WEIGHTED = "config.json"  # a part that is described by this file has weights beside it
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
    def pipeline_class(self) -> str:
        """The name of the diffusers class that the folder was saved from."""
        name = self._index.get("_class_name")
        if not isinstance(name, str):
            raise ModelLoadError(self.name, f"{self.path / INDEX} names no pipeline class")
        return name

    def load_pipeline(self, family: type[Family], dtype: torch.dtype) -> Any:
        """Build the pipeline from its parts; those that the family leaves out are not read."""
        if not family.components:
            return self._load_any_pipeline(dtype)
        foreign = sorted(self.components - set(family.components) - set(family.left_out))
        if foreign:
            raise ModelLoadError(
                self.name,
                f"{self.path / INDEX} has parts that family {family.family!r} does not know: {', '.join(foreign)}",
            )
        if self.settings.get("requires_aesthetics_score"):
            raise ModelLoadError(self.name, f"{self.path} is a refiner, which only finishes what another model began")
        absent = family.optional - self.components
        present = {component: files for component, files in family.components.items() if component not in absent}
        for component, files in present.items():
            self.check(component, files)
        parts = {
            component: self.load_weights(component, dtype) if WEIGHTED in files else self.load(component)
            for component, files in present.items()
        }
        without = dict.fromkeys(absent) | dict(family.left_out)
        with quiet():
            return getattr(diffusers, self.pipeline_class)(**(self.settings | parts | without))

    def _load_any_pipeline(self, dtype: torch.dtype) -> Any:
        """Build a pipeline of whose parts nothing is known but what the folder says."""
        for component in self.components:
            self.check(component, ())
            self.check(component, (WEIGHTED,) if self._has_weights(component) else ())
        parts = {
            component: self.load_weights(component, dtype) if self._has_weights(component) else self.load(component)
            for component in sorted(self.components)
        }
        with self._reading(self.path):
            return getattr(diffusers, self.pipeline_class)(**(self.settings | dict.fromkeys(self._absent) | parts))

    def _has_weights(self, component: str) -> bool:
        component_class = self._class_of(component)
        return isinstance(component_class, type) and issubclass(component_class, torch.nn.Module)

    @property
    def _absent(self) -> set[str]:
        """The names of the parts that the folder might hold, and does not."""
        return {name for name, place in self._index.items() if isinstance(place, list)} - self.components

    @property
    def settings(self) -> dict[str, Any]:
        """What the pipeline's constructor is to be given beside its parts."""
        accepted = inspect.signature(getattr(diffusers, self.pipeline_class).__init__).parameters
        return {name: value for name, value in self._index.items() if name in accepted and not isinstance(value, list)}

    @property
    def components(self) -> set[str]:
        """The names of the parts that the folder holds."""
        return {name for name, place in self._index.items() if isinstance(place, list) and place[0] is not None}

    def check(self, component: str, files: tuple[str, ...]) -> None:
        """Refuse a component that is missing, comes from a foreign library, or has none of `files`."""
        if component not in self.components:
            raise ModelLoadError(self.name, f"{self.path / INDEX} names no {component}")
        library = self._library_of(component)
        if library not in LIBRARIES and not _is_part_of_diffusers(library):
            raise ModelLoadError(
                self.name, f"{self.path / INDEX} takes {component} from {library!r}, and only {LIBRARIES} are allowed"
            )
        if files and not any((self.path / component / file).is_file() for file in files):
            raise ModelLoadError(self.name, f"{self.path / component} has no {' or '.join(files)}")

    def load(self, component: str) -> Any:
        """Load a component that is described by files alone: a tokenizer, a scheduler."""
        path = self.path / component
        with self._reading(path):
            return self._class_of(component).from_pretrained(path, local_files_only=True)

    def load_weights(self, component: str, dtype: torch.dtype) -> Any:
        """Load a component that has weights, every one of them from the folder."""
        path = self.path / component
        self._check_weights(path)
        # transformers reports wrong shapes only when told to go on; diffusers names them in its error.
        options = {"ignore_mismatched_sizes": True} if self._library_of(component) == "transformers" else {}
        with self._reading(path):
            model, loading = self._class_of(component).from_pretrained(
                path, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
            )
        if mismatched := sorted(loading["mismatched_keys"]):
            key, stored, expected = mismatched[0]
            problem = f"{key} has the shape {tuple(stored)}, and config.json asks for {tuple(expected)}"
            raise ModelLoadError(self.name, f"{path}: {problem}")
        if missing := sorted(loading["missing_keys"]):
            raise ModelLoadError(self.name, f"{path} lacks {len(missing)} of its weights, among them {missing[0]}")
        return model

    def _library_of(self, component: str) -> str:
        return str(self._index[component][0])

    def _class_of(self, component: str) -> Any:
        library, class_name = self._index[component]
        module = getattr(diffusers.pipelines, library) if _is_part_of_diffusers(library) else import_module(library)
        component_class = getattr(module, class_name, None)
        if component_class is None:
            raise ModelLoadError(self.name, f"{self.path / INDEX} names {class_name}, which {library} does not have")
        return component_class

    @contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        """Turn whatever diffusers and transformers raise over a broken file, which is anything, into one sentence."""
        try:
            with quiet():
                yield
        except ModelLoadError:
            raise
        except Exception as error:
            raise ModelLoadError(self.name, f"{path}: {first_sentence(error)}") from error

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
        weights = [file for file in files if file.suffix == ".safetensors"]
        for file in weights:
            try:
                with safe_open(file, framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise ModelLoadError(self.name, f"{file} is broken: {first_sentence(error)}") from error
        if weights:
            return
        pickles = [file for file in files if file.suffix in PICKLE_SUFFIXES]
        if pickles:
            raise ModelLoadError(self.name, f"{pickles[0]} is a pickle, and only safetensors are loaded")
        raise ModelLoadError(self.name, f"{path} has no .safetensors file")


def _is_part_of_diffusers(library: str) -> bool:
    """Whether this names one of diffusers' own folders of pipelines, some of which have parts of their own."""
    module = getattr(diffusers.pipelines, library, None)
    return isinstance(module, ModuleType) and module.__name__ == f"diffusers.pipelines.{library}"
