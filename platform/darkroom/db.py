"""One database: its engine, its transactions, its clock, its migrations. Knows no table.

PostgreSQL is the production database, SQLite (WAL) the embedded one. Every difference between the two is settled here
or marked `dialect` where it is used.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from datetime import UTC, date, datetime
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Date, DateTime, Dialect, Double, Executable, MetaData, Table, create_engine, event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.expression import FunctionElement, SQLColumnExpression
from sqlalchemy.types import TypeDecorator

from darkroom.errors import ConfigError, DatabaseUnavailable

# Every constraint has a name, so that a migration can drop it on both databases.
NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

SQLITE_BUSY_SECONDS = 30
POSTGRES_CONNECT_SECONDS = 5
POSTGRES_VANISHED_MILLISECONDS = 25_000
# A connection that was used so lately is not asked whether it still lives: that would be a round trip for each use.
POSTGRES_TRUSTED_SECONDS = 1.0
POSTGRES_OPTIONS = {
    # No statement of ours is ever this long.
    "statement_timeout": "30000",
    "idle_in_transaction_session_timeout": "60000",
    # Every lookup of ours follows an index in its own order. Statistics from an hour when nothing waited let the
    # planner sort the whole queue for its front instead: 19 ms at 10,000 jobs, against 0.2.
    "enable_sort": "off",
    "enable_seqscan": "off",
}
# libpq's PQTRANS_IDLE and PQ_PIPELINE_OFF; psycopg, which names them, is there only where PostgreSQL is.
IDLE = 0
PIPELINE_OFF = 0
NETWORK_FILESYSTEMS = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.sshfs", "glusterfs", "lustre", "nfs", "nfs4", "smb3"}
)


class Base(DeclarativeBase):
    """The root of every table."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


def table_of(entity: type[Base]) -> Table:
    """The bare table, for statements over many rows, which the unit of work would take one by one."""
    return cast(Table, entity.__table__)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime. SQLite keeps no zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock, moved by an offset in seconds. Workers' own clocks decide nothing."""

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, offset_seconds: float | SQLColumnExpression[float | None] = 0.0) -> None:
        super().__init__(offset_seconds)


@compiles(now, "postgresql")
def _now_on_postgresql(element: now, compiler: Any, **kw: Any) -> str:
    # statement_timestamp() is STABLE, so an index on a time column can serve; now() would be the transaction's start.
    return f"(statement_timestamp() + make_interval(secs => {compiler.process(element.clauses, **kw)}))"


@compiles(now, "sqlite")
def _now_on_sqlite(element: now, compiler: Any, **kw: Any) -> str:
    # The text that SQLAlchemy stores for a datetime has six decimals; SQLite's clock gives three.
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', ({compiler.process(element.clauses, **kw)}) || ' seconds')"


class today(FunctionElement[date]):  # noqa: N801 - reads as the SQL function it is
    """The day (UTC) by the database's clock."""

    type = Date()
    inherit_cache = True


@compiles(today, "postgresql")
def _today_on_postgresql(_element: today, _compiler: Any, **_kw: Any) -> str:
    return "(statement_timestamp() AT TIME ZONE 'UTC')::date"


@compiles(today, "sqlite")
def _today_on_sqlite(_element: today, _compiler: Any, **_kw: Any) -> str:
    return "date('now')"


class seconds_between(FunctionElement[float]):  # noqa: N801
    """From an earlier moment to a later one, in seconds."""

    type = Double()
    inherit_cache = True

    def __init__(self, later: SQLColumnExpression[Any], earlier: SQLColumnExpression[Any]) -> None:
        super().__init__(later, earlier)


@compiles(seconds_between, "postgresql")
def _seconds_on_postgresql(element: seconds_between, compiler: Any, **kw: Any) -> str:
    later, earlier = (compiler.process(each, **kw) for each in element.clauses)
    return f"CAST(extract(epoch FROM {later} - {earlier}) AS double precision)"


@compiles(seconds_between, "sqlite")
def _seconds_on_sqlite(element: seconds_between, compiler: Any, **kw: Any) -> str:
    later, earlier = (compiler.process(each, **kw) for each in element.clauses)
    return f"((julianday({later}) - julianday({earlier})) * 86400.0)"


class later(FunctionElement[datetime]):  # noqa: N801
    """A moment, so many seconds later, to the millisecond."""

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, moment: SQLColumnExpression[Any], seconds: SQLColumnExpression[Any]) -> None:
        super().__init__(moment, seconds)


@compiles(later, "postgresql")
def _later_on_postgresql(element: later, compiler: Any, **kw: Any) -> str:
    moment, seconds = (compiler.process(each, **kw) for each in element.clauses)
    return f"({moment} + make_interval(secs => {seconds}))"


