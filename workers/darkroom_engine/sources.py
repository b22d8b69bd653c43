"""Where weights lie: shipped beside the engine, under a path, or on the hub, which they are brought from."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download, snapshot_download

from darkroom_engine.errors import EngineError, LoraLoadError, ModelLoadError, first_sentence
from darkroom_engine.quiet import quiet

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILE = re.compile(rf"({HUB_ID.pattern})/([\w./-]+\.safetensors)")

SHIPPED = re.compile(r"shipped:([a-z0-9][a-z0-9._-]*)")
SHIPPED_FOLDER = Path(__file__).with_name("models")

INDEX = "model_index.json"
SAFETENSORS = "*.safetensors"


def find_model(name: str, source: str, revision: str | None, *, left_out: Callable[[Path], Mapping[str, Any]]) -> Path:
    """Say where a pipeline's folder or single file lies. Raises ModelLoadError.

    "shipped:<name>" is one that comes with the engine. Of a pipeline on the hub, only safetensors are brought, and no
    part that `left_out` names, given the index.
    """
    if match := SHIPPED.fullmatch(source):
        return _find_shipped(name, match[1])
    path = Path(source).expanduser()
    if path.exists():
        return path
    with _bringing(source, partial(ModelLoadError, name)):
        if match := HUB_FILE.fullmatch(source):
            return Path(hf_hub_download(match[1], match[2], revision=revision))
        if HUB_ID.fullmatch(source):
            index = Path(hf_hub_download(source, INDEX, revision=revision))
            absent = {part: None for part, value in left_out(index).items() if value is None}
            return Path(DiffusionPipeline.download(source, revision=revision, use_safetensors=True, **absent))
    return path


def _find_shipped(name: str, shipped: str) -> Path:
    path = SHIPPED_FOLDER / shipped
    if not path.is_dir():
        known = sorted(folder.name for folder in SHIPPED_FOLDER.glob("*/"))
        raise ModelLoadError(name, f"no model {shipped!r} comes with the engine; known are: {', '.join(known)}")
    return path


def find_lora(name: str, source: str, revision: str | None) -> Path:
    """Say where an adapter's one file lies. Raises LoraLoadError."""
    path = Path(source).expanduser()
    if not path.exists():
        with _bringing(source, partial(LoraLoadError, name)):
            if match := HUB_FILE.fullmatch(source):
                return Path(hf_hub_download(match[1], match[2], revision=revision))
            if HUB_ID.fullmatch(source):
                path = Path(snapshot_download(source, revision=revision, allow_patterns=SAFETENSORS))
    if path.is_file():
        return path
    files = sorted(path.glob(SAFETENSORS))
    if len(files) != 1:
        raise LoraLoadError(name, f"{path} has {len(files)} .safetensors files, and must be or have one")
    return files[0]


@contextmanager
def _bringing(source: str, refusal: Callable[[str], EngineError]) -> Iterator[None]:
    try:
        with quiet():
            yield
    except EngineError:
        raise
    except Exception as error:  # the hub's client raises network, cache and repository errors of many roots
        raise refusal(f"{source} could not be had from the hub: {first_sentence(error)}") from error
