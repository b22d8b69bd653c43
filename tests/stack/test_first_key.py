"""The key that a stack makes for itself where strangers could reach it. Nothing is bound here."""

import re
from pathlib import Path
from typing import Any

import pytest

from darkroom import keys
from darkroom.config import load_settings
from darkroom.db import Database
from darkroom.stack.embedded import Stack


def first_key(tmp_path: Path, database_url: str, **values: Any) -> list[str]:
    """What a stack with these settings says of its first key, once its database is there."""
    said: list[str] = []
    settings = load_settings(home=tmp_path, database_url=database_url, **values)
    Stack(settings, report=said.append)._make_first_key()
    return said


def test_stack_that_strangers_can_reach_tells_its_first_key_once(tmp_path: Path, database_url: str) -> None:
    (said,) = first_key(tmp_path, database_url, host="0.0.0.0")
    (key,) = re.findall(keys.SHAPE, said)
    database = Database(database_url)
    found = keys.KeyRing(database).find(key)
    database.dispose()
    assert found
    assert (found.owner, found.scopes) == (keys.KEYLESS_OWNER, set(keys.SCOPES))
    assert first_key(tmp_path, database_url, host="0.0.0.0") == []


@pytest.mark.parametrize("values", [{"host": "127.0.0.1"}, {"host": "::1"}, {"host": "::", "keyless_anywhere": True}])
def test_stack_that_needs_no_key_makes_none(tmp_path: Path, database_url: str, values: dict[str, Any]) -> None:
    assert first_key(tmp_path, database_url, **values) == []
    database = Database(database_url)
    assert keys.list_keys(database) == []
    database.dispose()
