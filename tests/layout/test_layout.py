"""What holds the tree together: the arrows between modules, and folders that must not become packages."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_arrows_between_modules_are_kept() -> None:
    lint = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert lint.returncode == 0, lint.stdout


def test_platform_stays_the_standard_librarys_name() -> None:
    assert not (ROOT / "platform/__init__.py").exists()
    spec = importlib.util.find_spec("platform")
    assert spec
    assert spec.origin
    assert Path(spec.origin).name == "platform.py"


def test_tests_are_no_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []
    assert not (ROOT / "tests/platform").exists()


@pytest.mark.parametrize("folder", ["platform/darkroom", "workers/darkroom_engine", "workers/darkroom_worker"])
def test_packages_say_that_they_are_typed(folder: str) -> None:
    assert (ROOT / folder / "py.typed").exists()
