"""The device that pictures are developed on: whether it is there, how big it is, and what makes its results its own."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from darkroom_engine.errors import DeviceUnavailable

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class DeviceInfo:
    """A device. Pictures can be bit-equal only between devices of an equal fingerprint."""

    name: str
    memory_bytes: int
    fingerprint: str


def open_device(name: str) -> torch.device:
    """Check that a device ("cpu", "cuda", "cuda:1", "mps") is there. Raises DeviceUnavailable."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceUnavailable(name, "it is none of cpu, cuda, cuda:<n>, mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise DeviceUnavailable(name, f"torch {torch.__version__} sees {count} CUDA devices here")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceUnavailable(name, f"torch {torch.__version__} sees no Metal device here")
    elif device.type != "cpu":
        raise DeviceUnavailable(name, "it is none of cpu, cuda, cuda:<n>, mps")
    return device


def describe_device(device: torch.device) -> DeviceInfo:
    """Say what the device is, with the torch build and the threads that results depend on."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory_bytes = properties.name, properties.total_memory
    else:
        name, memory_bytes = _processor_name(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    threads = torch.get_num_threads()
    fingerprint = f"{name}; torch {torch.__version__}; {threads} threads; attention {_attention_backend(device)}"
    return DeviceInfo(name, memory_bytes, fingerprint)


def _processor_name() -> str:
    # platform.processor() is empty on many Linux systems.
    if CPUINFO.exists():
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _attention_backend(device: torch.device) -> str:
    if device.type != "cuda":
        return "sdpa"
    backends = {
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
    }
    return "sdpa " + "+".join(name for name, is_enabled in backends.items() if is_enabled)
