"""Writes files so that a crash or a full disk leaves the previous one good: write beside, sync, rename."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from darkroom_train.errors import NotWritten


def write_safely(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, and put it in place only when it lies on the disk. Raises NotWritten."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(beside)
        _sync(beside)
        beside.replace(path)
        _sync(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch says RuntimeError when the disk is full
        raise NotWritten(path, error) from error
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON safely, readable and with its keys in their order."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_safely(path, lambda beside: _write_text(beside, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
