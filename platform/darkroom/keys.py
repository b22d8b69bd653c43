"""API keys: who may ask, for what, and how much. Knows no HTTP, and no job but its cost.

A key is 256 random bits, shown once. Only its SHA-256 is kept: what is that random needs no slow hash.
"""

import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

import structlog
import uuid_utils.compat
from sqlalchemy import case, func, insert, inspect, or_, select, update
from sqlalchemy.orm import Session

from darkroom.db import Database, now, today
from darkroom.errors import AmbiguousKey, FieldError, InvalidParameters, KeyNotFound, KeyRevoked, QuotaExceeded
from darkroom.models import ApiKey

logger = structlog.get_logger(__name__)

# As long as there is no key there is one owner: whoever reaches the loopback address.
KEYLESS_OWNER = "local"
# interactive: its jobs may wait in the interactive line also when they come by the API.
SCOPES = ("submit", "read", "interactive", "admin")
ORDINARY_SCOPES = ("submit", "read")
MARK = "dk_"
SHAPE = re.compile(MARK + "[A-Za-z0-9_-]{43}")
SHOWN_CHARACTERS = 11

MAX_NAME_CHARACTERS = 64
# From, to. A submit counts a key's waiting jobs one by one: hence the end of max_queued.
QUOTA_LIMITS: dict[str, tuple[float, float]] = {
    "weight": (0.01, 100),
    "max_queued": (0, 100_000),
    "megapixel_steps_per_day": (0, 1_000_000_000),
    "requests_per_minute": (1, 1_000_000),
}
QUOTA_LIMITS_IN_WORDS = {name: f"a number from {low:g} to {high:.10g}" for name, (low, high) in QUOTA_LIMITS.items()}

# How long a process goes on with what it knows of a key: so long may a revoked one still be let in.
REMEMBER_SECONDS = 2.0
MAX_REMEMBERED = 4096
LAST_USED_SECONDS = 600.0
SECONDS_A_DAY = 86400


@dataclass(frozen=True)
class Quotas:
    """What one key may use. Empty is without limit; `weight` is its share of the fleet beside others'."""

    weight: float = 1.0
    max_queued: int | None = None
    megapixel_steps_per_day: float | None = None
    requests_per_minute: int | None = None


@dataclass(frozen=True)
class KeyRecord:
    """A key as it was when it was read. Megapixel-steps are of today (UTC)."""

    id: UUID
    name: str
    owner: str
    prefix: str
    scopes: frozenset[str]
    quotas: Quotas
    used_megapixel_steps: float
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


def create(
    database: Database, *, name: str, owner: str, scopes: tuple[str, ...], quotas: Quotas
) -> tuple[KeyRecord, str]:
    """Make a key: its record, and the key itself, which nobody can ever read again. Raises InvalidParameters."""
    if errors := [*_naming_errors(name, owner), *_scope_errors(scopes), *_quota_errors(quotas)]:
        raise InvalidParameters(errors)
    key = MARK + secrets.token_urlsafe(32)
    values = {"name": name, "owner": owner, "scopes": _in_order(scopes), **vars(quotas)}
    key_id = uuid_utils.compat.uuid7()
    seen = {"prefix": key[:SHOWN_CHARACTERS], "sha256": _digest(key)}
    with database.write() as session:
        session.execute(insert(ApiKey).values(id=key_id, **seen, **values))
        record = _read(session, key_id)
    logger.info("key_created", key_id=str(record.id), owner=owner, scopes=sorted(scopes))
    return record, key


def change(database: Database, key_id: UUID, *, changes: Mapping[str, Any]) -> KeyRecord:
    """Give a key other quotas, named as in Quotas, or other scopes. Raises KeyNotFound or InvalidParameters."""
    with database.write() as session:
        known = _read(session, key_id)
        quotas = {name: value for name, value in changes.items() if name != "scopes"}
        scopes = changes.get("scopes", known.scopes)
        if errors := [*_scope_errors(scopes), *_quota_errors(replace(known.quotas, **quotas))]:
            raise InvalidParameters(errors)
        values = quotas | ({"scopes": _in_order(scopes)} if "scopes" in changes else {})
        if values:
            session.execute(update(ApiKey).where(ApiKey.id == key_id).values(**values))
        record = _read(session, key_id)
    logger.info("key_changed", key_id=str(key_id), **changes)
    return record


def revoke(database: Database, key_id: UUID) -> KeyRecord:
    """Let nobody in with this key any more; its jobs go on. Again is fine. Raises KeyNotFound."""
    with database.write() as session:
        session.execute(update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=now()))
        record = _read(session, key_id)
    logger.info("key_revoked", key_id=str(key_id))
    return record


def get(database: Database, key_id: UUID) -> KeyRecord:
    """Read a key. Raises KeyNotFound."""
    with database.read() as session:
        return _read(session, key_id)


def list_keys(database: Database) -> list[KeyRecord]:
    """Read every key that ever was, oldest first."""
    with database.read() as session:
        return [_record(*row) for row in session.execute(select(ApiKey, _is_of_today()).order_by(ApiKey.id))]


def identify(database: Database, named: str) -> KeyRecord:
    """Find the one key that a person means by its id, its name or its beginning, best one that is in use.

    Raises KeyNotFound or AmbiguousKey.
    """
    known = [key for key in list_keys(database) if named in (str(key.id), key.name, key.prefix)]
    found = [key for key in known if not key.revoked_at] or known
    if not found:
        raise KeyNotFound(named)
    if len(found) > 1:
        raise AmbiguousKey(named, prefixes=[f"{key.id} ({key.prefix}…)" for key in found])
    return found[0]


