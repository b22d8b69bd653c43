"""An engine in a process of its own: what it is asked, what it says, and what is left when one of the two dies."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darkroom_engine import EngineError, EngineStopped, InvalidRequest, Request, RequestCanceled, RequestFailed
from darkroom_worker.engine_host import EngineHost
from darkroom_worker.errors import EngineAway, EngineLost

FAKE_ENGINE = (sys.executable, str(Path(__file__).with_name("fake_engine.py")))
PATIENCE_SECONDS = 60.0


class Told:
    """Notes what a listener is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()

    def engine_lost(self, reason: str) -> None:
        self._note(f"lost: {reason}")

    def engine_back(self) -> None:
        self._note("back")

    def engine_gone(self) -> None:
        self._note("gone")

    def wait_for(self, line: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: line in self.lines, PATIENCE_SECONDS), self.lines

    def _note(self, line: str) -> None:
        with self._changed:
            self.lines.append(line)
            self._changed.notify_all()


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[Callable[..., EngineHost]]:
    hosts: list[EngineHost] = []

    def make(command: tuple[str, ...] = FAKE_ENGINE, **limits: int) -> EngineHost:
        hosts.append(EngineHost({"control": str(tmp_path)}, command=command, **limits))
        hosts[-1].start()
        return hosts[-1]

    yield make
    for host in hosts:
        host.stop()


@pytest.fixture
def host(make_host: Callable[..., EngineHost]) -> EngineHost:
    host = make_host()
    host.wait_until_open()
    return host


def request_for(prompt: str = "a red house", **fields: Any) -> Request:
    values = {"width": 64, "height": 96, "num_inference_steps": 5, "guidance_scale": 3.0, "sampler": "euler"}
    return Request(model="darkroom-seeded", prompt=prompt, **{**values, "seed": 7, **fields})


