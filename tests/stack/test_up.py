"""`darkroom up`: the whole stack as real processes, and every way in which it may end."""

import re
import signal
import socket

import httpx
import psutil
import pytest

READY = "Ctrl-C stops everything"
GONE_SECONDS = 5

pytestmark = pytest.mark.timeout(240)


def left_of(family: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run when time is up. One that nobody has asked after yet is dead all the same."""
    left = psutil.wait_procs(family, timeout=GONE_SECONDS)[1]
    return [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_up_serves_and_ctrl_c_stops_it_in_order(up, darkroom, home):
    stack = up()
    stack.until(READY)
    assert httpx.get(f"{stack.url}/readyz", trust_env=False).status_code == 200
    assert stack.url in stack.said
    assert str(home / "logs") in stack.said

    second = darkroom("up", "--port", "1")
    assert second.ended() == 1
    assert f"(pid {stack.process.pid})" in second.said

    doctor = darkroom("doctor")
    assert doctor.ended() == 0, doctor.said
    assert f"runs (pid {stack.process.pid})" in doctor.said
    assert "can be read and written" in doctor.said
    assert f"{stack.url.removeprefix('http://')} is in use by a web server that answers" in doctor.said

    family = stack.family()
    stack.interrupt()
    assert stack.ended() == 0, stack.said
    assert re.findall(r"stopped: (\w+)", (home / "logs/supervisord.log").read_text()) == [
        "web",
        "worker",
        "s3",
        "valkey",
    ]
    assert left_of(family) == []
    assert [path.name for path in (home / "run").iterdir()] == ["lock"]


def test_killed_up_leaves_no_process_and_the_next_one_cleans_up(up, home):
    killed = up()
    killed.until(READY)
    family = killed.family()
    killed.process.kill()
    assert left_of(family) == []
    assert (home / "run/stack.json").exists()

    stack = up()
    stack.until(READY)
    assert f"(pid {killed.process.pid})" in stack.said

    web = stack.part("web").pid
    psutil.Process(web).kill()
    stack.until("web had ended and was started again")

    stack.process.send_signal(signal.SIGTERM)
    assert stack.ended() == 0, stack.said
    assert stack.family() == []


def test_second_signal_ends_a_stop_that_takes_too_long(up, home):
    stack = up()
    stack.until(READY)
    family = stack.family()
    stack.part("darkroom_worker").suspend()
    stack.interrupt()
    stack.until("stopping")
    stack.interrupt()
    stack.ended()
    assert left_of(family) == []
    assert "stopped: worker" not in (home / "logs/supervisord.log").read_text()


def test_ctrl_c_before_everything_is_ready_stops_what_has_started(up, home):
    stack = up()
    stack.until("s3 ")
    family = stack.family()
    stack.interrupt()
    assert stack.ended() == 0, stack.said
    assert left_of(family) == []
    assert [path.name for path in (home / "run").iterdir()] == ["lock"]


def test_taken_port_is_named_with_the_cure(darkroom):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        stack = darkroom("up", "--port", port)
        assert stack.ended() == 1
    assert f"port {port} of 127.0.0.1 cannot be used" in stack.said
    assert "--port" in stack.said
    assert "Traceback" not in stack.said


def test_worker_that_cannot_start_ends_the_stack_and_says_why(up, tmp_path):
    model = tmp_path / "broken-model"
    model.mkdir()
    (model / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    stack = up("--model", str(model))
    assert stack.ended() == 1
    assert "worker" in stack.said
    assert str(tmp_path / "broken-model") in stack.said or "broken-model" in stack.said
    assert stack.family() == []


def test_model_that_is_no_pipeline_is_refused_before_anything_starts(up, tmp_path):
    stack = up("--model", str(tmp_path))
    assert stack.ended() == 1
    assert "model_index.json" in stack.said


def test_home_that_cannot_be_written_is_named(darkroom, tmp_path):
    (tmp_path / "file").write_text("")
    stack = darkroom("up", home=tmp_path / "file" / "home")
    assert stack.ended() == 1
    assert "DARKROOM_HOME" in stack.said
    assert "Traceback" not in stack.said
