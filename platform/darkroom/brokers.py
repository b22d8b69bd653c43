"""Redis for whoever cannot wait for it. Knows no key and no channel."""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

logger = structlog.get_logger(__name__)

REDIS_TIMEOUT_SECONDS = 0.1
# After a fault Redis is left alone for this long, so that a black-holed server costs one time-out, not one a request.
REDIS_REST_SECONDS = 5.0

Answer = TypeVar("Answer")


def impatient_redis(url: str, *, seconds: float, decode_responses: bool = False) -> Redis:
    """A client that tries once, and waits this long for a connection and for an answer: its own default tries on."""
    return Redis.from_url(
        url,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        retry=Retry(NoBackoff(), 0),
        decode_responses=decode_responses,
    )


class LossyRedis:
    """Redis for what may be lost: bounded in time, silent while it is away."""

    def __init__(self, url: str) -> None:
        self._redis = impatient_redis(url, seconds=REDIS_TIMEOUT_SECONDS)
        self._rest_until = 0.0

    def ask(self, call: Callable[[Redis], Answer], otherwise: Answer) -> Answer:
        """Give what the call does, or `otherwise` when Redis does not answer in time or rests from not having done."""
        if time.monotonic() < self._rest_until:
            return otherwise
        try:
            return call(self._redis)
        except RedisError as error:
            self._rest_until = time.monotonic() + REDIS_REST_SECONDS
            logger.warning("redis_rests", reason=str(error), seconds=REDIS_REST_SECONDS)
            return otherwise
