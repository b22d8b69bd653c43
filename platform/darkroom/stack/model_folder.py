"""`darkroom up --model FOLDER`: a catalog made for one run, whose default is the model in that folder."""

import json
import re
from pathlib import Path

from darkroom.catalog import Catalog
from darkroom.config import Settings
from darkroom.errors import StackError


def offer(folder: Path, settings: Settings, *, run: Path) -> Settings:
    """Write a catalog under `run` and return settings that use it. Raises StackError or CatalogError."""
    folder = folder.expanduser().absolute()
    if not (folder / "model_index.json").is_file():
        raise StackError(f"--model: {folder} is no folder of a diffusers pipeline: it has no model_index.json")
    if settings.catalog or settings.models_dir:
        raise StackError("--model: DARKROOM_CATALOG or DARKROOM_MODELS_DIR is set; list the model there")
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower()).strip("._-")[:64] or "model"
    models = run / "models"
    models.mkdir()
    (models / name).symlink_to(folder)
    catalog = run / "catalog.toml"
    catalog.write_text(f"default = {json.dumps(name)}\n")
    chosen = settings.model_copy(update={"catalog": catalog, "models_dir": models, "worker_models": (name,)})
    Catalog.load(chosen)
    return chosen
