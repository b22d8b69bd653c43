"""Recorded forwards, with a recorder that needs no CUDA: what is recorded, replayed, padded, forgotten, given up."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from darkroom_engine.graphs import MAX_GRAPHS, GraphedDenoise


class Copying:
    """Records by running: a replay runs again, and writes into the first result."""

    def __init__(self) -> None:
        self.num_recordings = 0
        self.num_replays = 0
        self.error: Exception | None = None

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self.error:
            raise self.error
        self.num_recordings += 1
        result = run()

        def replay() -> None:
            self.num_replays += 1
            result.copy_(run())

        return replay, result


@pytest.fixture
def recorder() -> Copying:
    return Copying()


def denoise(latents: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    return latents * timesteps[:, None] + conditioning["embeds"]


@pytest.fixture
def graphed(recorder: Copying) -> GraphedDenoise:
    return GraphedDenoise(denoise, recorder)


def inputs(num_rows: int, *, start: float = 0.0, width: int = 3) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    latents = torch.arange(start, start + num_rows * width).view(num_rows, width)
    return latents, torch.arange(1.0, num_rows + 1), {"embeds": latents.flip(0)}


def test_each_shape_is_recorded_once_and_replayed_with_what_is_new(graphed: GraphedDenoise, recorder: Copying) -> None:
    for start in (0.0, 5.0, 9.0):
        for num_rows in (2, 3):
            assert graphed(*inputs(num_rows, start=start)).equal(denoise(*inputs(num_rows, start=start)))
    assert (recorder.num_recordings, recorder.num_replays) == (2, 6)


def test_another_width_is_another_recording(graphed: GraphedDenoise, recorder: Copying) -> None:
    graphed(*inputs(2, width=3))
    graphed(*inputs(2, width=4))
    assert recorder.num_recordings == 2


@pytest.mark.parametrize(("rows", "num_recordings"), [((7, 8), 2), ((9, 10, 11, 12), 1), ((12, 13), 2)])
def test_many_rows_share_a_recording_with_the_next_multiple(
    graphed: GraphedDenoise, recorder: Copying, rows: tuple[int, ...], num_recordings: int
) -> None:
    for num_rows in rows:
        assert graphed(*inputs(num_rows)).equal(denoise(*inputs(num_rows)))
    assert recorder.num_recordings == num_recordings


def test_the_least_recently_used_recording_is_forgotten(graphed: GraphedDenoise, recorder: Copying) -> None:
    for width in range(1, MAX_GRAPHS + 1):
        graphed(*inputs(1, width=width))
    graphed(*inputs(1, width=1))  # used again, so the second is the oldest now
    graphed(*inputs(1, width=MAX_GRAPHS + 1))
    graphed(*inputs(1, width=1))
    assert recorder.num_recordings == MAX_GRAPHS + 1
    graphed(*inputs(1, width=2))
    assert recorder.num_recordings == MAX_GRAPHS + 2


def test_a_forward_that_cannot_be_recorded_runs_without(
    graphed: GraphedDenoise, recorder: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.error = RuntimeError("operation not permitted when stream is capturing")
    for _ in range(2):
        assert graphed(*inputs(2)).equal(denoise(*inputs(2)))
    assert [record.getMessage() for record in caplog.records] == [
        "the denoiser's forward cannot be recorded; it runs without CUDA graphs"
    ]


def test_running_out_of_memory_is_no_reason_to_give_up(graphed: GraphedDenoise, recorder: Copying) -> None:
    recorder.error = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(torch.OutOfMemoryError):
        graphed(*inputs(4))
    recorder.error = None
    graphed(*inputs(2))
    assert recorder.num_recordings == 1


def test_what_was_recorded_is_forgotten_when_the_weights_have_moved(graphed: GraphedDenoise, recorder: Copying) -> None:
    graphed(*inputs(2))
    graphed.forget()
    graphed(*inputs(2))
    assert recorder.num_recordings == 2