@compiles(later, "sqlite")
def _later_on_sqlite(element: later, compiler: Any, **kw: Any) -> str:
    moment, seconds = (compiler.process(each, **kw) for each in element.clauses)
    return f"strftime('%Y-%m-%d %H:%M:%f000', {moment}, ({seconds}) || ' seconds')"


class plain(FunctionElement[Any]):  # noqa: N801
    """A column's value, and to SQLite no more: it looks for no index by it, and finds rows of other columns by it.

    With the affinity of a column on the right, `(a, b) < (x, y)` would be looked up by `a` alone, and read on.
    """

    inherit_cache = True

    def __init__(self, column: Any) -> None:
        self.type = column.type
        super().__init__(column)


@compiles(plain)
def _plain(element: plain, compiler: Any, **kw: Any) -> str:
    return str(compiler.process(element.clauses, **kw))


@compiles(plain, "sqlite")
def _plain_on_sqlite(element: plain, compiler: Any, **kw: Any) -> str:
    return f"+{compiler.process(element.clauses, **kw)}"


class Database:
    """The one way to a connection. Safe to share between threads; not across a fork."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        self._engine = _sqlite_engine(url) if self.is_sqlite else _postgresql_engine(url, pool_size)
        self._writing = (
            self._engine if self.is_sqlite else self._engine.execution_options(isolation_level="READ COMMITTED")
        )
        # SQLite has one writer: waiting here is fair and cheap, its own busy handler is neither.
        self._writer: AbstractContextManager[Any] = threading.Lock() if self.is_sqlite else nullcontext()
        # What in_one_trip has compiled.
        self._texts: dict[Executable, tuple[str, Mapping[str, Any]]] = {}
        # Called after every commit with what the transaction has left in its session's `info`.
        self.on_commit: Callable[[Mapping[Any, Any]], None] = lambda _: None

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits at the end of the block. Raises DatabaseUnavailable when it cannot be had."""
        with _faults(), self._writer, self._begin(self._writing, "IMMEDIATE") as session:
            yield session
        self.on_commit(session.info)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads. On PostgreSQL each of its statements sees what was committed before it."""
        with _faults(), self._begin(self._engine, "DEFERRED") as session:
            yield session

    @contextmanager
    def _begin(self, engine: Engine, mode: str) -> Iterator[Session]:
        with engine.connect() as connection:
            connection.execution_options(sqlite_begin=mode)
            with connection.begin(), Session(bind=connection, expire_on_commit=False) as session:
                yield session
                session.flush()

    def in_one_trip(self, *steps: tuple[Executable, Mapping[str, Any]]) -> list[Any]:
        """Execute statements as one transaction, on PostgreSQL alone, and return the last one's rows.

        All are sent together, and each sees what was committed before it began: nobody waits for this process between
        a lock and the commit. Values are those that the driver knows.
        """
        with _faults(), self._driver() as driver:
            if len(steps) == 1:  # nothing to be sent together with
                return list(self._send(driver, *steps[0]))
            with driver.pipeline() as pipeline:
                pipeline.command_queue = _Together(last=driver.pgconn.pipeline_sync)
                cursors = [self._send(driver, *step) for step in steps]
            return list(cursors[-1])

    def _send(self, driver: Any, statement: Executable, values: Mapping[str, Any]) -> Any:
        text, own_values = self._text_of(statement)
        return driver.execute(text, {**own_values, **values})

    @contextmanager
    def _driver(self) -> Iterator[Any]:
        """A connection of the driver itself, lent by the pool, each of whose statements is a transaction of its own."""
        errors: Any = self._engine.dialect.loaded_dbapi.Error
        try:
            with closing(self._engine.raw_connection()) as lent:
                driver: Any = lent.driver_connection
                try:
                    yield driver
                finally:
                    if driver.closed or not _is_idle(driver.pgconn):
                        lent.invalidate()
        except errors as error:
            # As SQLAlchemy says it, where it was not asked to execute.
            raise DBAPIError.instance(None, None, error, errors, hide_parameters=True) from error

    def _text_of(self, statement: Executable) -> tuple[str, Mapping[str, Any]]:
        """A statement as the driver takes it, and the values that it brings along. It is remembered: build it once."""
        if statement not in self._texts:
            compiled = cast(Any, statement).compile(dialect=self._engine.dialect)
            self._texts[statement] = (str(compiled), compiled.params)
        return self._texts[statement]

    @contextmanager
    def look(self) -> Iterator[Connection]:
        """A bare connection that only reads: for the hottest paths, without a session."""
        with _faults(), self._engine.connect() as connection:
            yield connection.execution_options(sqlite_begin="DEFERRED")

    def connect(self) -> Connection:
        """A bare connection, for migrations and for checks of the schema."""
        return self._writing.connect()

    def dispose(self) -> None:
        """Close every pooled connection."""
        self._engine.dispose()


class _Together(deque[Callable[[], None]]):
    """A pipeline's commands, given out as one when the last of them is there.

    psycopg sends each as soon as it can. Then a lock is held for as long as this thread waits for its turn to send on.
    """

    def __init__(self, *, last: Callable[[], None]) -> None:
        super().__init__()
        self._last = last
        self._held: list[Callable[[], None]] = []

    def append(self, command: Callable[[], None]) -> None:
        """Keep a command; the last one lets all of them go."""
        self._held.append(command)
        if command == self._last:
            super().append(self._send_all)

    def _send_all(self) -> None:
        for send in self._held:
            send()


def _is_idle(connection: Any) -> bool:
    """Whether libpq's connection may be lent again: nothing of the last use is under way, and no transaction open."""
    return bool(connection.transaction_status == IDLE and connection.pipeline_status == PIPELINE_OFF)


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise DatabaseUnavailable(f"the database does not answer: {error.orig}") from error
    except PoolTimeout as error:
        raise DatabaseUnavailable("every connection to the database is in use") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseUnavailable(f"the database went away: {error.orig}") from error
        raise


