"""What people see in a terminal of a job that they wait for. Knows the API's documents and nothing of their making."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from darkroom.client import Job

# What the worker's timings are called, in the order they happen.
STAGE_WORDS = {
    "fetch": "fetch its pictures",
    "wait": "wait for a row",
    "encode": "encode the prompt",
    "denoise": "denoise",
    "decode": "decode",
    "compress": "write the file",
    "upload": "upload",
}


def describe(job: Job) -> str:
    """Say in a few words where a job is."""
    if job.state == "queued" and job.position is not None:
        return f"queued, {job.position} ahead"
    if job.state == "running" and job.progress:
        return job.progress.stage
    return job.state


@contextmanager
def shown(console: Console) -> Iterator[Callable[[Job], None]]:
    """Show a job that is waited for: a bar in a terminal, a line for each change of stage elsewhere."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("submitted", total=None)

        def show(job: Job) -> None:
            step, num_steps = _steps(job)
            bars.update(task, description=describe(job), completed=step, total=num_steps)

        yield show


def _lines(console: Console) -> Callable[[Job], None]:
    said = ""

    def show(job: Job) -> None:
        nonlocal said
        if (words := describe(job)) != said:
            said = words
            step, num_steps = _steps(job)
            console.print(words + (f" {step}/{num_steps}" if job.state == "running" and num_steps else ""))

    return show


def _steps(job: Job) -> tuple[int, int | None]:
    if job.state == "succeeded":
        num_steps = int(job.params.get("num_inference_steps", 1))
        return num_steps, num_steps
    if job.progress and job.progress.num_steps:
        return job.progress.step, job.progress.num_steps
    return 0, None


def seconds_table(rows: dict[str, float]) -> Table:
    """A table of how long each thing took."""
    table = Table("stage", "seconds", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds:.2f}")
    return table


def stages(job: Job) -> dict[str, float]:
    """How long each stage of a finished job took, in the order they happened."""
    rows = {}
    if job.started_at:
        rows["wait in the queue"] = (job.started_at - job.created_at).total_seconds()
    rows |= {words: job.timings[name] for name, words in STAGE_WORDS.items() if name in job.timings}
    return rows | {name: seconds for name, seconds in job.timings.items() if name not in STAGE_WORDS}
