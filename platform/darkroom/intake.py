"""Whether jobs are taken at all: an operator may pause that for a while. Knows no job and no HTTP."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from darkroom.db import Database
from darkroom.errors import DatabaseUnavailable, IntakePaused
from darkroom.models import Intake

logger = structlog.get_logger(__name__)

THE_ROW = 1
REMEMBER_SECONDS = 2.0
REASON = select(Intake.reason)


@dataclass(frozen=True)
class Pause:
    """Why no jobs are taken, since when, and who said so."""

    reason: str
    paused_by: str
    paused_at: datetime


def pause(database: Database, *, reason: str, paused_by: str) -> Pause:
    """Take no more jobs until `resume`. What was taken goes on. Again is fine, and gives another reason."""
    with database.write() as session:
        session.execute(delete(Intake))
        row = session.scalars(insert(Intake).values(id=THE_ROW, reason=reason, paused_by=paused_by).returning(Intake))
        found = _pause(row.one())
    logger.warning("intake_paused", reason=reason, by=paused_by)
    return found


def resume(database: Database, *, resumed_by: str) -> None:
    """Take jobs again. Fine also where nothing was paused."""
    with database.write() as session:
        session.execute(delete(Intake))
    logger.info("intake_resumed", by=resumed_by)


def read(database: Database) -> Pause | None:
    """Why no jobs are taken; None while they are."""
    with database.read() as session:
        row = session.scalar(select(Intake))
        return _pause(row) if row else None


def check(session: Session) -> None:
    """Raise IntakePaused while no jobs are taken."""
    reason = session.connection().scalar(REASON)
    if reason is not None:
        raise IntakePaused(reason)


class Notice:
    """What the pages of one process say of the intake, at most REMEMBER_SECONDS old."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._read_at: float | None = None
        self._pause: Pause | None = None

    def read(self) -> Pause | None:
        """Why no jobs are taken; None while they are, and while the database cannot tell: a page has other worries."""
        if self._read_at is None or self._clock() - self._read_at >= REMEMBER_SECONDS:
            self._read_at = self._clock()
            try:
                self._pause = read(self._database)
            except DatabaseUnavailable as error:
                self._pause = None
                logger.warning("intake_untold", reason=str(error))
        return self._pause

    def forget(self) -> None:
        """Look anew: it was changed here."""
        self._read_at = None


def _pause(row: Intake) -> Pause:
    return Pause(row.reason, row.paused_by, row.paused_at)