def _postgresql_engine(url: str, pool_size: int) -> Engine:
    if not find_spec("psycopg"):
        raise ConfigError("DATABASE_URL: PostgreSQL needs the extra that brings its driver: darkroom[postgres]")
    engine = create_engine(
        url,
        hide_parameters=True,  # a prompt is among them
        # PostgreSQL takes a snapshot for each statement, so BEGIN and COMMIT around reads would be two round trips for
        # nothing, and there is nothing to roll back after them.
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        # None is ever given up: beyond a pool's size each use would open a connection and close it, which under load
        # costs more than what it is used for. The one used last goes first: its statements are prepared, and it lives.
        pool_size=2 * pool_size,
        max_overflow=0,
        pool_use_lifo=True,
        pool_timeout=POSTGRES_CONNECT_SECONDS,
        connect_args={
            "connect_timeout": POSTGRES_CONNECT_SECONDS,
            # A host that vanished is noticed by the kernel, idle or in the middle of an answer.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": POSTGRES_VANISHED_MILLISECONDS,
            "options": " ".join(f"-c {name}={value}" for name, value in POSTGRES_OPTIONS.items()),
        },
    )
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", _ping_if_idle)
    return engine


def _note_use(_connection: Any, record: Any) -> None:
    record.info["used_at"] = time.monotonic()


def _ping_if_idle(connection: Any, record: Any, _proxy: Any) -> None:
    """Ask a connection that has lain idle whether it still lives; the pool then tries another."""
    if time.monotonic() - record.info.get("used_at", math.inf) < POSTGRES_TRUSTED_SECONDS:
        return
    try:
        connection.execute("SELECT 1")
    except Exception as error:
        raise DisconnectionError from error


def _sqlite_engine(url: str) -> Engine:
    path = make_url(url).database
    if not path or path == ":memory:":
        raise ConfigError("DATABASE_URL: SQLite needs a file that several processes can open, not :memory:")
    _create_private(Path(path))
    engine = create_engine(url, hide_parameters=True, poolclass=NullPool, connect_args={"timeout": SQLITE_BUSY_SECONDS})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _create_private(path: Path) -> None:
    """Make an empty file that only its owner reads; SQLite gives its log and its index the same rights."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise DatabaseUnavailable(f"{path} cannot be opened: {error.strerror}") from error


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy begins; the driver's own implicit BEGIN would come too late
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A writer that begins as a reader cannot wait for its turn: SQLite answers "locked" at once.
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('sqlite_begin', 'IMMEDIATE')}")


def is_on_network(url: str, *, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether a SQLite file lies on a filesystem of another host, where its locks do not hold."""
    path = Path(make_url(url).database or "").absolute()
    if not mounts.exists():
        return False
    # The kernel writes a space in a name as \040.
    lines = [line.split() for line in mounts.read_text().splitlines()]
    points = [(line[1].replace("\\040", " "), line[2]) for line in lines]
    holding = [(point, kind) for point, kind in points if path.is_relative_to(point)]
    return max(holding, key=lambda mount: len(mount[0]))[1] in NETWORK_FILESYSTEMS if holding else False


def alembic_config(url: str) -> Config:
    """Alembic, configured in code: from the repository's folder, or from the one that travels in the wheel."""
    inside = files("darkroom").joinpath("migrations")
    folder = Path(str(inside)) if inside.is_dir() else Path(__file__).parents[2] / "migrations"
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["url"] = url
    return config


def migrate(url: str) -> None:
    """Bring the schema to the newest version. Raises DatabaseUnavailable."""
    with _faults():
        command.upgrade(alembic_config(url), "head")


def is_migrated(database: Database) -> bool:
    """Whether the schema is the one this version of Darkroom was written for."""
    head = ScriptDirectory.from_config(alembic_config(database.url)).get_current_head()
    with _faults(), database.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == head
