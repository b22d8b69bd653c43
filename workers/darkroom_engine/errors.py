"""What can go wrong in the engine. One root; each message is one sentence for the person who caused or must cure it."""


class EngineError(Exception):
    """The root of everything the engine raises on purpose."""


class InvalidRequest(EngineError):
    """A field of a request cannot be developed."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem


class UnknownModel(EngineError):
    """No model of that name is loaded."""

    def __init__(self, model: str, loaded: tuple[str, ...]) -> None:
        super().__init__(f"model {model!r} is not loaded; loaded are: {', '.join(loaded) or 'none'}")
        self.model = model


class ModelLoadError(EngineError):
    """A model cannot be loaded."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"model {model!r} cannot be loaded: {reason}")
        self.model = model
        self.reason = reason


class LoraLoadError(EngineError):
    """A LoRA cannot be loaded."""

    def __init__(self, lora: str, reason: str) -> None:
        super().__init__(f"LoRA {lora!r} cannot be loaded: {reason}")
        self.lora = lora
        self.reason = reason


class UnfitPipeline(EngineError):
    """A pipeline is of a class that its family knows, and still one that it cannot develop with."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DeviceUnavailable(EngineError):
    """The device asked for is not on this machine."""

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(f"device {device!r} cannot be used: {reason}")
        self.device = device


class DeviceLost(EngineError):
    """The device answers no more: no request is to blame, and none can be developed in this process."""


class EngineStopped(EngineError):
    """The engine was stopped before the request was developed."""

    def __init__(self) -> None:
        super().__init__("the engine is stopped")


class RequestCanceled(EngineError):
    """The request was canceled."""

    def __init__(self) -> None:
        super().__init__("the request was canceled")


class DeadlineExceeded(EngineError):
    """The request's deadline passed before its picture was done."""

    def __init__(self) -> None:
        super().__init__("the request's deadline passed before its picture was done")


class RequestFailed(EngineError):
    """The request could not be developed; its neighbours were not touched."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class InvalidSnapshot(EngineError):
    """A request's snapshot cannot be taken, or cannot be gone on with."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the snapshot cannot be used: {reason}")
        self.reason = reason


def first_sentence(error: Exception) -> str:
    """The part of a library's message that says what is wrong; advice follows it."""
    lines = str(error).strip().splitlines()
    return lines[0].partition(". ")[0].strip() if lines else type(error).__name__
