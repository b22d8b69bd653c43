"""What an owner has chosen once, to be used where a request does not say. Knows no catalog and no HTTP."""

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from darkroom.db import Database
from darkroom.models import Choice


def choose_model(database: Database, model: str, *, owner: str) -> None:
    """Remember an owner's model, in place of the one before."""
    dialect = sqlite if database.is_sqlite else postgresql
    row = dialect.insert(Choice).values(owner=owner, model=model)
    with database.write() as session:
        session.execute(row.on_conflict_do_update(index_elements=["owner"], set_={"model": model}))


def chosen_model(database: Database, *, owner: str) -> str | None:
    """The model that an owner chose last, if ever."""
    with database.read() as session:
        return session.scalar(select(Choice.model).where(Choice.owner == owner))
