"""How often a key may ask: counted in Redis for all web processes together. Knows no route.

While Redis is away each process counts for itself, and asks Redis again after 1, 2, 4, ... seconds: a black-holed Redis
costs a request now and then two time-outs, and the others nothing.
"""

import math
import time
from typing import Any

from flask import Flask, Response
from flask_limiter import Limiter
from redis import RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from darkroom.brokers import REDIS_TIMEOUT_SECONDS
from darkroom.config import Settings
from darkroom.web.identity import Identity, known

# As brokers.impatient_redis has it; the library makes its own client.
IMPATIENT: dict[str, Any] = {
    "socket_timeout": REDIS_TIMEOUT_SECONDS,
    "socket_connect_timeout": REDIS_TIMEOUT_SECONDS,
    "retry": Retry(NoBackoff(), 0),
}


def install(app: Flask, settings: Settings) -> None:
    """Count every request that shows a key, and tell in headers what is left."""
    limiter = Limiter(
        lambda: str(_limited().key_id),
        app=app,
        application_limits=[lambda: f"{_limited().requests_per_minute}/minute"],
        strategy="sliding-window-counter",
        storage_uri=settings.redis_url,
        storage_options=IMPATIENT,
        in_memory_fallback_enabled=True,
        key_prefix="darkroom",
    )
    limiter.request_filter(_is_unlimited)

    @app.after_request
    def tell(response: Response) -> Response:
        if limit := limiter.current_limit:
            try:
                reset_at, remaining = limit.window
            except RedisError:
                return response  # the next request counts in this process
            seconds = max(1, math.ceil(reset_at - time.time()))
            response.headers["RateLimit-Limit"] = str(limit.limit.amount)
            response.headers["RateLimit-Remaining"] = str(max(0, remaining))
            response.headers["RateLimit-Reset"] = str(seconds)
            if limit.breached:
                response.headers["Retry-After"] = str(seconds)
        return response


def _is_unlimited() -> bool:
    identity = known()
    return identity is None or identity.requests_per_minute is None


def _limited() -> Identity:
    identity = known()
    assert identity, "only asked where _is_unlimited says no"
    return identity
