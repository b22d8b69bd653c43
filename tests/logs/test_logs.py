"""What a log may not hold."""

import json
import subprocess
import sys

import pytest

CANARY = "a prompt that is nobody's business"
FAIL_WITH_A_PROMPT = f"""
import structlog
from darkroom import logs
from darkroom.config import load_settings

logs.configure(load_settings())

def develop(prompt):
    raise RuntimeError("broke")

try:
    develop({CANARY!r})
except RuntimeError:
    structlog.get_logger().exception("job_broke", job_id="7")
"""


def log_of_a_fault(log_format: str) -> str:
    command = [sys.executable, "-W", "error", "-c", FAIL_WITH_A_PROMPT]
    environment = {"DARKROOM_LOG_FORMAT": log_format, "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_shows_no_local_variable(log_format: str) -> None:
    log = log_of_a_fault(log_format)

    assert "RuntimeError" in log
    assert CANARY not in log


def test_json_is_one_object_a_line() -> None:
    (line,) = log_of_a_fault("json").splitlines()

    assert json.loads(line)["event"] == "job_broke"