def process_of(host: EngineHost) -> int:
    assert host._process
    return host._process.pid


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or dead and not yet buried."""
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "\nState:\tZ" in status.read_text()


def test_pictures_cross_as_they_are_both_ways(host: EngineHost) -> None:
    image = np.random.default_rng(7).integers(0, 256, (1024, 768, 3), np.uint8)
    request = request_for(image=image, width=768, height=1024, num_walk_frames=4, loras=(("ink", 0.5),))
    output = host.submit(request).result(PATIENCE_SECONDS)
    assert np.array_equal(output.image, image)
    assert output.walk is not None
    assert output.walk.shape == (4, 1024, 768, 3)
    assert (output.seed, output.sampler, output.num_steps, output.fingerprint) == (7, "euler", 5, "fake")
    assert set(output.timings) == {"wait", "denoise"}


def test_a_request_says_how_far_it_is_and_shows_itself_to_those_who_watch(
    host: EngineHost, tmp_path: Path, until: Callable[..., None]
) -> None:
    watched, unseen = host.submit(request_for("wait:go")), host.submit(request_for("wait:go", seed=9))
    watched.watch(600)
    until(lambda: watched.preview, "it is shown")
    assert watched.preview
    assert watched.preview.paint().shape == (96, 64, 3)
    step = watched.progress.step
    until(lambda: watched.progress.step > step, "it goes on")
    assert watched.progress.stage == "denoise"
    assert unseen.preview is None
    (tmp_path / "go").touch()
    assert watched.result(PATIENCE_SECONDS).seed == 7
    assert watched.done
    assert unseen.result(PATIENCE_SECONDS).seed == 9


def test_what_an_engine_says_to_a_request_is_raised_here(host: EngineHost) -> None:
    with pytest.raises(RequestFailed, match=r"^the latents are not a number$"):
        host.submit(request_for("fail")).result(PATIENCE_SECONDS)
    with pytest.raises(InvalidRequest, match=r"^width is 3, and must be even$") as refusal:
        host.submit(request_for(width=3))
    assert refusal.value.field == "width"
    with pytest.raises(EngineError, match=r"^an unexpected RuntimeError$"):
        host.submit(request_for("break"))


def test_a_cancel_reaches_the_engine_in_the_middle_of_a_step_and_acts_at_the_next(
    host: EngineHost, tmp_path: Path, until: Callable[..., None]
) -> None:
    canceled = host.submit(request_for("stuck:go"))
    until(lambda: canceled.progress.stage == "denoise", "it is in a step")
    canceled.cancel()
    host.submit(request_for("wait:never"))  # was taken after the cancel was read
    step = canceled.progress.step
    (tmp_path / "go").touch()
    with pytest.raises(RequestCanceled):
        canceled.result(PATIENCE_SECONDS)
    assert canceled.progress.step <= step + 1


def test_the_tally_goes_on_over_the_death_of_an_engine(host: EngineHost, until: Callable[..., None]) -> None:
    told = Told()
    host.listen(told)
    host.submit(request_for()).result(PATIENCE_SECONDS)
    until(lambda: host.tally.num_forwards >= 5, "the forwards are told")
    before = host.tally
    host.kill()
    told.wait_for("back")
    host.submit(request_for()).result(PATIENCE_SECONDS)
    until(lambda: host.tally.num_forwards >= before.num_forwards + 5, "they are added")


def test_a_killed_engine_ends_its_requests_at_once_and_another_takes_its_place(host: EngineHost) -> None:
    told = Told()
    host.listen(told)
    handles = [host.submit(request_for("wait:never", seed=seed)) for seed in range(3)]
    pid = process_of(host)
    os.kill(pid, signal.SIGKILL)
    for handle in handles:
        with pytest.raises(EngineLost, match=r"^the engine was lost: its process was ended by SIGKILL$"):
            handle.result(PATIENCE_SECONDS)
    assert told.lines[0] == "lost: its process was ended by SIGKILL"
    with pytest.raises(EngineAway):
        host.submit(request_for())
    told.wait_for("back")
    assert process_of(host) != pid
    assert host.submit(request_for(seed=5)).result(PATIENCE_SECONDS).seed == 5


def test_an_engine_that_lost_its_device_is_opened_anew(host: EngineHost) -> None:
    told = Told()
    host.listen(told)
    with pytest.raises(EngineLost, match="exit code 70"):
        host.submit(request_for("lose-device")).result(PATIENCE_SECONDS)
    told.wait_for("back")


def test_an_engine_that_does_not_say_a_word_is_ended(make_host: Callable[..., EngineHost]) -> None:
    told = Told()
    host = make_host(silence_seconds=5)
    host.wait_until_open()
    host.listen(told)
    os.kill(process_of(host), signal.SIGSTOP)
    with pytest.raises(EngineLost, match="its process said nothing for 5 s"):
        host.submit(request_for())
    told.wait_for("back")


def test_an_engine_that_cannot_be_opened_again_is_gone_for_good(host: EngineHost, tmp_path: Path) -> None:
    told = Told()
    host.listen(told)
    (tmp_path / "broken").touch()
    host.kill()
    told.wait_for("gone")
    assert told.lines == ["lost: its process was ended by SIGKILL", "lost: the device is broken", "gone"]
    with pytest.raises(EngineStopped):
        host.submit(request_for())


def test_whoever_listens_late_hears_what_was_missed(host: EngineHost, tmp_path: Path) -> None:
    first, late = Told(), Told()
    host.listen(first)
    (tmp_path / "broken").touch()
    host.kill()
    first.wait_for("gone")
    host.listen(late)
    assert late.lines == ["lost: it is being opened again", "gone"]


@pytest.mark.parametrize(
    ("command", "reason"),
    [(FAKE_ENGINE, "the device is broken"), ((sys.executable, "-c", "import os; os._exit(3)"), "exit code 3")],
)
def test_an_engine_that_cannot_be_opened_at_all_says_why(
    make_host: Callable[..., EngineHost], tmp_path: Path, command: tuple[str, ...], reason: str
) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(EngineError, match=reason):
        make_host(command).wait_until_open()


def test_a_stop_ends_the_process_and_the_requests_in_flight(host: EngineHost) -> None:
    handle = host.submit(request_for("stuck:never"))
    pid = process_of(host)
    host.stop()
    host.stop()
    with pytest.raises(EngineStopped):
        handle.result(0)
    with pytest.raises(EngineStopped):
        host.submit(request_for())
    assert has_ended(pid)


def test_a_stop_may_come_while_the_engine_is_being_opened(make_host: Callable[..., EngineHost]) -> None:
    host = make_host()
    host.stop()
    with pytest.raises(EngineError):
        host.wait_until_open()


PARENT = """
import sys
from darkroom_worker.engine_host import EngineHost

host = EngineHost({"control": sys.argv[2]}, command=(sys.executable, sys.argv[1]))
host.start()
host.wait_until_open()
print(host._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("is_frozen", [False, True])
def test_an_engine_ends_with_a_killed_worker_even_when_it_hangs(
    tmp_path: Path, until: Callable[..., None], is_frozen: bool
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, FAKE_ENGINE[1], str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout
        engine = int(parent.stdout.readline())
        if is_frozen:
            os.kill(engine, signal.SIGSTOP)
        parent.kill()
        until(lambda: has_ended(engine), "the engine has ended")


def test_signals_to_the_whole_group_leave_the_engine_to_the_worker(host: EngineHost) -> None:
    handle = host.submit(request_for())
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process_of(host), signal_number)
    assert handle.result(PATIENCE_SECONDS).seed == 7
    assert host.submit(request_for(seed=8)).result(PATIENCE_SECONDS).seed == 8
