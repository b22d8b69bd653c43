"""What a worker's engine is made of, in words that can be sent, and the making. Knows no catalog; torch comes late."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from darkroom_engine import ModelLoadError

if TYPE_CHECKING:
    from darkroom_engine import Engine

# Enough for a small model. A large one on a CPU learns what its forwards cost from its first pictures.
CPU_WARM_UP_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """A model to load, and its LoRAs by name.

    Measured are forwards of the usual size (width, height), and on a GPU of squares with the longest side.
    """

    name: str
    family: str | None = None
    source: str
    revision: str | None = None
    dtype: str | None = None
    tuning: Mapping[str, Any] = field(default_factory=dict)
    loras: Mapping[str, str] = field(default_factory=dict)
    usual_size: tuple[int, int]
    longest_side: int
    promised_pixels: int


@dataclass(frozen=True)
class EnginePlan:
    """An engine to make. `device` may be "auto"."""

    device: str
    max_rows: int
    num_threads: int | None
    max_model_bytes: int | None
    models: Sequence[ModelPlan]

    @classmethod
    def read(cls, words: Mapping[str, Any]) -> "EnginePlan":
        """Make a plan of its `asdict`, which may have been JSON."""
        models = [ModelPlan(**model | {"usual_size": tuple(model["usual_size"])}) for model in words["models"]]
        return cls(**{**words, "models": models})


@dataclass(frozen=True)
class EngineFacts:
    """What an engine says of itself once it is there."""

    device: str
    device_memory_bytes: int
    fingerprint: str
    models: Sequence[str]


def open_engine(plan: EnginePlan) -> tuple["Engine", EngineFacts]:
    """Make an engine with its models loaded and measured, and start it. Raises EngineError."""
    from darkroom_engine import Engine, Tuning

    device = _device(plan.device)
    engine = Engine(device, plan.max_rows, num_threads=plan.num_threads, max_model_bytes=plan.max_model_bytes)
    for model in plan.models:
        engine.load(
            model.name,
            family=model.family,
            source=model.source,
            revision=model.revision,
            dtype=model.dtype,
            tuning=Tuning(**model.tuning),
        )
        for lora, source in model.loras.items():
            engine.load_lora(model.name, lora, source=source)
    for model in plan.models:
        warm_up(engine, model, device)
    engine.start()
    return engine, describe(engine)


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def warm_up(engine: "Engine", plan: ModelPlan, device: str) -> None:
    """Measure what a model's sizes cost. Raises ModelLoadError where more is promised than this device can hold.

    A request is held to the catalog's limits alone, so a worker that could not keep them takes none of that model.
    """
    if device == "cpu":
        model = engine.warm_up(plan.name, [plan.usual_size], seconds=CPU_WARM_UP_SECONDS)
    else:
        model = engine.warm_up(plan.name, [plan.usual_size, (plan.longest_side, plan.longest_side)])
    if model.max_pixels is not None and model.max_pixels < plan.promised_pixels:
        raise ModelLoadError(
            plan.name,
            f"the catalog promises pictures of {plan.promised_pixels} pixels, and the memory of this device is enough "
            f"for {model.max_pixels}; lower its limits.max_pixels, or name the models of this worker in "
            "DARKROOM_WORKER_MODELS without it",
        )


def describe(engine: "Engine") -> EngineFacts:
    """Say what an engine is."""
    device = engine.device_info
    return EngineFacts(device.name, device.memory_bytes, device.fingerprint, list(engine.models))
