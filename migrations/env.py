"""Runs Darkroom's migrations. Configured in code by darkroom.db, so there is no alembic.ini."""

from alembic import context
from sqlalchemy import text

from darkroom import models  # noqa: F401 - the tables register themselves with the metadata
from darkroom.db import Base, Database

# Every replica of a deployment migrates when it starts: one does, the others wait and find it done. All of it is one
# transaction, begun before the schema's version is read; on SQLite it is the one writer's from its beginning.
# A migration may take longer than any other statement.
ALONE = ("SET LOCAL statement_timeout = 0", "SELECT pg_advisory_xact_lock(hashtextextended('darkroom migrations', 0))")


def run() -> None:
    """Migrate the database whose URL the caller put into the configuration's attributes."""
    database = Database(context.config.attributes["url"])
    with database.connect() as connection, connection.begin():
        for statement in () if database.is_sqlite else ALONE:
            connection.execute(text(statement))
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=database.is_sqlite,
            compare_type=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    database.dispose()


run()
