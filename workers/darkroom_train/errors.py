"""What can go wrong in training. One root; each message is one sentence for the person who caused or must cure it."""

from pathlib import Path


class TrainError(Exception):
    """The root of everything that training raises on purpose."""


class UnknownDomain(TrainError):
    """No domain of drawn scenes has that name."""

    def __init__(self, domain: str, known: tuple[str, ...]) -> None:
        super().__init__(f"there is no domain {domain!r}; known are: {', '.join(known)}")
        self.domain = domain


class RecipeError(TrainError):
    """A recipe cannot be followed."""

    def __init__(self, path: Path, line: int | None, problem: str) -> None:
        place = f"{path}, line {line}" if line is not None else str(path)
        super().__init__(f"{place}: {problem}")
        self.path = path
        self.line = line


class PictureError(TrainError):
    """A picture of a folder cannot be trained on."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path} {problem}")
        self.path = path


class FolderError(TrainError):
    """A folder of pictures cannot be trained on."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class StageMissing(TrainError):
    """A stage needs what an earlier one leaves, and it is not there."""

    def __init__(self, path: Path, stage: str) -> None:
        super().__init__(f"there is no {path}: run `darkroom-train {stage}` first")
        self.path = path
        self.stage = stage


class CheckpointError(TrainError):
    """A checkpoint cannot be gone on from."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class ModelUnfit(TrainError):
    """A checkpoint cannot be fine-tuned."""

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(f"{source} cannot be fine-tuned: {problem}")
        self.source = source


class AdapterError(TrainError):
    """An adapter cannot be put into a network."""


class ExportError(TrainError):
    """A model cannot be exported."""


class Diverged(TrainError):
    """The loss is no number any more."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss is not finite at step {step}: lower learning_rate, or begin with other seeds")
        self.step = step


class GroupError(TrainError):
    """A batch cannot be divided among the processes."""

    def __init__(self, batch_size: int, size: int) -> None:
        super().__init__(f"a batch of {batch_size} cannot be divided among {size} processes")


class NotWritten(TrainError):
    """A file cannot be written."""

    def __init__(self, path: Path, error: Exception) -> None:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        super().__init__(f"{path} cannot be written, and is as it was before: {reason}")
        self.path = path
