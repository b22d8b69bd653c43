"""Keys: made once, known by their digest, found by one lookup, forgotten in time."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event, select, update
from sqlalchemy.engine import Engine

from darkroom import keys
from darkroom.db import Database, now
from darkroom.errors import AmbiguousKey, InvalidParameters, KeyNotFound
from darkroom.keys import LAST_USED_SECONDS, REMEMBER_SECONDS, KeyRecord, KeyRing, Quotas
from darkroom.models import ApiKey


@dataclass
class Clock:
    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


def make(database: Database, name: str = "ann", **values: Any) -> tuple[KeyRecord, str]:
    how: dict[str, Any] = {"owner": name, "scopes": ("submit", "read"), "quotas": Quotas()} | values
    return keys.create(database, name=name, **how)


@contextmanager
def statements() -> Iterator[list[str]]:
    """What is sent to the database meanwhile."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield sent
    event.remove(Engine, "before_cursor_execute", note)


def test_key_is_256_random_bits_of_which_only_the_digest_and_a_beginning_are_stored(database: Database) -> None:
    record, key = make(database)
    assert keys.SHAPE.fullmatch(key)
    assert len(key.removeprefix(keys.MARK)) * 6 >= 256
    assert key != make(database)[1]
    with database.read() as session:
        row = vars(session.scalars(select(ApiKey).where(ApiKey.id == record.id)).one())
    assert key not in str(row)
    assert key.startswith(record.prefix)
    assert len(record.prefix) - len(keys.MARK) == 8


def test_key_is_in_no_log_line(database: Database, log_lines: list[Any]) -> None:
    record, key = make(database)
    KeyRing(database).find(key)
    keys.revoke(database, record.id)
    assert [line["event"] for line in log_lines if "key" in line["event"]] == ["key_created", "key_revoked"]
    assert key not in str(log_lines)
    assert key[len(record.prefix) :] not in str(log_lines)


def test_key_is_read_back_as_it_was_made(database: Database) -> None:
    quotas = Quotas(weight=2.5, max_queued=0, megapixel_steps_per_day=0.5, requests_per_minute=1)
    record, _ = make(database, owner="studio", scopes=("admin",), quotas=quotas)
    assert (record.owner, record.scopes, record.quotas) == ("studio", frozenset({"admin"}), quotas)
    assert (record.last_used_at, record.revoked_at, record.used_megapixel_steps) == (None, None, 0)
    assert keys.get(database, record.id) == record
    assert keys.list_keys(database) == [record]


OUTSIDE = [
    ("weight", 0.009, 0.01),
    ("weight", 100.1, 100),
    ("max_queued", -1, 0),
    ("max_queued", 100_001, 100_000),
    ("megapixel_steps_per_day", -0.1, 0),
    ("megapixel_steps_per_day", 1_000_000_001, 1_000_000_000),
    ("requests_per_minute", 0, 1),
    ("requests_per_minute", 1_000_001, 1_000_000),
]


@pytest.mark.parametrize(("quota", "outside", "edge"), OUTSIDE)
def test_quota_is_taken_at_its_limit_and_refused_beyond(
    database: Database, quota: str, outside: float, edge: float
) -> None:
    with pytest.raises(InvalidParameters, match=quota):
        make(database, quotas=replace(Quotas(), **{quota: outside}))
    record, _ = make(database, quotas=replace(Quotas(), **{quota: edge}))
    assert getattr(record.quotas, quota) == edge
    with pytest.raises(InvalidParameters, match=quota):
        keys.change(database, record.id, changes={quota: outside})


@pytest.mark.parametrize("name", ["", "x" * 65, "two\nlines", "nul\x00", "\ud800"])
@pytest.mark.parametrize("field", ["name", "owner"])
def test_name_that_cannot_be_one_is_refused(database: Database, field: str, name: str) -> None:
    with pytest.raises(InvalidParameters, match=field):
        keys.create(database, **{"name": "ann", "owner": "ann", field: name}, scopes=("read",), quotas=Quotas())


def test_longest_name_is_taken(database: Database) -> None:
    assert make(database, "x" * 64)[0].name == "x" * 64


@pytest.mark.parametrize("scopes", [(), ("root",), ("read", "root")])
def test_scope_that_is_none_is_refused(database: Database, scopes: tuple[str, ...]) -> None:
    with pytest.raises(InvalidParameters, match="scopes"):
        make(database, scopes=scopes)


def test_change_leaves_what_it_does_not_name(database: Database) -> None:
    record, _ = make(database, quotas=Quotas(weight=2.0, max_queued=5))
    changed = keys.change(database, record.id, changes={"max_queued": None, "requests_per_minute": 60})
    assert changed.quotas == Quotas(weight=2.0, requests_per_minute=60)
    assert keys.change(database, record.id, changes={}) == changed


def test_scopes_are_changed_as_a_whole_and_never_to_none(database: Database) -> None:
    record, _ = make(database, quotas=Quotas(max_queued=5))
    changed = keys.change(database, record.id, changes={"scopes": ["admin", "read"]})
    assert (changed.scopes, changed.quotas) == (frozenset({"read", "admin"}), Quotas(max_queued=5))
    for none in ([], ["root"], ["read", "root"]):
        with pytest.raises(InvalidParameters, match="scopes"):
            keys.change(database, record.id, changes={"scopes": none, "max_queued": 6})
    assert keys.get(database, record.id) == changed


