"""Whether everything this process depends on answers. Each question is bounded in time; all are asked at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from redis import RedisError

from darkroom.brokers import impatient_redis
from darkroom.db import is_migrated
from darkroom.errors import DarkroomError
from darkroom.web.services import Services

logger = structlog.get_logger(__name__)

REDIS_SECONDS = 1.0
# Without these a web process is of no use. Without the others it still takes jobs and tells about them, and since all
# web processes share them, a load balancer that turned away from one would turn away from all.
REQUIRED = frozenset({"database", "relay"})


def readiness(services: Services) -> dict[str, dict[str, Any]]:
    """Ask every dependency. Reasons go to the log: this answer may be read by strangers."""
    questions: dict[str, Callable[[], str | None]] = {
        "database": lambda: _database_problem(services),
        "redis": lambda: _redis_problem(services.settings.redis_url),
        "s3": services.storage.check,
    }
    with ThreadPoolExecutor(len(questions)) as pool:
        answers = pool.map(lambda name: _ask(name, questions[name]), questions)
        report = dict(zip(questions, answers, strict=True))
    return report | {"relay": services.background.report()}


def _ask(name: str, question: Callable[[], str | None]) -> dict[str, Any]:
    try:
        problem = question()
    except (DarkroomError, RedisError, OSError) as error:
        logger.warning("not_ready", dependency=name, reason=str(error))
        problem = "does not answer"
    return {"ok": True} if problem is None else {"ok": False, "problem": problem}


def _database_problem(services: Services) -> str | None:
    return None if is_migrated(services.database) else "its schema is not the one of this version: run darkroom migrate"


def _redis_problem(url: str) -> None:
    with impatient_redis(url, seconds=REDIS_SECONDS) as redis:
        redis.ping()
