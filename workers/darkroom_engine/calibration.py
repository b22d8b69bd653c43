"""Measures at warm-up what a model's forwards cost on a device, and what memory they take. Waits for the device.

Knows nothing of requests in flight: there are none yet.
"""

import time
from collections.abc import Callable

import torch

from darkroom_engine.batch import Development
from darkroom_engine.costs import ForwardCost
from darkroom_engine.families.base import Family
from darkroom_engine.faults import check_device, is_out_of_memory
from darkroom_engine.forwards import Forwards
from darkroom_engine.memory import FREE_SHARE, MemoryBound

# The row counts that are measured; between them the table draws lines.
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Of each, one that warms up and three that count.
NUM_RUNS = 4
# Rows of the forward whose memory is measured: as many as one request takes with guidance.
ROWS_FOR_MEMORY = 2


def measure_costs(
    model: Family, development: Development, forwards: Forwards, *, max_rows: int, seconds: float
) -> list[ForwardCost]:
    """Time forwards of ever more rows until the seconds are used up, or the memory. The smallest is always measured."""
    until = time.monotonic() + seconds
    costs: list[ForwardCost] = []
    for count in COUNTS:
        num_requests = count // development.num_rows
        if count > max_rows or (costs and time.monotonic() + NUM_RUNS * costs[-1].seconds > until):
            break
        if not num_requests:
            continue
        try:
            for _ in range(NUM_RUNS):
                forwards.run(model, [development] * num_requests, None)
            _wait_for(forwards.device)
        except Exception as error:
            check_device(error)
            if not costs or not is_out_of_memory(error):
                raise
            break
        costs += forwards.costs()
    return costs


def measure_memory(model: Family, development: Development, forwards: Forwards) -> MemoryBound:
    """Measure on CUDA the peaks of a forward and of a decode, and what is left for them."""
    request = development.request
    device, num_pixels = forwards.device, request.width * request.height
    num_requests = ROWS_FOR_MEMORY // development.num_rows
    latents = development.latents
    assert latents is not None
    of_forward = _peak_bytes(device, lambda: forwards.run(model, [development] * num_requests, None))
    of_decode = _peak_bytes(device, lambda: model.decode(latents, (request.height, request.width)))
    free_bytes, _ = torch.cuda.mem_get_info(device)
    cached_bytes = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return MemoryBound(
        FREE_SHARE * (free_bytes + cached_bytes), of_forward / (ROWS_FOR_MEMORY * num_pixels), of_decode / num_pixels
    )


def _peak_bytes(device: torch.device, work: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
