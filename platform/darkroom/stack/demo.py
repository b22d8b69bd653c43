"""One prompt, the whole way, on a stack that exists only for it. Submits and downloads as any client would."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from darkroom.client import Darkroom
from darkroom.config import load_settings
from darkroom.errors import StackError
from darkroom.stack.embedded import Stack
from darkroom.stack.foreground import started
from darkroom.stack.servers import free_port
from darkroom.terminal import seconds_table, shown, stages

JOB_SECONDS = 600


def run(prompt: str, *, output: Path, console: Console) -> None:
    """Develop one picture and write it to `output`. Raises DarkroomError, or Interrupted by a signal.

    It has a home and servers of its own and leaves nothing but the picture: no database, Redis or S3 that the
    environment names is used. Everything else is as the environment says, the catalog and the models among it.
    """
    began_at = time.monotonic()
    with TemporaryDirectory(prefix="darkroom-demo-", ignore_cleanup_errors=True) as home:
        settings = load_settings(
            home=home,
            host="127.0.0.1",
            port=free_port(),
            database_url="",
            redis_url="",
            s3_endpoint_url=None,
            s3_bucket="darkroom",
        )
        stack = Stack(settings, report=lambda line: console.print(line, style="dim", highlight=False))
        with started(stack):
            rows = {"start the stack": time.monotonic() - began_at}
            rows |= _develop(stack, prompt, output, console)
            stack.check()
    console.print(seconds_table(rows | {"all, with the stop": time.monotonic() - began_at}))
    console.print(f"the picture is at {output}", highlight=False, soft_wrap=True)


def _develop(stack: Stack, prompt: str, output: Path, console: Console) -> dict[str, float]:
    with Darkroom(stack.url) as client:
        job = client.submit(prompt, priority="interactive")
        with shown(console) as show:
            job = client.wait(job.id, seconds=JOB_SECONDS, on_change=show)
        if job.state != "succeeded":
            reason = job.error.message if job.error else ""
            raise StackError(
                f"the job has {job.state}: {reason}\nthe end of the worker's log:\n{stack.log_tail('worker')}"
            )
        asked_at = time.monotonic()
        client.picture(job.images[0]).save(output)
        return stages(job) | {"download": time.monotonic() - asked_at}
