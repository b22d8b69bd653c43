"""The migrations make what the models say, on both databases, forth and back."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from darkroom.db import Base, Database, alembic_config, is_migrated, migrate
from darkroom.models import JobState, WorkerState

DEFINITIONS = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' AND sql IS NOT NULL",
    "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' UNION "
    "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace UNION "
    "SELECT table_name || '.' || column_name, concat_ws(' ', data_type, character_maximum_length, is_nullable, "
    "column_default) FROM information_schema.columns WHERE table_schema = 'public'",
}


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database without a table."""
    with tempfile.TemporaryDirectory(prefix="darkroom-schema-") as folder:
        url = f"sqlite:///{folder}/empty.db"
        if request.param == "postgres":
            postgres = request.getfixturevalue("postgres")
            url = postgres.url(postgres.new_database())
        database = Database(url)
        yield database
        database.dispose()


def definitions(database: Database) -> dict[str, str]:
    """Every index, constraint and column, in the database's own words but for white space, quotes and order."""
    with database.connect() as connection:
        rows = connection.execute(text(DEFINITIONS[connection.dialect.name]))
        return {
            name: ", ".join(sorted(part.strip() for part in re.split(r",(?![^()]*\))", _inside(sql))))
            for name, sql in rows
            if "alembic" not in name and "alembic" not in sql
        }


def _inside(sql: str) -> str:
    """The columns and constraints of a CREATE TABLE: one that was added later stands at their end."""
    words = " ".join(sql.replace('"', "").split())
    return words.partition("(")[2].removesuffix(")") if words.startswith("CREATE TABLE") else words


def tables(database: Database) -> set[str]:
    with database.connect() as connection:
        return set(inspect(connection).get_table_names())


def test_alembic_finds_no_drift(database: Database) -> None:
    with database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrations_make_every_condition_and_constraint_that_the_models_name(
    empty: Database, request: pytest.FixtureRequest
) -> None:
    """Alembic's own comparison sees neither checks nor the conditions of indexes."""
    migrate(empty.url)
    migrated = definitions(empty)
    command.downgrade(alembic_config(empty.url), "base")
    with empty.connect() as connection:
        Base.metadata.create_all(connection)
        connection.commit()
    assert migrated == definitions(empty)
    assert any("attempt > 0" in sql for sql in migrated.values())


def test_downgrade_leaves_nothing_and_upgrade_works_again(empty: Database) -> None:
    migrate(empty.url)
    assert tables(empty) == {*Base.metadata.tables, "alembic_version"}
    command.downgrade(alembic_config(empty.url), "base")
    assert tables(empty) == {"alembic_version"}
    migrate(empty.url)
    assert is_migrated(empty)


def test_migrating_again_changes_nothing(empty: Database) -> None:
    migrate(empty.url)
    before = definitions(empty)
    migrate(empty.url)
    assert definitions(empty) == before


def test_database_is_migrated_only_at_the_newest_version(empty: Database) -> None:
    assert not is_migrated(empty)
    migrate(empty.url)
    assert is_migrated(empty)
    with empty.connect() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'older'"))
        connection.commit()
    assert not is_migrated(empty)


def test_several_processes_may_migrate_at_once(empty: Database) -> None:
    """Every replica of a deployment does it when it starts."""
    program = "import sys; from darkroom.db import migrate; print('ready', flush=True); input(); migrate(sys.argv[1])"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    processes = [subprocess.Popen([sys.executable, "-c", program, empty.url], **pipes, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], answers
    assert is_migrated(empty)


@pytest.mark.parametrize(("table", "states"), [("jobs", JobState), ("workers", WorkerState)])
def test_database_takes_exactly_the_states_of_the_code(database: Database, queue, table: str, states) -> None:
    with database.connect() as connection:
        (check,) = inspect(connection).get_check_constraints(table)
    found = {word for word in check["sqltext"].split("'") if word.isalpha() and word.islower()}
    assert found - {"character varying", "text"} == {state.value for state in states}


def test_database_refuses_a_state_that_is_none(queue) -> None:
    job_id = queue.submit()
    with pytest.raises(IntegrityError):
        queue.set(job_id, state="lost")


def test_wheel_and_repository_run_the_same_migrations() -> None:
    folder = Path(str(alembic_config("sqlite:////nowhere").get_main_option("script_location")))
    assert (folder / "env.py").is_file()
    assert folder.name == "migrations"
