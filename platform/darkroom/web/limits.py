"""How often a key may ask, and a link that needs none: counted in Redis for all web processes together.

While Redis is away each process counts for itself, and asks Redis again after REDIS_REST_SECONDS: a black-holed Redis
costs a request now and then a time-out, and the others nothing.
"""

import math
import time
from dataclasses import dataclass
from hashlib import sha256

import structlog
from flask import Flask, Response, g, request
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import RedisError

from darkroom.brokers import REDIS_REST_SECONDS, REDIS_TIMEOUT_SECONDS, impatient_redis
from darkroom.config import Settings
from darkroom.web.identity import known
from darkroom.web.problems import Refused

logger = structlog.get_logger(__name__)

# A link is passed around; a page of it asks for its pictures too. Each costs a look at SQL and a picture's bytes.
LINK_REQUESTS_PER_MINUTE = 600
NAMESPACE = "darkroom"


def install(app: Flask, settings: Settings) -> None:
    """Count every request that shows a key, or a link's token, and tell in headers what is left."""
    meter = _Meter(settings.redis_url)

    @app.before_request
    def count() -> None:
        if (counted := _counted()) is None:
            return
        g.standing = meter.count(counted)
        if g.standing.is_over:
            detail = f"Too many requests: at most {counted.most} per 1 minute are answered."
            raise Refused(429, "rate_limited", detail)

    @app.after_request
    def tell(response: Response) -> Response:
        standing: _Standing | None = g.get("standing")
        if standing:
            response.headers["RateLimit-Limit"] = str(standing.most)
            response.headers["RateLimit-Remaining"] = str(standing.remaining)
            response.headers["RateLimit-Reset"] = str(standing.seconds)
            if standing.is_over:
                response.headers["Retry-After"] = str(standing.seconds)
        return response


@dataclass(frozen=True)
class _Counted:
    """Whose requests are counted together, and how many of them a minute are answered."""

    name: str
    most: int


@dataclass(frozen=True)
class _Standing:
    """How many requests are left of a minute's, and in how many seconds there are more."""

    most: int
    remaining: int
    seconds: int
    is_over: bool


class _Meter:
    """Counts requests over a sliding minute. Safe to share between threads."""

    def __init__(self, redis_url: str) -> None:
        connections = impatient_redis(redis_url, seconds=REDIS_TIMEOUT_SECONDS).connection_pool
        self._together = SlidingWindowCounterRateLimiter(RedisStorage(redis_url, connection_pool=connections))
        self._alone = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._rest_until = 0.0

    def count(self, counted: _Counted) -> _Standing:
        """Count one request more, unless it is one too many."""
        limit = RateLimitItemPerMinute(counted.most, namespace=NAMESPACE)
        if time.monotonic() >= self._rest_until:
            try:
                return _hit(self._together, limit, counted.name)
            except RedisError as error:
                self._rest_until = time.monotonic() + REDIS_REST_SECONDS
                logger.warning("rates_are_counted_alone", reason=str(error), seconds=REDIS_REST_SECONDS)
        return _hit(self._alone, limit, counted.name)


def _hit(limiter: SlidingWindowCounterRateLimiter, limit: RateLimitItem, name: str) -> _Standing:
    is_over = not limiter.hit(limit, name)
    reset_at, remaining = limiter.get_window_stats(limit, name)
    return _Standing(limit.amount, max(0, remaining), max(1, math.ceil(reset_at - time.time())), is_over)


def _counted() -> _Counted | None:
    """Who is counted for this request. A link is what its holders have in common, whichever proxy they come through."""
    identity = known()
    if identity and identity.requests_per_minute is not None:
        return _Counted(str(identity.key_id), identity.requests_per_minute)
    if request.blueprint == "shared" and request.view_args:
        return _Counted(sha256(request.view_args["token"].encode()).hexdigest(), LINK_REQUESTS_PER_MINUTE)
    return None