def any_exist(database: Database) -> bool:
    """Whether a key was ever made, revoked or not."""
    with database.read() as session:
        if not inspect(session.connection()).has_table(ApiKey.__tablename__):
            return False  # nobody has migrated it yet
        return session.scalar(select(ApiKey.id).limit(1)) is not None


def charge(session: Session, key_id: UUID, *, cost: float) -> int | None:
    """Count megapixel-steps against a key's day, and return how many jobs it may have queued.

    Until the transaction ends nobody else can charge the key: what is counted meanwhile stays true. Raises KeyRevoked
    or QuotaExceeded; then the transaction must not commit.
    """
    used = case((ApiKey.used_on == today(), ApiKey.used_megapixel_steps), else_=0.0) + cost
    statement = (
        update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
        .values(used_megapixel_steps=used, used_on=today())
        .returning(ApiKey.used_megapixel_steps, ApiKey.megapixel_steps_per_day, ApiKey.max_queued, now())
        .execution_options(synchronize_session=False)
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        raise KeyRevoked
    total, most, max_queued, moment = row
    if most is not None and total > most:
        raise QuotaExceeded(
            "megapixel_steps_per_day",
            limit=most,
            used=total - cost,
            asked=cost,
            seconds_left=SECONDS_A_DAY - moment.timestamp() % SECONDS_A_DAY,
        )
    return int(max_queued) if max_queued is not None else None


class KeyRing:
    """What one process knows of the keys that are shown to it, for REMEMBER_SECONDS each.

    A key is looked up by one index, whatever it is; what cannot be a key is not looked up at all.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_remembered: int = MAX_REMEMBERED,
    ) -> None:
        self._database = database
        self._clock = clock
        self._max_remembered = max_remembered
        self._known: dict[str | UUID, tuple[float, KeyRecord]] = {}
        self._is_locked = False
        self._open_until = 0.0

    def find(self, key: str) -> KeyRecord | None:
        """The record of a key that was shown; None if there is none, or it was revoked."""
        if not SHAPE.fullmatch(key):
            return None
        digest = _digest(key)
        return self._remembered(digest) or self._look_up(digest, ApiKey.sha256 == digest)

    def find_by_id(self, key_id: UUID) -> KeyRecord | None:
        """The record of a key by which somebody was let in earlier; None if it was revoked."""
        return self._remembered(key_id) or self._look_up(key_id, ApiKey.id == key_id)

    def asks_for_keys(self) -> bool:
        """Whether a key was ever made: from the first on, nobody comes in without one."""
        if not self._is_locked and self._clock() >= self._open_until:
            self._is_locked = any_exist(self._database)
            self._open_until = self._clock() + REMEMBER_SECONDS
        return self._is_locked

    def forget(self) -> None:
        """Look everything up anew: something was changed here."""
        self._known.clear()
        self._open_until = 0.0

    def _remembered(self, name: str | UUID) -> KeyRecord | None:
        until, record = self._known.get(name, (0.0, None))
        return record if self._clock() < until else None

    def _look_up(self, name: str | UUID, which: Any) -> KeyRecord | None:
        is_stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now(-LAST_USED_SECONDS))
        with self._database.read() as session:
            found = session.execute(
                select(ApiKey, _is_of_today(), is_stale).where(which, ApiKey.revoked_at.is_(None))
            ).one_or_none()
        if found is None:
            self._known.pop(name, None)
            return None
        row, is_of_today, is_unmarked = found
        if is_unmarked:
            with self._database.write() as session:
                session.execute(update(ApiKey).where(ApiKey.id == row.id).values(last_used_at=now()))
        if len(self._known) >= self._max_remembered:
            self._known.clear()
        record = _record(row, is_of_today)
        self._known[name] = (self._clock() + REMEMBER_SECONDS, record)
        return record


def _digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def _is_of_today() -> Any:
    return func.coalesce(ApiKey.used_on == today(), False)


def _read(session: Session, key_id: UUID) -> KeyRecord:
    statement = select(ApiKey, _is_of_today()).where(ApiKey.id == key_id).execution_options(populate_existing=True)
    found = session.execute(statement).one_or_none()
    if found is None:
        raise KeyNotFound(key_id)
    return _record(*found)


def _record(row: ApiKey, is_of_today: bool) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        name=row.name,
        owner=row.owner,
        prefix=row.prefix,
        scopes=frozenset(row.scopes),
        quotas=Quotas(**{each.name: getattr(row, each.name) for each in fields(Quotas)}),
        used_megapixel_steps=row.used_megapixel_steps if is_of_today else 0.0,
        created_at=row.created_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )


def _naming_errors(name: str, owner: str) -> list[FieldError]:
    return [
        FieldError(field, "is not a name", f"1 to {MAX_NAME_CHARACTERS} printable characters")
        for field, text in (("name", name), ("owner", owner))
        if not (1 <= len(text) <= MAX_NAME_CHARACTERS and text.isprintable())
    ]


def _scope_errors(scopes: Collection[str]) -> list[FieldError]:
    if scopes and not set(scopes) - set(SCOPES):
        return []
    return [FieldError("scopes", "names no scope", f"one or more of {', '.join(SCOPES)}")]


def _in_order(scopes: Collection[str]) -> list[str]:
    return [scope for scope in SCOPES if scope in scopes]


def _quota_errors(quotas: Quotas) -> list[FieldError]:
    return [
        FieldError(name, "is out of range", QUOTA_LIMITS_IN_WORDS[name])
        for name, value in vars(quotas).items()
        if value is not None and not QUOTA_LIMITS[name][0] <= value <= QUOTA_LIMITS[name][1]
    ]