def test_revoking_again_changes_nothing(database: Database) -> None:
    record, _ = make(database)
    revoked = keys.revoke(database, record.id)
    assert revoked.revoked_at
    assert keys.revoke(database, record.id) == revoked


def test_unknown_key_can_be_neither_read_nor_changed_nor_revoked(database: Database) -> None:
    unknown = uuid4()
    for act in (keys.get, keys.revoke, lambda *args: keys.change(*args, changes={"weight": 2.0})):
        with pytest.raises(KeyNotFound):
            act(database, unknown)


def test_person_means_a_key_by_its_id_its_name_or_its_beginning(database: Database) -> None:
    record, _ = make(database, "ann")
    make(database, "bob")
    for named in (str(record.id), "ann", record.prefix):
        assert keys.identify(database, named) == record
    with pytest.raises(KeyNotFound):
        keys.identify(database, "carl")


def test_name_of_several_keys_means_the_one_that_is_in_use_or_none(database: Database) -> None:
    first, second = make(database)[0], make(database)[0]
    with pytest.raises(AmbiguousKey, match=str(second.id)):
        keys.identify(database, "ann")
    keys.revoke(database, first.id)
    assert keys.identify(database, "ann") == second


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ring(database: Database, clock: Clock) -> KeyRing:
    return KeyRing(database, clock=clock)


def test_key_is_found_by_itself_and_by_its_id(database: Database, ring: KeyRing) -> None:
    record, key = make(database)
    assert ring.find(key) == record
    assert ring.find_by_id(record.id) is not None


@pytest.mark.parametrize("key", ["", "dk_", "dk_" + "x" * 42, "dk_" + "x" * 44, "dk_" + "x" * 42 + "é", "x" * 8000])
def test_what_cannot_be_a_key_is_not_even_looked_up(ring: KeyRing, key: str) -> None:
    with statements() as sent:
        assert ring.find(key) is None
    assert sent == []


def test_wrong_key_costs_one_lookup_each_time_and_is_not_remembered(ring: KeyRing) -> None:
    with statements() as sent:
        for _ in range(3):
            assert ring.find("dk_" + "x" * 43) is None
    assert len([each for each in sent if "api_keys" in each]) == 3


def test_right_key_is_looked_up_once_as_long_as_it_is_remembered(
    database: Database, ring: KeyRing, clock: Clock
) -> None:
    _, key = make(database)
    ring.find(key)
    clock.seconds += REMEMBER_SECONDS * 0.99
    with statements() as sent:
        assert ring.find(key)
    assert sent == []
    clock.seconds += REMEMBER_SECONDS * 0.02
    with statements() as sent:
        assert ring.find(key)
    assert len([each for each in sent if "api_keys" in each]) == 1


def test_revoked_key_is_let_in_no_longer_than_it_is_remembered(database: Database, ring: KeyRing, clock: Clock) -> None:
    record, key = make(database)
    assert ring.find(key)
    assert ring.find_by_id(record.id)
    keys.revoke(database, record.id)
    clock.seconds += REMEMBER_SECONDS
    assert ring.find(key) is None
    assert ring.find_by_id(record.id) is None


def test_process_that_revokes_a_key_lets_it_in_no_more(database: Database, ring: KeyRing) -> None:
    record, key = make(database)
    assert ring.find(key)
    keys.revoke(database, record.id)
    ring.forget()
    assert ring.find(key) is None


def test_ring_does_not_grow_without_end(database: Database) -> None:
    ring = KeyRing(database, max_remembered=3)
    for n in range(5):
        assert ring.find(make(database, f"key {n}")[1])
    assert len(ring._known) <= 3


def test_no_key_is_asked_for_until_the_first_was_made_and_then_for_ever(
    database: Database, ring: KeyRing, clock: Clock
) -> None:
    assert not ring.asks_for_keys()
    record, _ = make(database)
    clock.seconds += REMEMBER_SECONDS
    assert ring.asks_for_keys()
    keys.revoke(database, record.id)
    clock.seconds += REMEMBER_SECONDS
    assert ring.asks_for_keys()
    assert KeyRing(database).asks_for_keys()


def test_no_key_exists_where_nobody_has_migrated(tmp_path: Any) -> None:
    database = Database(f"sqlite:///{tmp_path}/empty.db")
    assert not keys.any_exist(database)
    database.dispose()


def test_last_use_is_noted_coarsely(database: Database, clock: Clock) -> None:
    record, key = make(database)
    KeyRing(database).find(key)
    first = keys.get(database, record.id).last_used_at
    assert first
    with statements() as sent:
        KeyRing(database).find(key)
    assert not any(each.startswith("UPDATE") for each in sent)
    with database.write() as session:
        session.execute(update(ApiKey).values(last_used_at=now(-LAST_USED_SECONDS - 1)))
    KeyRing(database).find(key)
    last = keys.get(database, record.id).last_used_at
    assert last
    assert last >= first
