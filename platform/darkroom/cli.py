"""The `darkroom` command. Each command reads its words, makes one call and prints; what it needs it imports itself.

So `darkroom --help` and `darkroom submit` stay quick, and a web host needs nothing of the stack's.
"""

import os
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from darkroom import __version__
from darkroom.errors import DarkroomError, JobFailed, JobUnfinished
from darkroom.job_commands import URL, cancel, get, in_a_folder, ls, submit, watch
from darkroom.key_commands import keys


class _EndedWithoutPictures(click.ClickException):
    exit_code = 3


class _NotEndedInTime(click.ClickException):
    exit_code = 4


class _Commands(click.Group):
    """Commands whose expected errors are one sentence on stderr and an exit status that a script can tell apart."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except JobFailed as error:
            raise _EndedWithoutPictures(str(error)) from error
        except JobUnfinished as error:
            raise _NotEndedInTime(str(error)) from error
        except DarkroomError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="darkroom")
def main() -> None:
    """Darkroom turns prompts into pictures, on your own machines.

    `darkroom up` starts everything on this machine; the other commands speak to a Darkroom that runs.
    Settings come from the environment: `darkroom doctor` says what is missing or wrong, and how to mend it.
    """


for command in (keys, submit, watch, cancel, ls, get):
    main.add_command(command)


@main.command()
@click.option("--host", help="The address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="The port of the web face.  [default: 8000]")
@click.option("--model", type=click.Path(path_type=Path), help="A folder with a diffusers pipeline: the only model.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="How many workers to start.")
def up(host: str | None, port: int | None, model: Path | None, workers: int) -> None:
    """Start everything on this machine, until Ctrl-C.

    SQLite, a Valkey server, an S3 server, the web face and a worker, with their data and logs in DARKROOM_HOME
    (~/.darkroom). A part is left out when its address is given: DATABASE_URL, REDIS_URL, S3_ENDPOINT_URL.
    """
    from darkroom.config import load_settings
    from darkroom.stack.embedded import Stack
    from darkroom.stack.foreground import hold

    given = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    hold(Stack(load_settings(**given), workers=workers, model=model, report=click.echo), report=click.echo)


@main.command()
@click.option("--prompt", required=True, help="What the picture shall show.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    callback=in_a_folder,
    default="demo.png",
    show_default=True,
    help="Where to write the picture.",
)
def demo(prompt: str, output: Path) -> None:
    """Develop one picture on a stack that exists only for it, and leave nothing else behind."""
    from rich.console import Console

    from darkroom.stack.demo import run
    from darkroom.stack.foreground import Interrupted

    try:
        run(prompt, output=output, console=Console())
    except Interrupted:
        raise click.Abort from None


@main.command()
@URL
def models(url: str) -> None:
    """List the models on offer, the default first."""
    from rich.console import Console
    from rich.table import Table

    from darkroom.client import Darkroom

    with Darkroom(url) as client:
        table = Table("name", "title", "family", "license", "size", "steps", box=None, pad_edge=False)
        for model in client.models():
            size = f"{model.defaults['width']}x{model.defaults['height']}"
            steps = str(model.defaults["num_inference_steps"])
            table.add_row(model.name, model.title, model.family, model.license, size, steps)
        Console().print(table)


@main.command()
def migrate() -> None:
    """Bring the database's schema to this version."""
    from darkroom.config import load_settings
    from darkroom.db import migrate as bring_up

    settings = load_settings()
    bring_up(settings.database)
    click.echo("the schema is up to date")


@main.command()
@click.argument("job_id", metavar="JOB", type=click.UUID)
def requeue(job_id: UUID) -> None:
    """Put a running JOB back into the queue, at its place.

    For operators: it speaks to the database (DATABASE_URL, or SQLite in DARKROOM_HOME). Nothing is counted against
    the job, and whatever its worker still does to it is refused.
    """
    from darkroom import jobs, logs
    from darkroom.config import load_settings
    from darkroom.db import Database

    settings = load_settings()
    logs.configure(settings)
    database = Database(settings.database)
    try:
        jobs.requeue(database, job_id, reason="an operator put it back")
    finally:
        database.dispose()
    click.echo(f"{job_id} waits again")


@main.command()
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Say what is missing or wrong, each with its cure. Exit status 1 if anything is."""
    from darkroom.doctor import examine

    findings = examine(os.environ)
    for finding in findings:
        click.echo(f"{finding.mark} {finding.name:<10} {finding.fact}")
        if finding.cure:
            click.echo(f"  {'':<10} {finding.cure}")
    ctx.exit(1 if any(finding.is_wrong for finding in findings) else 0)


@main.command()
@click.option("--host", help="The address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="The port.  [default: 8000]")
def web(host: str | None, port: int | None) -> None:
    """Serve the web face and nothing else, for production: put a proxy with TLS before it."""
    from darkroom.config import load_settings
    from darkroom.server import serve

    given = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    serve(load_settings(**given))


if __name__ == "__main__":
    main()
