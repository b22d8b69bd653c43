"""Runs Darkroom's migrations. Configured in code by darkroom.db, so there is no alembic.ini."""

from alembic import context

from darkroom import models  # noqa: F401 - the tables register themselves with the metadata
from darkroom.db import Base, Database


def run() -> None:
    """Migrate the database whose URL the caller put into the configuration's attributes."""
    database = Database(context.config.attributes["url"])
    with database.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=database.is_sqlite,
            compare_type=True,
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
    database.dispose()


run()
