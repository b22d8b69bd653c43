"""What an error means: the device is gone, memory ran out, or one request cannot be developed. Knows no request."""

import torch

from darkroom_engine.errors import DeviceLost, RequestFailed


def check_device(error: Exception) -> None:
    """Raise DeviceLost for an error after which nothing runs on the device any more."""
    if isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error):
        raise DeviceLost(str(error)) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. Only CUDA's allocator has an error class of its own for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "out of memory")
    )


def reason(error: Exception) -> str:
    """Say in one sentence, for the person who asked, why a request failed."""
    if isinstance(error, RequestFailed):
        return error.reason
    if is_out_of_memory(error):
        return "the request alone does not fit into the device's memory"
    return f"{type(error).__name__}: {error}"
