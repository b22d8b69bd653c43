"""`darkroom keys`, as an operator types it."""

import json
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest

from darkroom import keys
from darkroom.db import Database

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def operate(darkroom: Run, database_url: str) -> Run:
    """Run `darkroom keys` against a migrated database."""
    return lambda *words: darkroom("keys", *words, DATABASE_URL=database_url)


@pytest.fixture
def store(database_url: str) -> Any:
    database = Database(database_url)
    yield database
    database.dispose()


@pytest.mark.parametrize("words", [[], ["create"], ["list"], ["revoke"]])
def test_every_command_explains_itself(darkroom: Run, words: list[str]) -> None:
    result = darkroom("keys", *words, "--help")
    assert result.returncode == 0
    assert "Usage:" in result.stdout


def test_create_prints_the_key_alone_so_that_a_shell_can_keep_it(operate: Run, store: Database) -> None:
    result = operate("create", "ann", "--owner", "studio", "--max-queued", "5", "--weight", "2")
    assert result.returncode == 0, result.stderr
    key = result.stdout.removesuffix("\n")
    assert keys.SHAPE.fullmatch(key)
    assert key not in result.stderr
    assert "shown only now" in result.stderr
    found = keys.KeyRing(store).find(key)
    assert found
    assert (found.name, found.owner, found.scopes) == ("ann", "studio", {"submit", "read"})
    assert found.quotas == keys.Quotas(weight=2.0, max_queued=5)


def test_admins_key_has_every_scope_and_json_is_for_programs(operate: Run) -> None:
    made = json.loads(operate("create", "root", "--admin", "--json").stdout)
    assert keys.SHAPE.fullmatch(made["key"])
    assert (made["owner"], made["scopes"]) == ("root", sorted(keys.SCOPES))


def test_list_shows_every_key_and_none_of_them_whole(operate: Run, store: Database) -> None:
    made = json.loads(operate("create", "ann", "--scope", "read", "--json").stdout)
    listed = operate("list")
    assert made["prefix"] in listed.stdout
    assert "ann" in listed.stdout
    (only,) = json.loads(operate("list", "--json").stdout)
    assert only == {name: value for name, value in made.items() if name != "key"}
    assert made["key"] not in listed.stdout


def test_revoke_takes_a_name_and_says_which_key_it_was(operate: Run, store: Database) -> None:
    key = operate("create", "ann").stdout.strip()
    result = operate("revoke", "ann")
    assert (result.returncode, result.stdout) == (0, f"ann ({key[:11]}…) is revoked\n")
    assert keys.KeyRing(store).find(key) is None


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["revoke", "nobody"], "no API key is known as nobody"),
        (["create", "ann", "--weight", "0"], "weight"),
        (["create", "ann", "--scope", "root"], "scopes"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(operate: Run, words: list[str], problem: str) -> None:
    result = operate(*words)
    assert result.returncode == 1
    assert problem in result.stderr
    assert "Traceback" not in result.stderr


def test_database_that_nobody_migrated_is_named_with_its_cure(darkroom: Run, tmp_path: Any) -> None:
    result = darkroom("keys", "list", DARKROOM_HOME=str(tmp_path))
    assert result.returncode == 1
    assert "darkroom migrate" in result.stderr
