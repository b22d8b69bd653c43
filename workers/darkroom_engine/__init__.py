"""The engine: develops many requests at once on one device, sharing every denoiser forward it can.

Usable alone: it knows no queue, no database, no storage. Names are loaded on first use, so importing this package
or `darkroom_engine.scheduler` brings no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from darkroom_engine.costs import Tally
    from darkroom_engine.device import DeviceInfo
    from darkroom_engine.engine import Engine
    from darkroom_engine.errors import (
        DeadlineExceeded,
        DeviceUnavailable,
        EngineError,
        EngineStopped,
        InvalidRequest,
        InvalidSnapshot,
        LoraLoadError,
        ModelLoadError,
        RequestCanceled,
        RequestFailed,
        UnknownModel,
    )
    from darkroom_engine.models import LoadedModel
    from darkroom_engine.request import Handle, Output, Progress, Request
    from darkroom_engine.tuning import Tuning

_MODULES = {
    "DeadlineExceeded": "errors",
    "DeviceInfo": "device",
    "DeviceUnavailable": "errors",
    "Engine": "engine",
    "EngineError": "errors",
    "EngineStopped": "errors",
    "Handle": "request",
    "InvalidRequest": "errors",
    "InvalidSnapshot": "errors",
    "LoadedModel": "models",
    "LoraLoadError": "errors",
    "ModelLoadError": "errors",
    "Output": "request",
    "Progress": "request",
    "Request": "request",
    "RequestCanceled": "errors",
    "RequestFailed": "errors",
    "Tally": "costs",
    "Tuning": "tuning",
    "UnknownModel": "errors",
}

__all__ = [
    "DeadlineExceeded",
    "DeviceInfo",
    "DeviceUnavailable",
    "Engine",
    "EngineError",
    "EngineStopped",
    "Handle",
    "InvalidRequest",
    "InvalidSnapshot",
    "LoadedModel",
    "LoraLoadError",
    "ModelLoadError",
    "Output",
    "Progress",
    "Request",
    "RequestCanceled",
    "RequestFailed",
    "Tally",
    "Tuning",
    "UnknownModel",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
