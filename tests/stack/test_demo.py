"""`darkroom demo`: a prompt travels the whole way and leaves nothing but its picture."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image

pytestmark = pytest.mark.timeout(300)


def demo(output: Path, scratch: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    scratch.mkdir()
    command = [
        sys.executable,
        "-m",
        "darkroom.cli",
        "demo",
        "--prompt",
        "a red house; 'by' the \"sea\"",
        "--output",
        output,
    ]
    return subprocess.run(
        command, env={**os.environ, "TMPDIR": str(scratch), **environment}, capture_output=True, text=True, timeout=280
    )


def test_demo_develops_a_picture_and_leaves_nothing_else(tmp_path: Path):
    # Addresses of another stack are none of the demo's business.
    foreign = {"DATABASE_URL": "postgresql://nowhere.invalid/jobs", "REDIS_URL": "redis://nowhere.invalid"}
    result = demo(tmp_path / "demo.png", tmp_path / "scratch", S3_BUCKET="not-ours", **foreign)
    assert result.returncode == 0, result.stdout + result.stderr
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (128, 128)
    for words in ("start the stack", "wait in the queue", "denoise", "decode", "upload", "download", "demo.png"):
        assert words in result.stdout
    assert [path for path in (tmp_path / "scratch").iterdir() if path.name.startswith("darkroom-")] == []
    assert [one for one in psutil.process_iter(["environ"]) if str(tmp_path) in str(one.info["environ"])] == []


def test_demo_that_cannot_start_says_why_and_exits_with_one(tmp_path: Path):
    (tmp_path / "catalog.toml").write_text("default = 'nothing'\n")
    result = demo(tmp_path / "demo.png", tmp_path / "scratch", DARKROOM_CATALOG=str(tmp_path / "catalog.toml"))
    assert result.returncode == 1
    assert "the default model 'nothing' is not in the catalog" in result.stderr
    assert not (tmp_path / "demo.png").exists()
    assert "Traceback" not in result.stderr
