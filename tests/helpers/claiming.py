"""One job at a time, for tests that look at what happens to it."""

from typing import Any

from darkroom import jobs
from darkroom.db import Database


def claim_one(database: Database, **how: Any) -> jobs.Claim | None:
    """Take the front job, with what `jobs.claim` is told."""
    claimed = jobs.claim(database, **how)
    return claimed[0] if claimed else None
