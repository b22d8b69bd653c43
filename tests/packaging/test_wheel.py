"""The wheel, built and put into a folder of its own: what it holds, and that its web side runs without torch."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# In another process: the wheel's folder first, and nothing of the worker's world to be found.
PROGRAM = """
import importlib.abc, json, sys
from pathlib import Path

FORBIDDEN = {
    "torch", "diffusers", "transformers", "accelerate", "safetensors", "tokenizers", "numpy",
    "darkroom_engine", "darkroom_worker",
}

class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

installed, home, url = sys.argv[1:]
sys.meta_path.insert(0, Forbid())
sys.path.insert(0, installed)
sys.path[:] = [each for each in sys.path if Path(each) not in {Path(p) for p in REPOSITORY}]

import darkroom
from darkroom.config import load_settings
from darkroom.db import Database, alembic_config, is_migrated, migrate
from darkroom.web import create_app

settings = load_settings(home=home, database_url=url)
migrate(settings.database)
client = create_app(settings).test_client()
answers = {path: client.get(path) for path in ("/healthz", "/", "/api/v1/models", "/static/darkroom.css")}
print(json.dumps({
    "package": darkroom.__path__[0],
    "migrations": alembic_config(settings.database).get_main_option("script_location"),
    "is_migrated": is_migrated(Database(settings.database)),
    "statuses": {path: answer.status_code for path, answer in answers.items()},
    "form": answers["/"].text,
    "loaded": sorted(FORBIDDEN & set(sys.modules)),
}))
""".replace("REPOSITORY", repr([str(ROOT / "platform"), str(ROOT / "workers")]))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network: the build's own tools are the installed ones."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize(
    "name",
    [
        "darkroom/catalog.toml",
        "darkroom/py.typed",
        "darkroom/migrations/env.py",
        "darkroom/migrations/script.py.mako",
        "darkroom/migrations/versions/0001_first_tables.py",
        "darkroom_engine/__init__.py",
        "darkroom_engine/models/darkroom-128/manifest.json",
        "darkroom_engine/models/darkroom-128/vae/diffusion_pytorch_model.safetensors",
        "darkroom_worker/app.py",
    ],
)
def test_wheel_holds(names: set[str], name: str) -> None:
    assert name in names


@pytest.mark.parametrize("folder", ["templates", "static"])
def test_wheel_holds_every_file_of_the_web_face(names: set[str], folder: str) -> None:
    files = [path for path in (ROOT / "platform/darkroom/web" / folder).rglob("*") if path.is_file()]
    assert files
    assert {str(path.relative_to(ROOT / "platform")) for path in files} <= names


def test_wheel_holds_nothing_else(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    packages = {top for top in tops if not top.endswith(".dist-info")}
    assert packages <= {"darkroom", "darkroom_engine", "darkroom_worker", "darkroom_train"}
    assert not [name for name in names if "test" in name or name.endswith((".pyc", ".db", ".env"))]


def test_base_install_needs_nothing_of_the_workers(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(metadata).decode().splitlines()
    base = [line.split()[1] for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert base
    assert not [line for line in base if line.startswith(("torch", "diffusers", "transformers", "numpy"))]


def test_base_install_migrates_and_serves_without_torch(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", str(installed), str(wheel)], check=True, timeout=100)
    url = f"sqlite:///{tmp_path}/home/darkroom.db"
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(installed), str(tmp_path / "home"), url]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["package"] == str(installed / "darkroom")
    assert answer["migrations"] == str(installed / "darkroom/migrations")
    assert answer["is_migrated"]
    assert answer["statuses"] == dict.fromkeys(answer["statuses"], 200)
    assert "<form" in answer["form"]
    assert answer["loaded"] == []
