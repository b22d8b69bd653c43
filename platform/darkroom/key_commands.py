"""`darkroom keys`: for operators, who reach the database. Each command makes one call and prints."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from darkroom.db import Database
    from darkroom.keys import KeyRecord


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@click.group("keys")
def keys() -> None:
    """Make, list and revoke API keys.

    They speak to the database (DATABASE_URL, or SQLite in DARKROOM_HOME). As long as no key was ever made, whoever
    reaches Darkroom on loopback needs none; from the first key on, everybody needs one.
    """


@keys.command()
@click.argument("name")
@click.option("--owner", help="Whose jobs its jobs are; several keys may have one owner.  [default: NAME]")
@click.option("--admin", is_flag=True, help="For an operator: every scope.")
@click.option("--scope", "scopes", multiple=True, help="submit, read or admin; repeatable.  [default: submit and read]")
@click.option("--weight", type=float, default=1.0, show_default=True, help="Its share of the fleet, beside others'.")
@click.option("--max-queued", type=int, help="How many of its jobs may wait.")
@click.option("--megapixel-steps-per-day", type=float, help="How much it may submit on one day (UTC).")
@click.option("--requests-per-minute", type=int, help="How often it may ask.")
@AS_JSON
def create(name: str, owner: str | None, admin: bool, scopes: tuple[str, ...], as_json: bool, **quotas: Any) -> None:
    """Make a key called NAME and print it: it is shown this once, and kept nowhere."""
    from darkroom import keys

    scopes = keys.SCOPES if admin else scopes or keys.ORDINARY_SCOPES
    with _database() as database:
        record, key = keys.create(database, name=name, owner=owner or name, scopes=scopes, quotas=keys.Quotas(**quotas))
    if as_json:
        click.echo(json.dumps(_document(record) | {"key": key}, indent=2))
        return
    click.echo(f"{record.prefix}… for {record.owner}: this is shown only now", err=True)
    click.echo(key)


@keys.command("list")
@AS_JSON
def list_keys(as_json: bool) -> None:
    """List every key that ever was, oldest first."""
    from darkroom import keys

    with _database() as database:
        found = keys.list_keys(database)
    if as_json:
        click.echo(json.dumps([_document(key) for key in found], indent=2))
        return
    from rich.console import Console

    Console().print(_table(found))


@keys.command()
@click.argument("key", metavar="KEY")
def revoke(key: str) -> None:
    """Let nobody in with KEY any more: its id, its name, or its beginning as listed. Its jobs go on."""
    from darkroom import keys

    with _database() as database:
        record = keys.revoke(database, keys.identify(database, key).id)
    click.echo(f"{record.name} ({record.prefix}…) is revoked")


@contextmanager
def _database() -> Iterator["Database"]:
    from darkroom import logs
    from darkroom.config import load_settings
    from darkroom.db import Database, is_migrated
    from darkroom.errors import ConfigError

    settings = load_settings()
    logs.configure(settings)
    database = Database(settings.database)
    try:
        if not is_migrated(database):
            raise ConfigError("DATABASE_URL: the schema is not this version's; run `darkroom migrate` first")
        yield database
    finally:
        database.dispose()


def _document(key: "KeyRecord") -> dict[str, Any]:
    moments = {name: getattr(key, name) for name in ("created_at", "last_used_at", "revoked_at")}
    return {
        "id": str(key.id),
        "name": key.name,
        "owner": key.owner,
        "prefix": key.prefix,
        "scopes": sorted(key.scopes),
        **vars(key.quotas),
        "megapixel_steps_today": key.used_megapixel_steps,
        **{name: moment.isoformat() if moment else None for name, moment in moments.items()},
    }


def _table(found: list["KeyRecord"]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("key", no_wrap=True)
    for heading in ("name", "owner", "scopes", "weight", "waiting", "a day", "a minute", "last used", "state"):
        table.add_column(heading)
    for key in found:
        quotas = key.quotas
        limits = (quotas.max_queued, quotas.megapixel_steps_per_day, quotas.requests_per_minute)
        cells = [
            f"{key.prefix}…",
            key.name,
            key.owner,
            ", ".join(sorted(key.scopes)),
            f"{quotas.weight:g}",
            *("" if limit is None else f"{limit:g}" for limit in limits),
            f"{key.last_used_at:%F %H:%M}" if key.last_used_at else "never",
            f"revoked {key.revoked_at:%F}" if key.revoked_at else "in use",
        ]
        table.add_row(*map(Text, cells))  # as text: a name may look like markup
    return table
