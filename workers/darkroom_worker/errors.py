"""What can go wrong with a job in a worker beyond what the engine and the platform have names for."""


class WorkerError(Exception):
    """The root. `code` is what the failed job says."""

    code = "internal"


class OutputLost(WorkerError):
    """A process through which pictures leave the worker ended, and took the job's pictures along."""

    code = "output-lost"

    def __init__(self) -> None:
        super().__init__("a process that stores pictures ended unexpectedly")


class EngineLost(WorkerError):
    """The engine's process ended while it had a request of the job."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the engine was lost: {reason}")


class EngineAway(WorkerError):
    """The engine's process is being started, and takes no request yet."""

    def __init__(self) -> None:
        super().__init__("the engine is being opened again")


class InputMissing(WorkerError):
    """A picture that the job begins from is no longer stored."""

    code = "input-missing"

    def __init__(self, field: str) -> None:
        super().__init__(f"{field}: the picture is no longer stored")


class InputUnreadable(WorkerError):
    """A picture that the job begins from cannot be decoded."""

    code = "input-unreadable"

    def __init__(self, field: str) -> None:
        super().__init__(f"{field}: what is stored there is no picture that can be read")
