"""`darkroom submit`, `watch`, `cancel`, `ls`, `get`: jobs from the command line, by the API like anybody else.

Ids, files and JSON go to stdout, one a line; what only people want to see goes to stderr. The key comes from
DARKROOM_API_KEY: an option would show it to everybody who lists processes.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from darkroom.client import Darkroom, Job

WAIT_SECONDS = 3600.0


def in_a_folder(_ctx: click.Context, _parameter: click.Parameter, output: Path | None) -> Path | None:
    """Refuse a picture's place before the picture is developed for it."""
    if output and not output.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {output.parent}")
    if output and not os.access(output.absolute().parent, os.W_OK):
        raise click.BadParameter(f"the folder {output.absolute().parent} cannot be written to")
    return output


URL = click.option(
    "--url", envvar="DARKROOM_URL", default="http://127.0.0.1:8000", show_default=True, help="Where Darkroom is."
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line, for programs.")
OUTPUT = click.option(
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    callback=in_a_folder,
    help="Where to write the picture; of several, each name gets the picture's number.",
)
TIMEOUT = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=WAIT_SECONDS,
    show_default=True,
    help="How many seconds to wait at most; the job goes on.",
)


@click.command()
@URL
@click.argument("prompt")
@click.option("--model", help="The model's name.  [default: the default of the catalog]")
@click.option("--negative-prompt", help="What the picture shall not show.")
@click.option("--width", type=int, help="In pixels.")
@click.option("--height", type=int, help="In pixels.")
@click.option("--steps", "num_inference_steps", type=int, help="How many denoising steps.")
@click.option("--guidance-scale", type=float, help="How strongly the prompt steers.")
@click.option("--sampler", help="One of the model's samplers.")
@click.option("--seed", type=int, help="The same seed gives the same picture.  [default: random]")
@click.option("--num-images", type=int, help="How many pictures.")
@click.option("--format", type=click.Choice(["png", "webp", "jpeg", "avif"]), help="The file format.")
@click.option("--priority", type=click.Choice(["interactive", "bulk"]), help="Which line to wait in.")
@click.option("--no-metadata", is_flag=True, help="Write nothing of the job into its pictures' files.")
@click.option("--wait", is_flag=True, help="Wait until the job has ended. Implied by --output.")
@TIMEOUT
@OUTPUT
@AS_JSON
def submit(
    url: str,
    prompt: str,
    *,
    no_metadata: bool,
    wait: bool,
    timeout: float,
    output: Path | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Submit PROMPT, and print the job's id.

    What is left out is the model's default; what the model does not take is refused by name. A network that breaks
    meanwhile makes no second job.

    Exit status: 0, 1 refused or not reached, 2 wrong usage; with --wait also 3 ended without pictures, 4 not ended
    in time.
    """
    from darkroom.client import Darkroom

    with Darkroom(url) as client:
        job = client.submit(prompt, embed_metadata=False if no_metadata else None, **fields)
        waits = wait or output is not None
        if not as_json:
            click.echo(job.id)
        elif not waits:
            click.echo(job.model_dump_json())
        if waits:
            job = _wait(client, job.id, timeout)
            if as_json:
                click.echo(job.model_dump_json())
            _finish(client, job, output, report=_silent if as_json else click.echo)


@click.command()
@URL
@click.argument("job_id", metavar="JOB")
@TIMEOUT
@OUTPUT
@AS_JSON
def watch(url: str, job_id: str, timeout: float, output: Path | None, as_json: bool) -> None:
    """Follow JOB until it has ended.

    A bar in a terminal, elsewhere a line for each change; with --json the job as it is, after each change.

    Exit status: 0 it has its pictures, 1 refused or not reached, 2 wrong usage, 3 ended without pictures, 4 not ended
    in time.
    """
    from darkroom.client import Darkroom

    with Darkroom(url) as client:
        if as_json:
            job = client.wait(job_id, seconds=timeout, on_change=lambda job: click.echo(job.model_dump_json()))
        else:
            job = _wait(client, job_id, timeout)
        _finish(client, job, output, report=_silent if as_json else click.echo)


@click.command()
@URL
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
@AS_JSON
def cancel(url: str, job_ids: tuple[str, ...], as_json: bool) -> None:
    """Call each JOB off, queued or running.

    Exit status: 0 all are canceled, 1 one was refused (it had ended otherwise, or there is none) or Darkroom was not
    reached; those after it are not asked for.
    """
    from darkroom.client import Darkroom

    with Darkroom(url) as client:
        for job_id in job_ids:
            job = client.cancel(job_id)
            click.echo(job.model_dump_json() if as_json else f"{job.id} {job.state}")


@click.command()
@URL
@click.option(
    "--state",
    type=click.Choice(["queued", "running", "succeeded", "failed", "canceled", "expired"]),
    help="Only jobs of this state.",
)
@click.option("--model", help="Only jobs of this model.")
@click.option("--query", "q", help="Only jobs whose prompt has these words.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many, at most.")
@AS_JSON
def ls(url: str, limit: int, as_json: bool, **filters: Any) -> None:
    """List the newest jobs. Exit status: 0, 1 refused or not reached."""
    from darkroom.client import Darkroom
    from darkroom.terminal import describe

    with Darkroom(url) as client:
        for job in client.jobs(limit=limit, **filters):
            if as_json:
                click.echo(job.model_dump_json())
                continue
            prompt = " ".join(str(job.params.get("prompt", "")).split())
            click.echo(f"{job.id}  {job.created_at:%F %T}  {describe(job):<9}  {prompt[:60]}")


@click.command()
@URL
@click.argument("job_id", metavar="JOB")
@OUTPUT
@AS_JSON
def get(url: str, job_id: str, output: Path | None, as_json: bool) -> None:
    """Show how JOB is now, and with --output write its pictures.

    Exit status: 0, 1 refused or not reached; with --output also 3 ended without pictures, 4 not ended yet.
    """
    from darkroom.client import Darkroom

    with Darkroom(url) as client:
        job = client.get(job_id)
        click.echo(job.model_dump_json() if as_json else _sheet(client.url, job))
        if output:
            _finish(client, job, output, report=_silent if as_json else click.echo)


def _wait(client: "Darkroom", job_id: Any, seconds: float) -> "Job":
    from rich.console import Console

    from darkroom.terminal import shown

    with shown(Console(stderr=True)) as show:
        return client.wait(job_id, seconds=seconds, on_change=show)


def _finish(client: "Darkroom", job: "Job", output: Path | None, *, report: Callable[[object], None]) -> None:
    """Write the pictures where they are wanted. Raises JobFailed or JobUnfinished where there are none."""
    from darkroom.client import JobFailed, JobUnfinished

    if job.is_live:
        raise JobUnfinished(job.id, state=job.state, seconds=0)
    if job.state != "succeeded":
        raise JobFailed(job.id, state=job.state, message=job.error.message if job.error else "")
    for image in job.images if output else ():
        assert output
        path = output if len(job.images) == 1 else output.with_stem(f"{output.stem}-{image.n}")
        report(client.picture(image).save(path))


def _silent(_line: object) -> None:
    """Say nothing: the JSON has said it."""


def _sheet(url: str, job: "Job") -> str:
    from darkroom.terminal import describe, stages

    rows = [("job", job.id), ("state", describe(job)), ("model", job.model), ("created", f"{job.created_at:%F %T %Z}")]
    rows += [(name, value) for name, value in job.params.items() if value not in ("", None, [])]
    rows += [(name, f"{seconds:.2f} s") for name, seconds in stages(job).items()]
    rows += [(f"picture {image.n}", url + image.url) for image in job.images]
    if job.error:
        rows.append((job.error.code, job.error.message))
    return "\n".join(f"{name:<20} {value}" for name, value in rows)
