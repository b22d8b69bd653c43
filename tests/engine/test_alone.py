"""The engine as a library: in a process where nothing of the platform's world can be imported."""

import os
import subprocess
import sys

SCRIPT = """
import sys
from importlib.machinery import PathFinder

FOREIGN = {"celery", "kombu", "sqlalchemy", "boto3", "botocore", "flask", "redis", "darkroom", "darkroom_worker"}

class HidingFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in FOREIGN else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = HidingFinder

from darkroom_engine import Engine, ModelLoadError, Request

engine = Engine("cpu", num_threads=1)
engine.load("tiny", source="seeded:7")
engine.start()
handle = engine.submit(
    Request(
        model="tiny", prompt="a red house", width=64, height=64,
        num_inference_steps=2, guidance_scale=3.0, sampler="euler", seed=1,
    )
)
assert handle.result(60).image.shape == (64, 64, 3)
try:
    engine.load("remote", source="nobody/nothing", revision="main")
except ModelLoadError as error:
    assert "nobody/nothing could not be had from the hub" in str(error), error
    assert "\\n" not in str(error)
else:
    raise AssertionError("a model came from a hub that is not there")
engine.stop()
assert not FOREIGN & set(sys.modules)
"""


def test_the_engine_develops_alone_and_says_nothing_on_the_terminal(tmp_path: object) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=100, check=False
    )
    assert run.returncode == 0, run.stderr
    assert (run.stdout, run.stderr) == ("", "")
